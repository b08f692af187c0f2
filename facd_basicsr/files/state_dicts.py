"""Reads checkpoints, and explains why one does not fit."""

import pickle
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_model_weights

from facd_basicsr.errors import UserError
from facd_basicsr.files.download import cached, is_url, local_path

# Where trainers put a network's weights; the average first, as it scores higher. None is the whole file.
# BasicSR and traiNNer: params, params_ema; neosr before 2024: params-ema; Lightning and others: the rest.
WRAPPERS = ('params_ema', 'params-ema', 'params', 'model_state_dict', 'state_dict', 'model', 'net', None)
# What DDP, torch.compile and trainers of several networks put before every key.
PREFIXES = ('module.', '_orig_mod.', 'netG.', 'net_g.')
MODULES_SHOWN = 8  # modules that a line names


def load_state_dict(
    path: str | Path,
    where: str,
    wanted: Iterable[Collection[str]] = (),
    param_keys: Sequence[str | None] = WRAPPERS,
) -> dict[str, Tensor]:
    """Reads a checkpoint as any trainer wraps it, without running code that it may carry.

    Args:
        path: a ``.safetensors`` file, or whatever ``torch.save`` has written.
        wanted: the keys of the network, or of each that it may be. If they are all there below one prefix, such as
            Lightning's ``model.``, that part is read, and what else the trainer has saved is left.
        param_keys: entries to look for, in this order; None is the whole file, a bare state dict.

    Raises:
        UserError: the file cannot be read or holds something else, the network is in it twice, or a value is not
            finite.
    """
    return part_of(load_entry(path, where, param_keys)[1], wanted, f'{where}: {path}')


def load_entry(
    path: str | Path, where: str, param_keys: Sequence[str | None] = WRAPPERS
) -> tuple[str | None, dict[str, Tensor]]:
    """The first entry of a checkpoint that is there, and its state dict as it is; as :func:`load_state_dict`.

    Raises:
        UserError: the file cannot be read or holds something else.
    """
    content = _read(path, where)
    entries = content if isinstance(content, dict) else {}
    for param_key in param_keys:
        candidate = entries if param_key is None else entries.get(param_key)
        if _is_state_dict(candidate):
            return param_key, dict(candidate)
    found = f'keys {list(entries)[:4]}' if entries else type(content).__name__
    accepted = ', '.join('a bare state dict' if key is None else key for key in dict.fromkeys(param_keys))
    raise UserError(f'{where}: {path} holds {found}; accepted: {accepted}')


def load_other_entry(path: str | Path, where: str, key: str) -> Any:
    """What a checkpoint has beside its networks under a name of its own; None if it has none.

    Raises:
        UserError: the file cannot be read.
    """
    content = _read(path, where)
    found = content.get(key) if isinstance(content, dict) else None
    return None if isinstance(found, Tensor) else found  # of a bare state dict


def part_of(state_dict: dict[str, Tensor], wanted: Iterable[Collection[str]], where: str) -> dict[str, Tensor]:
    """The part of a state dict that is a network's: arguments and errors as of :func:`load_state_dict`."""
    state_dict.pop('n_averaged', None)  # torch's AveragedModel counts its updates in the state dict
    for keys in wanted:
        prefixes = _prefixes(state_dict, keys)
        if len(prefixes) > 1:
            found = ' and '.join(repr(prefix) for prefix in prefixes)
            raise UserError(f'{where} has the network more than once, below {found}; accepted: a file that has it once')
        if prefixes:
            state_dict = _below(state_dict, prefixes[0])
            break
    else:
        for prefix in PREFIXES:
            if all(key.startswith(prefix) for key in state_dict):
                state_dict = _below(state_dict, prefix)
    _check_finite(state_dict, where)
    return state_dict


def _prefixes(state_dict: dict[str, Tensor], keys: Collection[str]) -> list[str]:
    """What is before every one of ``keys`` in the state dict: nothing, or what ends in a dot."""
    first = next(iter(keys), None)
    if first is None:
        return []
    before = [key.removesuffix(first) for key in state_dict if key == first or key.endswith(f'.{first}')]
    return [prefix for prefix in before if all(prefix + key in state_dict for key in keys)]


