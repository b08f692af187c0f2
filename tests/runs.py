"""Training runs for tests, in this process or in one that may be killed, and their results."""

import gc
import multiprocessing
import multiprocessing.connection
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from conftest import write_yml
from processes import FORKED, run_in_new_interpreter
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from facd_basicsr.engine.logs import read_metrics
from facd_basicsr.errors import run_command
from facd_basicsr.options import parser
from facd_basicsr.options.option_check import with_defaults
from facd_basicsr.train import train

TOTAL = 8
NAME = 'tiny'  # of conftest.tiny_train_opt


def command_line(opt: dict, root: Path, total_iter: int = TOTAL, *flags: str) -> list[str]:
    """The arguments of ``train.py`` to train ``opt`` below ``root``."""
    root.mkdir(exist_ok=True)
    return ['-opt', str(write_yml(opt, root / 'opt.yml')), '--force_yml', f'train:total_iter={total_iter}', *flags]


def run(
    opt: dict,
    root: Path,
    total_iter: int = TOTAL,
    *flags: str,
    on_iteration: Callable[[int], None] = lambda iteration: None,
) -> None:
    """Trains in this process."""
    args = parser().parse_args(command_line(opt, root, total_iter, *flags))
    train(args, root=root, console=False, on_iteration=on_iteration)


def with_stages(opt: dict) -> dict:
    """Three iterations of images alone, and five of FACD, with other crops, batches, rates and regressors; with EMA."""
    opt['train'] |= {
        'total_iter': TOTAL,
        'ema_decay': 0.9,
        'stages': [
            {'iterations': 3, 'distill_opt': {'type': 'TeacherSupervisionLoss'}, 'taps': None, 'network_r': None},
            {
                **{'iterations': 5, 'gt_size': 32, 'batch_size_per_gpu': 2, 'lr': 5e-4, 'warmup_iter': 2},
                'scheduler': {'type': 'CosineAnnealingRestartLR', 'periods': [5]},
            },
        ],
    }
    opt['logger']['keep_last'] = 2
    return opt


class Child:
    """A run in a new process, with train.py's exit codes; its output goes to ``root/output.txt``.

    Args:
        prepare: called in the process before training.
        step_by_step: whether each iteration waits for :meth:`proceed`.
    """

    def __init__(
        self,
        opt: dict,
        root: Path,
        total_iter: int = TOTAL,
        *flags: str,
        prepare: Callable[[], None] | None = None,
        step_by_step: bool = False,
    ) -> None:
        self._step_by_step = step_by_step
        self._connection, other = FORKED.Pipe()
        arguments = (command_line(opt, root, total_iter, *flags), root, other, prepare, step_by_step)
        self.process = FORKED.Process(target=_train, args=arguments)
        self.process.start()
        other.close()

    def wait_for(self, iteration: int, first: int = 1) -> None:
        """Waits until the iteration is done, of a process whose first one is ``first``."""
        for done in range(first, iteration + 1):
            assert self._connection.recv() == done
            if self._step_by_step and done < iteration:
                self.proceed()

    def proceed(self) -> None:
        self._connection.send(None)

    def proceed_to_the_end(self) -> None:
        """Lets it continue until it ends."""
        try:
            while self._connection.recv():
                self.proceed()
        except (EOFError, ConnectionResetError, BrokenPipeError):
            return

    def kill(self, signum: int = signal.SIGKILL) -> None:
        os.kill(self.process.pid, signum)

    def end(self, seconds: float = 120) -> int | None:
        """Its exit code, negative for a signal; None if it has not ended after ``seconds``."""
        self.process.join(seconds)
        return self.process.exitcode


def _train(
    arguments: list[str],
    root: Path,
    connection: multiprocessing.connection.Connection,
    prepare: Callable[[], None] | None,
    step_by_step: bool,
) -> None:
    gc.freeze()
    torch.set_num_threads(1)
    multiprocessing.set_start_method('fork', force=True)  # for DataLoader's workers, as in train.py
    output = (root / 'output.txt').open('a')
    os.dup2(output.fileno(), sys.stdout.fileno())
    os.dup2(output.fileno(), sys.stderr.fileno())

    def on_iteration(iteration: int) -> None:
        connection.send(iteration)
        if step_by_step:
            connection.recv()

    if prepare is not None:
        prepare()
    run_command(lambda: train(parser().parse_args(arguments), root=root, on_iteration=on_iteration))


def limit_files_to(size: int) -> None:
    """Makes writes of this process beyond ``size`` bytes per file fail, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def torchrun(*command: str | Path, cwd: Path, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Runs an entry point on several local processes by torchrun, as a user would."""
    launcher = ('-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}')
    return run_in_new_interpreter(*launcher, *command, '--launcher', 'pytorch', cwd=cwd)


def result(root: Path, iteration: int = TOTAL, name: str = NAME) -> dict:
    """A run's state at an iteration, including the digests of its networks, without the time."""
    state = torch.load(root / 'experiments' / name / 'training_states' / f'{iteration}.state', weights_only=True)
    del state['saved']
    return state


def log_text(root: Path) -> str:
    """The concatenated log files of a run."""
    return ''.join(path.read_text() for path in sorted((root / 'experiments' / NAME).glob('*.log')))


def write_options(folder: Path, opt: dict, *starts: dict) -> Path:
    """The ``options.yml`` of a run, as train.py writes it: options with their defaults, and an entry for each start."""
    starts = starts or ({'start': '2026-01-02T03:04:00.000+01:00', 'iter': 0},)
    return write_yml({**with_defaults(opt, is_train=True), 'run': list(starts)}, folder / 'options.yml')


def metric_lines(root: Path, name: str = NAME) -> list[dict]:
    """The lines of ``metrics.jsonl`` of iterations and validations, without their times."""
    times = ('timestamp', 'time', 'data_time')
    lines = read_metrics(root / 'experiments' / name / 'metrics.jsonl')
    return [{key: value for key, value in line.items() if key not in times} for line in lines if 'event' not in line]


def scalars(root: Path, name: str = NAME) -> dict[str, dict[int, float]]:
    """TensorBoard's scalars by tag and iteration, read in the order in which the files were written."""
    found: dict[str, dict[int, float]] = {}
    for path in sorted((root / 'tb_logger' / name).iterdir(), key=lambda path: path.stat().st_mtime_ns):
        events = EventAccumulator(str(path))
        events.Reload()
        for tag in events.Tags()['scalars']:
            found.setdefault(tag, {}).update({event.step: event.value for event in events.Scalars(tag)})
    return found


def assert_same(found: object, expected: object, where: str = '') -> None:
    """Asserts equality of nested values; tensors bit for bit."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_same(found[key], expected[key], f'{where}.{key}')
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for index, (one, other) in enumerate(zip(found, expected)):
            assert_same(one, other, f'{where}[{index}]')
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    else:
        assert found == expected, where


def assert_resumes(opt: dict, root: Path, stops: Iterable[int]) -> None:
    """Asserts that a run stopped after these iterations and resumed, ``stopped``, ends as one that never was,
    ``whole``."""
    run(opt, root / 'whole')
    for total in (*stops, TOTAL):
        run(opt, root / 'stopped', total, '--auto_resume')
    assert_same(result(root / 'stopped'), result(root / 'whole'))
    assert_same_curves(root / 'stopped', root / 'whole')


def assert_same_curves(found: Path, expected: Path) -> None:
    """Asserts that a run has every value of another; stops may add validations."""
    curves = scalars(found)
    for tag, values in scalars(expected).items():
        assert values.items() <= curves[tag].items(), tag
