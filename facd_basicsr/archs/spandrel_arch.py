"""spandrel's architectures, registered in BasicSR's ``ARCH_REGISTRY`` where spandrel is installed.

By class and with the suffix ``spandrel``: ``type: SPAN`` finds ``SPAN_spandrel``. A name that BasicSR has too, such as
``RCAN``, is BasicSR's own; spandrel's is ``RCAN_spandrel``. The arguments are those of spandrel's class.
"""

import importlib.util
import inspect
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from facd_basicsr.errors import UserError, one_line
from facd_basicsr.runtime.rng import preserve_rng_state

SUFFIX = 'spandrel'
INSTALLED = importlib.util.find_spec('spandrel') is not None
SPANDREL_EXTRA = "`pip install 'facd_basicsr[spandrel]'`"
# Of the package spandrel_extra_arches, which says so of them.
RESTRICTED = (
    'AdaCode', 'CodeFormer', 'DDColor', 'FeMaSR', 'M3SNet', 'MAT', 'MIRNet2', 'MPRNet', 'Restormer', 'SRFormer',
)  # fmt: skip


def _classes_of(architecture: Any) -> Iterator[type[nn.Module]]:
    """What an ``Architecture[SPAN]``, or of a union, builds."""
    for base in getattr(type(architecture), '__orig_bases__', ()):
        for argument in typing.get_args(base):
            for cls in typing.get_args(argument) or (argument,):
                if inspect.isclass(cls) and issubclass(cls, nn.Module):
                    yield cls


CLASSES: dict[str, list[type[nn.Module]]] = {}  # by spandrel's name of the architecture

if INSTALLED:
    import spandrel
    from spandrel.architectures.RCAN import RCAN as SpandrelsRCAN  # noqa: N811

    class RCAN(SpandrelsRCAN):
        """spandrel's, which multiplies its input in place: that is also the teacher's and, in part, the next tile's."""

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.clone())

    for _support in spandrel.MAIN_REGISTRY:
        _found = _classes_of(_support.architecture)
        CLASSES[_support.architecture.id] = [RCAN if _cls is SpandrelsRCAN else _cls for _cls in _found]
        for _cls in CLASSES[_support.architecture.id]:
            ARCH_REGISTRY.register(_cls, suffix=SUFFIX)


def is_spandrels(cls: type) -> bool:
    """Whether a registered class is one of spandrel's."""
    return any(cls in classes for classes in CLASSES.values())


def registered_name(cls: type) -> str:
    """The shortest name by which the registry has a registered class."""
    names = (name for name, other in ARCH_REGISTRY if other is cls)
    return min((cls.__name__, *names), key=lambda name: (_named(name) is not cls, len(name)))


def _named(name: str) -> type | None:
    try:
        return ARCH_REGISTRY.get(name)
    except KeyError:
        return None


def why_unknown(name: str) -> str:
    """What there is to say of a network's ``type`` that the registry does not have; empty for nothing."""
    if _letters(name) in map(_letters, RESTRICTED):
        return (
            ': its license, non-commercial or copyleft, keeps it out of spandrel (it is in spandrel_extra_arches, '
            'whose README asks to review it); accepted: a class that you register yourself, or another network'
        )
    for architecture, classes in CLASSES.items():
        if _letters(name) == _letters(architecture):
            names = {name for cls in classes for name in (cls.__name__, registered_name(cls)) if _named(name)}
            return f": it is spandrel's name of an architecture, not of a class; accepted: {', '.join(sorted(names))}"
    return ''


def _ours(cls: type) -> type:
    """The class that is registered for one of spandrel's."""
    return next(own for classes in CLASSES.values() for own in classes if issubclass(own, cls))


def _letters(name: str) -> str:
    return ''.join(filter(str.isalnum, name.lower()))


def update_derived(net: nn.Module) -> None:
    """Recomputes the weights that a network makes of others for inference: SPAN's ``eval_conv``.

    SPAN does it in each forward in eval mode, and then only: in a checkpoint they would be as of the last validation.
    """
    for module in net.modules():
        update = getattr(module, 'update_params', None)
        if callable(update) and type(module).__module__.startswith('spandrel.'):
            update()


def opened_by_spandrel(state_dict: Mapping[str, Tensor]) -> Any:
    """spandrel's ``ModelDescriptor`` of a network, on the CPU, or None where it recognizes none.

    Args:
        state_dict: the network's keys alone.

    Raises:
        ValueError: it recognizes an architecture and fails to build it. Worded as the end of "spandrel".
    """
    try:
        with preserve_rng_state():
            return spandrel.ModelLoader('cpu').load_from_state_dict(dict(state_dict))
    except spandrel.UnsupportedModelError:
        return None
    except (RuntimeError, ValueError, LookupError, AssertionError, TypeError) as error:  # its detection failed
        raise ValueError(f'cannot build it ({one_line(error, 200)})') from error


def detected_arguments(cls: type[nn.Module], state_dict: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """The arguments of one of spandrel's classes, as spandrel reads them off a checkpoint, as an option file has them.

    What it cannot read off, SPAN's ``img_range`` for one, has the value that it supposes.

    Raises:
        UserError: the checkpoint is not of this class.
    """
    try:
        descriptor = opened_by_spandrel(state_dict)
    except ValueError as error:
        raise UserError(f'{where}, which spandrel {error}; accepted: a checkpoint of {registered_name(cls)}') from error
    found = None if descriptor is None else _ours(type(descriptor.model))
    if found is not cls:
        what = 'not recognized by spandrel' if found is None else f'of {registered_name(found)}'
        raise UserError(f'{where} is {what}; accepted: a checkpoint of {registered_name(cls)}, the type of network_g')
    arguments = descriptor.model.hyperparameters
    order = [key for key in inspect.signature(cls).parameters if key in arguments and _is_plain(arguments[key])]
    return {key: _plain(arguments[key]) for key in order}


def tells(cls: type[nn.Module], arguments: Mapping[str, Any], key: str) -> bool:
    """Whether spandrel reads ``key`` off a checkpoint: of a network built with ``arguments`` the same value."""
    return redetected(cls, arguments, key) in (..., arguments[key])


def redetected(cls: type[nn.Module], arguments: Mapping[str, Any], key: str) -> Any:
    """What spandrel reads as ``key`` off a network built with ``arguments``; ``...`` where none is built."""
    try:
        with preserve_rng_state():
            descriptor = opened_by_spandrel(cls(**arguments).state_dict())
    except Exception:  # then no network has this value, and no checkpoint either
        return ...
    return None if descriptor is None else _plain(descriptor.model.hyperparameters.get(key))


def differs(own: Any, theirs: Any) -> bool:
    """Whether two values of an argument, as an option file and as spandrel has them, are not the same."""
    return _is_plain(theirs) and _plain(own) != _plain(theirs)


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, (bool, int, float, str, type(None)))


def _plain(value: Any) -> Any:
    """As an option file has it: lists for tuples, and whole numbers without a point."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
