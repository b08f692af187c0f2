"""The frozen teacher: build, load strictly, freeze."""

from typing import Any

from basicsr.archs import build_network
from torch import nn

from facd_basicsr.distill.checkpoints import check_fit, load_state_dict


def build_teacher(teacher_opt: dict[str, Any]) -> nn.Module:
    """Builds the teacher of an option file's ``teacher`` block, on the CPU.

    Args:
        teacher_opt: ``network`` (as a ``network_g`` block) and ``weights`` (a checkpoint in BasicSR's layout:
            ``params_ema``, preferred if both are there, ``params``, or a bare state dict).

    Returns:
        The network in eval mode, with no parameter that requires gradient. Its output is not clamped.

    Raises:
        UserError: the checkpoint can't be read, carries code, or does not fit the network exactly.
    """
    net = build_network(teacher_opt['network'])
    state_dict = load_state_dict(teacher_opt['weights'], 'teacher.weights', ['params_ema', 'params', None])
    check_fit(net, state_dict, f'teacher.weights: {teacher_opt["weights"]}')
    net.load_state_dict(state_dict)
    return net.eval().requires_grad_(False)
