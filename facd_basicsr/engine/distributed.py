"""Process group set-up."""

from typing import Any

import torch.distributed as dist
from basicsr.utils.dist_util import init_dist as basicsr_init_dist

from facd_basicsr.errors import UserError


def init_dist(launcher: str, on_gpu: bool, dist_params: dict[str, Any]) -> None:
    """BasicSR's ``init_dist``, except that without GPUs it uses gloo, where BasicSR divides by the GPU count.

    Args:
        launcher: ``pytorch`` (torchrun) or ``slurm``.
        on_gpu: whether the run uses GPUs.
        dist_params: the option file's ``dist_params``.

    Raises:
        UserError: the launcher needs GPUs and there are none, or its environment is missing.
    """
    try:
        if on_gpu:
            # torchrun sets the port itself, and BasicSR would pass it on to init_process_group
            unused = () if launcher == 'slurm' else ('port',)
            basicsr_init_dist(launcher, **{key: value for key, value in dist_params.items() if key not in unused})
        elif launcher == 'pytorch':
            dist.init_process_group('gloo')
        else:
            raise UserError(f'--launcher: {launcher} without GPUs; accepted without GPUs: none, pytorch')
    except (KeyError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f'--launcher: {launcher}, but the launcher has not set its environment ({error}); accepted: start it as '
            '`torchrun --nproc_per_node=N facd_basicsr/train.py --launcher pytorch -opt FILE`, or by srun'
        ) from error
