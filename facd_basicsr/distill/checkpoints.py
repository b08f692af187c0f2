"""Reading checkpoints, and saying why one does not fit."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from basicsr.archs import build_network
from torch import Tensor, nn

from facd_basicsr.errors import UserError


def load_state_dict(path: str | Path, where: str, param_keys: Sequence[str]) -> dict[str, Tensor]:
    """Reads a checkpoint in BasicSR's layout, without running code that it may carry.

    Args:
        path: the ``.pth`` file.
        where: the option that names it, for messages.
        param_keys: entries to look for, in this order; if the file has none of them, it must be a bare state dict.

    Returns:
        The state dict, without ``module.`` prefixes.

    Raises:
        UserError: the file can't be read or holds something else.
    """
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, LookupError, AttributeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{where}: {path} can't be read as a checkpoint of tensors ({reason}); accepted: a .pth of tensors as "
            'torch.save writes it'
        ) from error
    for param_key in param_keys:
        if isinstance(content, dict) and isinstance(content.get(param_key), dict):
            content = content[param_key]
            break
    is_state_dict = (
        isinstance(content, dict)
        and content
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    )
    if not is_state_dict:
        found = f'keys {list(content)[:4]}' if isinstance(content, dict) else type(content).__name__
        raise UserError(f'{where}: {path} holds {found}; accepted: {", ".join(param_keys)}, or a bare state dict')
    return {key.removeprefix('module.'): value for key, value in content.items()}


def check_fit(net: nn.Module, state_dict: dict[str, Tensor], where: str) -> None:
    """Checks that a state dict has exactly the network's keys and shapes.

    Args:
        net: the network, on any device.
        state_dict: what is to be loaded into it.
        where: the option and file that it is from, for messages.

    Raises:
        UserError: with the number and first of the missing, unexpected and differently shaped keys.
    """
    expected = net.state_dict()
    missing = sorted(expected.keys() - state_dict.keys())
    unexpected = sorted(state_dict.keys() - expected.keys())
    shapes = [
        f'{key} {tuple(state_dict[key].shape)} for {tuple(value.shape)}'
        for key, value in expected.items()
        if key in state_dict and state_dict[key].shape != value.shape
    ]
    problems = [
        f'{len(keys)} {what} (first: {keys[0]})'
        for what, keys in (('missing', missing), ('unexpected', unexpected), ('of another shape', shapes))
        if keys
    ]
    if problems:
        raise UserError(
            f'{where} does not fit {type(net).__name__}: keys {", ".join(problems)}; accepted: exactly the keys and '
            'shapes of the network in the option file'
        )


def check_pretrained(opt: dict[str, Any]) -> None:
    """Checks every checkpoint that BasicSR's ``load_network`` will be asked to load, before anything is created.

    The regressors are built later, once the taps' channels are known: theirs is checked for being readable only.

    Args:
        opt: from :func:`facd_basicsr.options.parse_options`, after
            :func:`facd_basicsr.engine.resume.load_resume_state`.

    Raises:
        UserError: a checkpoint can't be read, or does not fit its network under ``strict_load``.
    """
    for key in [key for key in opt if key.startswith('network_')]:
        suffix = key.removeprefix('network_')
        where, path = f'path.pretrain_{key}', opt['path'].get(f'pretrain_{key}')
        if path is None:
            continue
        param_key = opt['path'].get(f'param_key_{suffix}', 'params')
        state_dict = load_state_dict(path, where, [param_key, 'params'] if param_key else [])
        if key != 'network_r' and opt['path'].get(f'strict_load_{suffix}', True):
            with torch.device('meta'):
                check_fit(build_network(opt[key]), state_dict, f'{where}: {path}')
