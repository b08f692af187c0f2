"""Features by module path, without touching the network's code."""

import difflib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from facd_basicsr.errors import UserError

INPUT = ':input'
TOKENS = ':tokens'
BLOCKS = 3  # so many alike are the blocks of a network
SIMILAR = 0.75  # of difflib: a slip of the pen, not a path of another network


class Taps:
    """Reads the features of a network at given module paths.

    A path such as ``body.4`` means that module's output; ``upsample:input`` means the first input of ``upsample``.
    The second form reaches tensors that no module returns, such as EDSR's and RCAN's feature after the global skip.
    ``layers.0:tokens`` means a transformer's tokens (N, H * W, C), one for each pixel of the network's input, read as
    a feature (N, C, H, W). It is spelt out since (N, L, C) and (N, C, L) cannot be told apart by their shapes.

    Args:
        net: the network, not wrapped in DDP. Hooks are added to its modules and read only inside :meth:`run`.
        paths: module paths as ``net.named_modules()`` spells them, with or without ``:input``, ``:tokens`` or
            ``:input:tokens``.
        key: ``student`` or ``teacher``, as in the option file; used in messages.

    Raises:
        UserError: a path is unknown.
    """

    def __init__(self, net: nn.Module, paths: Sequence[str], key: str) -> None:
        self._net = net
        self._paths = tuple(paths)
        self._key = key
        self._hint = hint(key)
        self._seen: dict[str, list[tuple[Any, int | None]]] | None = None  # None: not recording
        self._size = (0, 0)  # height and width of the network's input, which a wrapper may have padded
        modules = dict(net.named_modules())
        del modules['']
        for index, path in enumerate(self._paths):
            name = _module(path)
            if name not in modules:
                instead = _instead(path, modules) + hint(key)
                raise UserError(f'taps[{index}].{key}: {path!r} is not in {type(net).__name__}; {instead}')
        for path in dict.fromkeys(self._paths):
            module = modules[_module(path)]
            if path.removesuffix(TOKENS).endswith(INPUT):
                module.register_forward_pre_hook(lambda _, inputs, path=path: self._record(path, inputs[0]))
            else:
                module.register_forward_hook(lambda _, __, output, path=path: self._record(path, output))
        net.register_forward_pre_hook(lambda _, inputs: self._note_size(inputs[0]))

    def run(self, net: nn.Module, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """``net(x)`` and the features at the paths, in their order.

        Args:
            net: the network given to the constructor, or a wrapper around it such as DDP or a Teacher.
            x: its input, (N, C, H, W).

        Raises:
            UserError: a tap did not run exactly once, is not an NCHW tensor, or was changed in place afterwards.
        """
        self._seen = {path: [] for path in self._paths}
        try:
            output = net(x)
        finally:
            seen, self._seen = self._seen, None
        return output, tuple(self._feature(index, path, seen[path], x) for index, path in enumerate(self._paths))

    def _record(self, path: str, tensor: Any) -> None:
        if self._seen is not None:
            self._seen[path].append((tensor, _version(tensor)))

    def _note_size(self, x: Tensor) -> None:
        self._size = (x.shape[2], x.shape[3])

    def _feature(self, index: int, path: str, seen: list[tuple[Any, int | None]], x: Tensor) -> Tensor:
        where = f'taps[{index}].{self._key}: {path!r}'
        if len(seen) != 1:
            net = type(self._net).__name__
            raise UserError(f'{where} ran {len(seen)} times in one forward of {net}; accepted: once{self._hint}')
        (feature, version), *_ = seen
        tokens = path.endswith(TOKENS)
        if not isinstance(feature, Tensor) or feature.dim() != (3 if tokens else 4):
            found = tuple(feature.shape) if isinstance(feature, Tensor) else type(feature).__name__
            shape = '(N, H * W, C)' if tokens else f'(N, C, H, W), or tokens (N, H * W, C) as {path + TOKENS!r}'
            raise UserError(f'{where} gives {found}; accepted: a tensor of shape {shape}{self._hint}')
        if tokens and feature.shape[1] != math.prod(self._size):
            raise UserError(
                f'{where} gives {feature.shape[1]} tokens for an input of {self._size[0]} x {self._size[1]}; accepted: '
                'one for each pixel (a gt_size that the network need not pad)'
            )
        if version is not None and feature._version != version:
            raise UserError(
                f'{where} is changed in place later in the forward (EDSR and RCAN add the global skip with `+=`), so '
                f'it would not be the feature that the path names{self._readers(path, x)}'
            )
        if tokens:
            feature = feature.transpose(1, 2).unflatten(2, self._size)  # (N, H * W, C) -> (N, C, H, W)
        return feature

    def _readers(self, path: str, x: Tensor) -> str:
        """Where the final value of a tensor that is changed in place can be tapped instead, as part of a message."""
        readers: list[str] = []

        def note_reader(name: str, module_input: Any) -> None:
            tapped = self._seen[path] if self._seen else []
            if any(module_input is tensor for tensor, _ in tapped):
                readers.append(name + INPUT)

        hooks = [
            module.register_forward_pre_hook(lambda _, inputs, name=name: note_reader(name, next(iter(inputs), None)))
            for name, module in self._net.named_modules()
            if name
        ]
        self._seen = {p: [] for p in self._paths}
        try:
            with torch.no_grad():
                self._net(x)
        finally:
            self._seen = None
            for hook in hooks:
                hook.remove()
        return f'; its final value is {readers[0]!r}' if readers else ''


@dataclass(frozen=True)
class Tappable:
    """What one path of a network gives in a forward.

    Attributes:
        path: as in ``taps``.
        module: the class of its module.
        found: ``C x H x W``, or what it gives that cannot be tapped.
        channels: C; 0 where it cannot be tapped.
        at_lq_size: whether H and W are those of LQ.
        order: when it ran, in the forward.
    """

    path: str
    module: str
    found: str
    channels: int = 0
    at_lq_size: bool = False
    order: int = 0


@torch.no_grad()
def tappable(net: nn.Module, x: Tensor, run: Callable[[Tensor], Any]) -> list[Tappable]:
    """What can be tapped: each module's output, and each input that no module returns, such as EDSR's after its skip.

    Args:
        net: the network.
        x: LQ, (1, C, H, W).
        run: the network's forward: itself, or a wrapper that may pad.

    Returns:
        One for each path, in the order of ``net.named_modules()``.
    """
    seen: dict[str, list[tuple[Any, int | None, int]]] = {}
    known: set[tuple[int, int | None]] = set()
    kept: list[Any] = []  # or another tensor would get the id of one that is gone
    size = (0, 0)

    def know(tensor: Any) -> None:
        kept.append(tensor)
        known.add((id(tensor), _version(tensor)))

    def record(path: str, tensor: Any) -> None:
        know(tensor)
        seen.setdefault(path, []).append((tensor, _version(tensor), len(kept)))

    def record_input(path: str, inputs: tuple[Any, ...]) -> None:
        if inputs and (id(inputs[0]), _version(inputs[0])) not in known:
            record(path + INPUT, inputs[0])

    def note_size(inputs: tuple[Any, ...]) -> None:
        nonlocal size
        know(inputs[0])
        size = (inputs[0].shape[2], inputs[0].shape[3])

    hooks = [net.register_forward_pre_hook(lambda _, inputs: note_size(inputs))]
    for name, module in net.named_modules():
        if name:
            hooks.append(module.register_forward_pre_hook(lambda _, inputs, name=name: record_input(name, inputs)))
            hooks.append(module.register_forward_hook(lambda _, __, output, name=name: record(name, output)))
    try:
        run(x)
    finally:
        for hook in hooks:
            hook.remove()
    return [
        _described(path, type(module).__name__, seen[path], size)
        for name, module in net.named_modules()
        for path in (name + INPUT, name)
        if path in seen
    ]


def _described(path: str, module: str, seen: Sequence[tuple[Any, int | None, int]], size: tuple[int, int]) -> Tappable:
    (tensor, version, order), *more = seen
    if more:
        return Tappable(path, module, f'runs {len(seen)} times')
    if not isinstance(tensor, Tensor):
        return Tappable(path, module, type(tensor).__name__)
    if tensor._version != version:
        return Tappable(path, module, 'changed in place later')
    shape = tensor.shape[1:]
    if tensor.dim() == 3 and tensor.shape[1] == math.prod(size):
        path, shape = path + TOKENS, torch.Size((tensor.shape[2], *size))
    if len(shape) != 3:
        return Tappable(path, module, str(tuple(tensor.shape)))
    return Tappable(path, module, ' x '.join(map(str, shape)), shape[0], shape[1:] == size, order)


def suggested(paths: Sequence[Tappable]) -> list[str]:
    """Paths like those of the paper: after a third and two thirds of the blocks, and the last before the upsampler."""
    features = [found for found in paths if found.at_lq_size]
    outputs = [found for found in features if not found.path.endswith(INPUT)]
    groups = Counter(map(_group, outputs))
    if not groups:
        return []
    repeated = [group for group, members in groups.items() if members >= BLOCKS] or list(groups)
    trunk = min(repeated, key=lambda group: (len(group[0]), -groups[group]))  # groups of blocks before their blocks
    blocks = [found for found in outputs if _group(found) == trunk]
    last = max((found for found in features if found.channels == trunk[2]), key=lambda found: found.order)
    chosen = [blocks[max(0, len(blocks) * thirds // 3 - 1)] for thirds in (1, 2)]
    return list(dict.fromkeys(found.path for found in [*chosen, last]))


def hint(key: str) -> str:
    """Where the paths of the ``student`` or ``teacher`` are found, as the end of a message."""
    return f'; paths and shapes: facd check --modules {key}'


def _instead(path: str, modules: dict[str, nn.Module]) -> str:
    """The path that was meant, if one is similar, else what the network consists of."""
    name = _module(path)
    close = difflib.get_close_matches(name, modules, n=1, cutoff=SIMILAR)
    if close:
        return f'nearest: {close[0] + path[len(name) :]!r}'
    children = [name for name in modules if '.' not in name]
    return f'accepted: {", ".join(children)}, or below' if children else 'it has no modules'


def _group(found: Tappable) -> tuple[tuple[str, ...], str, int]:
    """What a path has in common with its neighbors, if they are the blocks of a network: parents, class and width."""
    return tuple(_module(found.path).split('.')[:-1]), found.module, found.channels


def _version(tensor: Any) -> int | None:
    """How often a tensor has been changed in place; None in a compiled graph, where the eager probe has looked."""
    return tensor._version if isinstance(tensor, Tensor) and not torch.compiler.is_compiling() else None


def _module(path: str) -> str:
    return path.removesuffix(TOKENS).removesuffix(INPUT)