def part_by_prefix(state_dict: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """A state dict by the first names of its keys, such as ``model.``, which the parts' keys lack."""
    prefixes = dict.fromkeys(f'{key.partition(".")[0]}.' for key in state_dict if '.' in key)
    return {prefix: _below(state_dict, prefix) for prefix in prefixes}


def _below(state_dict: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}


def _read(path: str | Path, where: str) -> Any:
    cause: Exception
    try:
        if Path(path).suffix.lower() == '.safetensors':
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


def _check_finite(state_dict: dict[str, Tensor], where: str) -> None:
    for key, value in state_dict.items():
        if not value.is_floating_point() or value.float().sum().isfinite():  # 30 times faster than value by value
            continue
        finite = value.float().isfinite()
        if not finite.all():
            raise UserError(
                f'{where}: {key} has {int((~finite).sum()):,} of {value.numel():,} values that are not finite '
                f'({value[~finite][0].item()}); accepted: finite values, as of a checkpoint before training diverged'
            )


def check_fit(net: nn.Module, state_dict: dict[str, Tensor], where: str) -> None:
    """Checks that a state dict has exactly the network's keys and shapes.

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


def partial_fit(
    net: nn.Module, state_dict: dict[str, Tensor], where: str, strict_key: str
) -> tuple[dict[str, Tensor], str]:
    """What a network takes of another one's state dict, whose upsampler, for one, may be of another scale: whatever
    fits by name and shape.

    Args:
        state_dict: as :func:`load_entry` gives it; the network's keys are looked for below a prefix too.
        strict_key: the option that is false, for messages.

    Returns:
        The part that fits, and a line that says which modules it fills, and which of the network's and of the file's
        it leaves.

    Raises:
        UserError: no weight fits, so the network would begin at random; or as of :func:`part_of`.
    """
    names = {name for key in state_dict for name in _endings(key)}
    state_dict = part_of(state_dict, [[key for key in net.state_dict() if key in names]], where)
    own = net.state_dict()
    fitting = {key: value for key, value in state_dict.items() if key in own and own[key].shape == value.shape}
    sizes = {key: parameter.numel() for key, parameter in net.named_parameters()}
    if not any(key in sizes and value.dim() > 1 for key, value in fitting.items()):  # a bias or two fits by chance
        raise UserError(
            f'{where} has no weight that fits {type(net).__name__} by name and shape; accepted with {strict_key}: '
            'false: a checkpoint that has one'
        )
    total, loaded = sum(sizes.values()), sum(sizes[key] for key in sizes if key in fitting)
    line = f'{where}: {loaded:,} of the {total:,} parameters of {type(net).__name__} are loaded ({strict_key}: false)'
    parts = {
        'loaded': fitting.keys(),
        'of another shape': state_dict.keys() - fitting.keys(),
        'not in the file': sizes.keys() - state_dict.keys(),
    }
    named = [f'{what}: {modules}' for what, keys in parts.items() if (modules := _modules(keys, sizes))]
    if left := _modules(state_dict.keys() - own.keys(), state_dict):
        named.append(f'only in the file: {left}')
    return fitting, '; '.join([line, *named])


def _modules(keys: Collection[str], among: Collection[str]) -> str:
    """The outermost modules whose keys ``among`` these are all in ``keys``; of a row, such as blocks, its ends."""
    mixed = {module for key in among if key not in keys for module in _beginnings(key)}
    found = dict.fromkeys(
        next(module for module in _beginnings(key) if module not in mixed) for key in among if key in keys
    )
    rows: list[list[str]] = []
    for module in found:
        if rows and _follows(module, rows[-1][-1]):
            rows[-1].append(module)
        else:
            rows.append([module])
    names = [row[0] if len(row) == 1 else f'{row[0]} to {row[-1]}' for row in rows]
    return ', '.join(names[:MODULES_SHOWN]) + (
        f' and {len(names) - MODULES_SHOWN} more' if len(names) > MODULES_SHOWN else ''
    )


def _beginnings(key: str) -> list[str]:
    """``body``, ``body.0``, ``body.0.weight`` of ``body.0.weight``."""
    parts = key.split('.')
    return ['.'.join(parts[: index + 1]) for index in range(len(parts))]


def _endings(key: str) -> list[str]:
    parts = key.split('.')
    return ['.'.join(parts[index:]) for index in range(len(parts))]


def _follows(module: str, other: str) -> bool:
    """Whether modules of one parent have successive numbers."""
    (parent, _, number), (other_parent, _, other_number) = module.rpartition('.'), other.rpartition('.')
    digits = number.isdigit() and other_number.isdigit()
    return digits and parent == other_parent and int(number) == int(other_number) + 1


def load_exactly(net: nn.Module, state_dict: dict[str, Tensor], where: str) -> None:
    """Loads a state dict into a network that it fits; arguments and errors as of :func:`check_fit`."""
    check_fit(net, state_dict, where)
    net.load_state_dict(state_dict)


def load_features(build: Callable[..., Any], weights: str | None, where: str, end: int | None = None) -> nn.Sequential:
    """The ``features`` of one of torchvision's networks, frozen, in eval mode and float32, on the CPU.

    Args:
        build: torchvision's function, such as ``vgg19``.
        weights: path or address of its checkpoint, which may lack the classifier; None: torchvision's address.
        end: the number of layers; None: all.

    Raises:
        UserError: the file cannot be downloaded or read, or is another network's.
    """
    address = get_model_weights(build).IMAGENET1K_V1.url
    with torch.device('meta'):  # its classifier would be half a gigabyte of random numbers
        layers: nn.Sequential = build(weights=None).features[:end]
    accepted = (
        f"torchvision's {build.__name__} as an address or a path; without a network, bring {address} here "
        'and name its path'
    )
    load_part(layers, 'features.', weights or address, where, accepted)
    return layers


def load_part(net: nn.Module, prefix: str, weights: str, where: str, accepted: str) -> None:
    """Gives a network its weights out of a larger one's checkpoint, and freezes it, in eval mode and float32.

    Args:
        net: on the meta device.
        prefix: of its keys in the checkpoint.
        weights: path or address of the checkpoint.
        accepted: the file that it takes, for the message of an error.

    Raises:
        UserError: the file cannot be downloaded or read, or is another network's.
    """
    try:
        path = cached(weights, where, None) if is_url(weights) else local_path(weights)
        keys = {key: f'{prefix}{key}' for key in net.state_dict()}
        checkpoint = load_state_dict(path, where, [keys.values()])
        wanted = {key: checkpoint[name] for key, name in keys.items() if name in checkpoint}
        check_fit(net, wanted, f'{where}: {path}')
    except UserError as error:  # what is accepted of another checkpoint is not of this one
        raise UserError(f'{str(error).partition("; accepted: ")[0]}; accepted: {accepted}') from error
    net.load_state_dict(wanted, assign=True)
    net.float().eval().requires_grad_(False)


def basicsr_param_keys(param_key: str | None) -> list[str | None]:
    """As BasicSR's ``load_network`` looks: the entry that is asked for, else ``params``; then the one that there is."""
    return [param_key, *([] if param_key is None else ['params']), *WRAPPERS]
