"""The frozen teacher: build, load strictly, freeze."""

import pickle
from pathlib import Path
from typing import Any

import torch
from basicsr.archs import build_network
from torch import Tensor, nn

from facd_basicsr.errors import UserError

PARAM_KEYS = ('params_ema', 'params')


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
    state_dict = load_state_dict(teacher_opt['weights'], 'teacher.weights')
    missing = sorted(net.state_dict().keys() - state_dict.keys())
    unexpected = sorted(state_dict.keys() - net.state_dict().keys())
    shapes = [
        f'{key} {tuple(state_dict[key].shape)} for {tuple(value.shape)}'
        for key, value in net.state_dict().items()
        if key in state_dict and state_dict[key].shape != value.shape
    ]
    problems = [
        f'{len(keys)} {what} (first: {keys[0]})'
        for what, keys in (('missing', missing), ('unexpected', unexpected), ('of another shape', shapes))
        if keys
    ]
    if problems:
        raise UserError(
            f'teacher.weights: {teacher_opt["weights"]} does not fit teacher.network '
            f"{type(net).__name__}: keys {', '.join(problems)}; accepted: exactly the network's keys and shapes"
        )
    net.load_state_dict(state_dict)
    return net.eval().requires_grad_(False)


def load_state_dict(path: str | Path, option_key: str) -> dict[str, Tensor]:
    """Reads a checkpoint in BasicSR's layout, without running code that it may carry.

    Args:
        path: the ``.pth`` file.
        option_key: the option that names it, for messages.

    Returns:
        Its ``params_ema``, else ``params``, else the whole file, without ``module.`` prefixes.

    Raises:
        UserError: the file can't be read or holds something else.
    """
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{option_key}: {path} can't be read as a checkpoint of tensors ({reason}); accepted: a .pth of tensors "
            'as torch.save writes it'
        ) from error
    for param_key in PARAM_KEYS:
        if isinstance(content, dict) and isinstance(content.get(param_key), dict):
            content = content[param_key]
            break
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        found = f'keys {list(content)[:4]}' if isinstance(content, dict) else type(content).__name__
        raise UserError(f'{option_key}: {path} holds {found}; accepted: params_ema, params, or a bare state dict')
    return {key.removeprefix('module.'): value for key, value in content.items()}
