"""The processes of a run: joining the group, noticing that a peer has failed, and exiting."""

import atexit
import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from basicsr.utils.dist_util import init_dist as basicsr_init_dist

from facd_basicsr.errors import PeerFailedError, UserError, one_line, reraise
from facd_basicsr.runtime.processes import Ranks


def start_ranks(opt: dict[str, Any], launcher: str) -> None:
    """Joins the process group of ``none``, ``pytorch`` (torchrun) or ``slurm``; fills in ``rank`` and ``world_size``.

    To be called before data and checkpoints are checked: a rank that then exits, as its node lacks the data, breaks
    the connections of the others, which exit too.

    Raises:
        UserError: several processes were started, which without a launcher would each be a run of its own.
        UserError, PeerFailedError: as of :func:`init_dist`.
    """
    if launcher == 'none':
        _check_alone()
    if opt['dist']:
        init_dist(launcher, opt['num_gpu'] > 0, opt['dist_params'])
    with reraise_peer_failure():
        ranks = Ranks()  # connects all ranks by gloo too
    opt['rank'], opt['world_size'] = ranks.rank, ranks.size


# By what has started the processes: the variable with their number, and the option that joins them.
STARTED = {'torchrun': ('WORLD_SIZE', 'pytorch'), 'srun': ('SLURM_STEP_NUM_TASKS', 'slurm')}


def _check_alone() -> None:
    for starter, (variable, launcher) in STARTED.items():
        if os.environ.get(variable, '1') not in ('', '0', '1'):
            raise UserError(
                f'--launcher: none, but {starter} has started {os.environ[variable]} processes ({variable}), each of '
                f'which would be a run of its own in the same folder; accepted: --launcher {launcher}, or `unset '
                f'{variable}` for one process'
            )


def init_dist(launcher: str, on_gpu: bool, dist_params: dict[str, Any]) -> None:
    """BasicSR's ``init_dist``, except that without GPUs it uses gloo, where BasicSR divides by the GPU count.

    Raises:
        UserError: the launcher's environment is missing, or it has started more processes than there are GPUs.
        PeerFailedError: the processes cannot reach each other.
    """
    processes, gpus = int(os.environ.get('LOCAL_WORLD_SIZE', 0)), torch.cuda.device_count()  # of this machine
    if on_gpu and processes > gpus:
        raise UserError(
            f'--launcher: {launcher}, with {processes} processes on a machine with {gpus} GPUs; accepted: '
            f'--nproc_per_node={gpus} or less, or any number without GPUs (num_gpu: 0)'
        )
    # torchrun sets the port itself, and BasicSR would pass it on to init_process_group; a SLURM job's own comes before
    # the option file's
    if launcher != 'slurm' or 'MASTER_PORT' in os.environ:
        dist_params = {key: value for key, value in dist_params.items() if key != 'port'}
    try:
        with reraise_peer_failure():
            if on_gpu:
                basicsr_init_dist(launcher, **dist_params)
            else:
                if launcher == 'slurm':
                    _take_environment_from_slurm(dist_params.get('port'))
                dist.init_process_group('gloo')
    except (KeyError, ValueError, OSError, subprocess.CalledProcessError) as error:
        raise UserError(
            f'--launcher: {launcher}, but the launcher has not set its environment ({error}); accepted: start it as '
            '`torchrun --nproc_per_node=N facd_basicsr/train.py --launcher pytorch -opt FILE`, or by srun'
        ) from error


def _take_environment_from_slurm(port: int | None) -> None:
    """As basicsr/utils/dist_util.py:41, whose lines for GPUs divide by their number."""
    rank, world_size, nodes = (os.environ[f'SLURM_{name}'] for name in ('PROCID', 'NTASKS', 'NODELIST'))
    hosts = subprocess.run(['scontrol', 'show', 'hostname', nodes], capture_output=True, text=True, check=True).stdout
    os.environ |= {'RANK': rank, 'WORLD_SIZE': world_size, 'MASTER_ADDR': hosts.split()[0]}
    os.environ['MASTER_PORT'] = str(port) if port else os.environ.get('MASTER_PORT', '29500')


# What c10d and NCCL say of a process that has ended or cannot be reached.
GONE = re.compile(r'clos|reset|remote|time(d )?out|abort|broken pipe|connect', re.IGNORECASE)


def is_peer_failure(error: RuntimeError) -> bool:
    """Whether an error means that another process of the group has failed.

    gloo's are plain RuntimeErrors, which name the file of its connections. NCCL's other errors, of memory for example,
    are this process's own.
    """
    if isinstance(error, dist.DistError):
        return GONE.search(str(error)) is not None
    return 'gloo/transport' in str(error)


def reraise_peer_failure() -> AbstractContextManager[None]:
    """Turns errors that a failed peer causes into a :class:`PeerFailedError`; others stay."""

    def translated(error: RuntimeError) -> PeerFailedError | None:
        if not is_peer_failure(error):
            return None
        return PeerFailedError(f'another rank has ended, or is out of reach ({one_line(error, 200)})')

    return reraise(RuntimeError, translated)


@contextmanager
def exit_without_teardown() -> Iterator[None]:
    """For entry points: a process of a group exits without the interpreter's teardown.

    torch's threads hold the tensors of the last collectives, and may need the interpreter to release them. During
    teardown this aborts the process, with another exit code, and in torch 2.4 destroying the group may hang.
    """
    code = 0
    try:
        yield
    except BaseException as error:
        if not dist.is_initialized():
            raise
        status = error.code if isinstance(error, SystemExit) else 1
        code = status if isinstance(status, int) else int(status is not None)  # as Python's own end
        if not isinstance(error, SystemExit):
            sys.excepthook(*sys.exc_info())
    if dist.is_initialized():
        exit_now(code)


def exit_now(code: int) -> NoReturn:
    """Ends this process as :func:`exit_without_teardown` says."""
    for worker in multiprocessing.active_children():
        worker.kill()  # DataLoader's, which leave other signals to this process
    atexit._run_exitfuncs()  # such as wandb's
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
