"""The arguments of one of spandrel's networks that the checkpoint it begins from tells."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from facd_basicsr.archs.spandrel_arch import detected_arguments, is_spandrels, redetected, tells
from facd_basicsr.compat import full_name
from facd_basicsr.errors import UserError
from facd_basicsr.files.download import local_path
from facd_basicsr.files.state_dicts import basicsr_param_keys, load_state_dict, part_by_prefix
from facd_basicsr.options.schema import UPSCALE, network_keys

PRETRAINED_KEY = 'path.pretrain_network_g'


def pretrained_arguments(opt: dict[str, Any]) -> dict[str, Any]:
    """The arguments of ``network_g`` that spandrel reads off ``path.pretrain_network_g``.

    Not those that it only supposes, as GRL's ``window_size``: left out, they are the class's defaults, as when the
    checkpoint was trained. None of a network that is not spandrel's, without a checkpoint that is there, and with
    ``strict_load_g: false``, by which the two need not agree. ``opt`` is not checked yet.

    Raises:
        UserError: arguments are left out of ``network_g`` that the checkpoint could tell, but it is not there, not of
            this class or of another scale.
    """
    network_opt, path_opt = opt.get('network_g'), opt.get('path')
    if not isinstance(network_opt, dict) or not isinstance(path_opt, dict):
        return {}
    cls, checkpoint = _spandrels_class(network_opt), path_opt.get('pretrain_network_g')
    if cls is None or not isinstance(checkpoint, str) or not path_opt.get('strict_load_g', True):
        return {}
    left_out = {name: key for name, key in network_keys(cls).items() if name not in network_opt}
    needed = [name for name, key in left_out.items() if key.required or name in UPSCALE]
    path = local_path(checkpoint)
    if not path.is_file():
        if needed:
            raise UserError(
                f'{PRETRAINED_KEY}: no such file: {checkpoint}; accepted: one that is there, or network_g with '
                f'{", ".join(needed)}'
            )
        return {}
    try:
        detected = _detected(cls, path, path_opt.get('param_key_g', 'params'))
    except UserError as error:
        if needed or any(key.default is not ... for key in left_out.values()):
            raise UserError(f'{error}, or network_g with {", ".join(left_out)}') from error
        return {}  # whether it fits is seen when it is loaded
    for name in needed:
        if name in UPSCALE and detected.get(name) not in (opt.get('scale'), [opt.get('scale')]):
            raise UserError(
                f'{PRETRAINED_KEY}: {checkpoint} has {name}: {detected.get(name)}; accepted: {opt.get("scale")}, the '
                'scale of this file'
            )
    arguments = {**detected, **{key: value for key, value in network_opt.items() if key != 'type'}}
    supposed = {
        name
        for name, key in left_out.items()
        if name in detected
        and key.default not in (..., detected[name])
        and redetected(cls, {**arguments, name: key.default}, name) == detected[name]
    }
    return {name: value for name, value in detected.items() if name not in supposed}


def check_given_arguments(opt: dict[str, Any], detected: dict[str, Any]) -> None:
    """Refuses arguments of checked options that the checkpoint, by :func:`pretrained_arguments`, contradicts. One that
    no checkpoint tells, as SPAN's ``img_range``, may be anything.

    Raises:
        UserError: with the argument, and what the checkpoint has.
    """
    cls = _spandrels_class(opt['network_g'])
    arguments = {key: value for key, value in opt['network_g'].items() if key != 'type'}
    for key, found in detected.items():
        if cls is not None and arguments[key] != found and tells(cls, arguments, key):
            raise UserError(
                f'network_g.{key}: {arguments[key]!r}, but {opt["path"]["pretrain_network_g"]} has {found!r}; '
                f'accepted: {found!r}, or another checkpoint'
            )


def _spandrels_class(network_opt: dict[str, Any]) -> type[nn.Module] | None:
    name = network_opt.get('type')
    cls = ARCH_REGISTRY.get(name) if isinstance(name, str) and full_name(ARCH_REGISTRY, name) else None
    return cls if cls is not None and is_spandrels(cls) else None


def _detected(cls: type[nn.Module], path: Path, param_key: str | None) -> dict[str, Any]:
    """Off the network that a checkpoint holds, or below a prefix, as Lightning's does.

    Raises:
        UserError: it holds none of this class.
    """
    state_dict = load_state_dict(path, PRETRAINED_KEY, (), basicsr_param_keys(param_key))
    try:
        return detected_arguments(cls, state_dict, f'{PRETRAINED_KEY}: {path}')
    except UserError:
        for part in part_by_prefix(state_dict).values():
            with suppress(UserError):
                return detected_arguments(cls, part, f'{PRETRAINED_KEY}: {path}')
        raise
