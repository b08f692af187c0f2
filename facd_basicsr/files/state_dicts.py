"""Reads checkpoints, and explains why one does not fit."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from facd_basicsr.errors import UserError

# Where trainers put a network's weights; the average first, as it scores higher. None is the whole file.
# BasicSR and traiNNer: params, params_ema; neosr before 2024: params-ema; Lightning and others: the rest.
WRAPPERS = ('params_ema', 'params-ema', 'params', 'model_state_dict', 'state_dict', 'model', 'net', None)
# What DDP, torch.compile and trainers of several networks put before every key.
PREFIXES = ('module.', '_orig_mod.', 'netG.', 'net_g.')
LIGHTNING = 'model.'  # Lightning's prefix, but the published ESRGAN's own keys begin with it too


def load_state_dict(path: str | Path, where: str, param_keys: Sequence[str | None]) -> dict[str, Tensor]:
    """Reads a checkpoint in BasicSR's layout, without running code that it may carry.

    Args:
        path: the ``.pth`` or ``.safetensors`` file.
        where: the option that names it, for messages.
        param_keys: entries to look for, in this order; None is the whole file, a bare state dict.

    Returns:
        The state dict, without ``module.`` prefixes.

    Raises:
        UserError: the file cannot be read or holds something else.
    """
    content = _read(path, where)
    entries = content if isinstance(content, dict) else {}
    for param_key in param_keys:
        candidate = entries if param_key is None else entries.get(param_key)
        if _is_state_dict(candidate):
            return {key.removeprefix('module.'): value for key, value in candidate.items()}
    found = f'keys {list(entries)[:4]}' if entries else type(content).__name__
    accepted = ', '.join('a bare state dict' if key is None else key for key in dict.fromkeys(param_keys))
    raise UserError(f'{where}: {path} holds {found}; accepted: {accepted}')


def load_any_state_dict(path: str | Path, where: str) -> dict[str, Tensor]:
    """Reads a checkpoint as any trainer wraps it (``WRAPPERS``, ``PREFIXES``), without running code it may carry.

    Raises:
        UserError: the file cannot be read or holds something else.
    """
    state_dict = load_state_dict(path, where, WRAPPERS)
    state_dict.pop('n_averaged', None)  # torch's AveragedModel counts its updates in the state dict
    for prefix in PREFIXES:
        state_dict = without_prefix(state_dict, prefix)
    return state_dict


def without_prefix(state_dict: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The state dict with ``prefix`` removed, if all its keys begin with it."""
    if not all(key.startswith(prefix) for key in state_dict):
        return state_dict
    return {key.removeprefix(prefix): value for key, value in state_dict.items()}


def _read(path: str | Path, where: str) -> Any:
    cause: Exception
    try:
        if Path(path).suffix == '.safetensors':
            return load_file(path)
        return torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:  # torch's words advise to load it unsafely
        reason, cause = 'it holds more than tensors, or is no checkpoint', error
    except (OSError, EOFError, RuntimeError, ValueError, LookupError, AttributeError, SafetensorError) as error:
        reason, cause = str(error).splitlines()[0] if str(error) else type(error).__name__, error
    raise UserError(
        f'{where}: {path} cannot be read as a checkpoint of tensors ({reason}); accepted: a .pth of tensors as '
        'torch.save writes it, or a .safetensors'
    ) from cause


def _is_state_dict(content: Any) -> TypeGuard[dict[str, Tensor]]:
    if not isinstance(content, dict) or not content:
        return False
    dense = (isinstance(value, Tensor) and value.layout == torch.strided for value in content.values())
    return all(dense) and all(isinstance(key, str) for key in content)


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


def load_exactly(net: nn.Module, state_dict: dict[str, Tensor], where: str) -> None:
    """Loads a state dict into a network that it fits; arguments and errors as of :func:`check_fit`."""
    check_fit(net, state_dict, where)
    net.load_state_dict(state_dict)


def basicsr_param_keys(param_key: str | None) -> list[str | None]:
    """Where BasicSR's ``load_network`` looks: the entry that is asked for, else ``params``; None is the whole file."""
    return [None] if param_key is None else [param_key, 'params']
