"""Features by module path, without touching the network's code."""

import difflib
import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from facd_basicsr.errors import UserError

INPUT = ':input'
TOKENS = ':tokens'
CLONE = ':clone'
SUFFIXES = (INPUT, TOKENS, CLONE)
GRAMMAR = 'MODULE[:input][:tokens][:clone]'
TAP_PATH = re.compile(r'(.*?)(:input)?(:tokens)?(:clone)?', re.DOTALL)
WRAPPING_NAMES = ('_orig_mod', 'module')  # what torch.compile and DDP put into the names of a network's modules
BLOCKS = 3  # so many alike are the blocks of a network
SIMILAR = 0.75  # of difflib: a slip of the pen, not a path of another network


class Taps:
    """Reads the features of a network at given module paths.

    A path such as ``body.4`` means that module's output; ``upsample:input`` means the first input of ``upsample``.
    The second form reaches tensors that no module returns, such as EDSR's and RCAN's feature after the global skip.
    ``layers.0:tokens`` means a transformer's tokens (N, H * W, C), one for each pixel of the network's input, read as
    a feature (N, C, H, W). It is spelt out since (N, L, C) and (N, C, L) cannot be told apart by their shapes.
    ``conv_after_body:clone`` means a copy of the output at that moment, of one that is overwritten in place later, as
    EDSR's and RCAN's before the global skip. The suffixes combine in this order: ``:input:tokens:clone``.

    Args:
        net: the network, not wrapped in DDP. Hooks are added to its modules and read only inside :meth:`run`.
        paths: module paths as ``net.named_modules()`` spells them, with or without suffixes.
        key: ``student``, ``teacher``, or of several ``teacher[0]`` and so on, as in the option file; used in messages.

    Raises:
        UserError: a path or suffix is unknown.
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
            if parsed(path)[0] not in modules:
                instead = _instead(path, modules) + hint(key)
                raise UserError(f'taps[{index}].{key}: {path!r} is not in {type(net).__name__}; {instead}')
        for path in dict.fromkeys(self._paths):
            name, suffixes = parsed(path)
            if INPUT in suffixes:
                modules[name].register_forward_pre_hook(
                    lambda _, inputs, path=path: self._record(path, inputs[0] if inputs else None)
                )
            else:
                modules[name].register_forward_hook(lambda _, __, output, path=path: self._record(path, output))
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
        return output, tuple(self._feature(index, path, seen[path], net, x) for index, path in enumerate(self._paths))

    def _record(self, path: str, tensor: Any) -> None:
        if self._seen is not None:
            if path.endswith(CLONE) and isinstance(tensor, Tensor):
                tensor = tensor.clone()
            self._seen[path].append((tensor, _version(tensor)))

    def _note_size(self, x: Tensor) -> None:
        self._size = (x.shape[2], x.shape[3])

    def _feature(
        self, index: int, path: str, seen: list[tuple[Any, int | None]], run: Callable[[Tensor], Any], x: Tensor
    ) -> Tensor:
        where = f'taps[{index}].{self._key}: {path!r}'
        if len(seen) != 1:
            net = type(self._net).__name__
            instead = self._above(path, run, x) if not seen else ''
            raise UserError(
                f'{where} ran {len(seen)} times in one forward of {net}; accepted: once{instead}{self._hint}'
            )
        (feature, version), *_ = seen
        tokens = path.removesuffix(CLONE).endswith(TOKENS)
        if not isinstance(feature, Tensor) or feature.dim() != (3 if tokens else 4):
            found = tuple(feature.shape) if isinstance(feature, Tensor) else type(feature).__name__
            clone = CLONE * path.endswith(CLONE)
            as_tokens = path.removesuffix(clone) + TOKENS + clone
            shape = '(N, H * W, C)' if tokens else f'(N, C, H, W), or tokens (N, H * W, C) as {as_tokens!r}'
            readers = () if isinstance(feature, Tensor) else self._found(path, run, x).readers
            carried = f'; its tensors: {", ".join(map(repr, readers))}' if readers else ''
            raise UserError(f'{where} gives {found}; accepted: a tensor of shape {shape}{carried}{self._hint}')
        if tokens and feature.shape[1] != math.prod(self._size):
            raise UserError(
                f'{where} gives {feature.shape[1]} tokens for an input of {self._size[0]} x {self._size[1]}; accepted: '
                'one for each pixel (a gt_size that the network need not pad)'
            )
        if version is not None and feature._version != version:
            final, *_ = (*self._found(path, run, x).readers, '')
            raise UserError(
                f'{where} is changed in place later in the forward (EDSR and RCAN add the global skip with `+=`), so '
                f'it would not be the feature that the path names{f"; its final value is {final!r}" * bool(final)}; '
                f'its value at this point is {path + CLONE!r}'
            )
        if tokens:
            feature = feature.transpose(1, 2).unflatten(2, self._size)  # (N, H * W, C) -> (N, C, H, W)
        return feature

    def _found(self, path: str, run: Callable[[Tensor], Any], x: Tensor) -> 'Tappable':
        """What is at a path that ran, seen in another forward."""
        name, suffixes = parsed(path)
        origin = name + INPUT * (INPUT in suffixes)
        return next(found for found in tappable(self._net, x, run, [origin]) if found.origin == origin)

    def _above(self, path: str, run: Callable[[Tensor], Any], x: Tensor) -> str:
        """The nearest module that holds one that does not run, as part of a message."""
        name, _ = parsed(path)
        holding = [
            found for found in tappable(self._net, x, run) if found.channels and name.startswith(found.origin + '.')
        ]
        nearest = max(holding, key=lambda found: len(found.origin), default=None)
        return f'; nearest: {nearest.path!r}' if nearest else ''


@dataclass(frozen=True)
class Tappable:
    """What one path of a network gives in a forward.

    Attributes:
        path: as in ``taps``.
        origin: the module, or the module with ``:input``.
        module: the class of its module.
        found: ``C x H x W``, or what it gives that cannot be tapped.
        channels: C; 0 where it cannot be tapped.
        size: H and W.
        at_lq_size: whether these are those of the network's input.
        is_shuffled: whether it is an image's pixels, which a PixelShuffle orders.
        order: when it ran, in the forward.
        readers: the first input that reads the tensor, or each tensor of a tuple, in its final state.
    """

    path: str
    origin: str
    module: str
    found: str
    channels: int = 0
    size: tuple[int, ...] = ()
    at_lq_size: bool = False
    is_shuffled: bool = False
    order: int = 0
    readers: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Seen:
    tensor: Any
    version: int | None
    order: int


@torch.no_grad()
def tappable(net: nn.Module, x: Tensor, run: Callable[[Tensor], Any], wanted: Collection[str] = ()) -> list[Tappable]:
    """What can be tapped: each module's output, and each input that no module returns as it is, such as EDSR's after
    its skip or one of a tuple.

    Args:
        x: LQ, (1, C, H, W).
        run: the network's forward: itself, or a wrapper that may pad.
        wanted: inputs that are listed in any case, as ``upsample:input``.

    Returns:
        One for each path, in the order of ``net.named_modules()``.
    """
    modules = dict(net.named_modules())
    seen: dict[str, list[_Seen]] = {}
    inputs_seen: dict[str, list[_Seen]] = {}
    known: set[tuple[int, int | None]] = set()
    listed = set(wanted)
    kept: list[Any] = []  # or another tensor would get the id of one that is gone
    size = (0, 0)

    def record(path: str, tensor: Any, of: dict[str, list[_Seen]] = seen) -> None:
        kept.append(tensor)
        known.add((id(tensor), _version(tensor)))
        of.setdefault(path, []).append(_Seen(tensor, _version(tensor), len(kept)))

    def record_input(path: str, inputs: tuple[Any, ...]) -> None:
        if not inputs:
            return
        if (id(inputs[0]), _version(inputs[0])) not in known:
            listed.add(path)
        record(path, inputs[0], inputs_seen)

    def note_size(inputs: tuple[Any, ...]) -> None:
        nonlocal size
        kept.append(inputs[0])
        known.add((id(inputs[0]), _version(inputs[0])))
        size = (inputs[0].shape[2], inputs[0].shape[3])

    hooks = [net.register_forward_pre_hook(lambda _, inputs: note_size(inputs))]
    for name, module in modules.items():
        if name:
            hooks.append(
                module.register_forward_pre_hook(lambda _, inputs, name=name: record_input(name + INPUT, inputs))
            )
            hooks.append(module.register_forward_hook(lambda _, __, output, name=name: record(name, output)))
    try:
        run(x)
    finally:
        for hook in hooks:
            hook.remove()

    first_reader: dict[tuple[int, int | None], str] = {}
    for path, (read, *more) in inputs_seen.items():
        if not more:
            first_reader.setdefault((id(read.tensor), read.version), path)

    def readers(output: Any) -> tuple[str, ...]:
        leaves = (leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
        return tuple(first_reader[key] for leaf in leaves if (key := (id(leaf), leaf._version)) in first_reader)

    for first, *_ in seen.values():  # a tensor of a tuple may be a module's output too
        if not isinstance(first.tensor, Tensor):
            listed.update(readers(first.tensor))
    seen |= {path: inputs_seen[path] for path in listed & inputs_seen.keys()}
    shuffles = {name + INPUT for name, module in modules.items() if isinstance(module, nn.PixelShuffle)}
    shuffled = {id(read.tensor) for path in shuffles & inputs_seen.keys() for read in inputs_seen[path]}
    return [
        _described(path, type(module).__name__, seen[path], size, readers, shuffled)
        for name, module in modules.items()
        for path in (name + INPUT, name)
        if path in seen
    ]


def _described(
    path: str,
    module: str,
    seen: Sequence[_Seen],
    size: tuple[int, int],
    readers: Callable[[Any], tuple[str, ...]],
    shuffled: Collection[int],
) -> Tappable:
    first, *more = seen
    tensor = first.tensor
    if more:
        return Tappable(path, path, module, f'runs {len(seen)} times')
    if not isinstance(tensor, Tensor):
        read_as = readers(tensor)
        found = f'{type(tensor).__name__}; its tensors: {", ".join(read_as)}' if read_as else type(tensor).__name__
        return Tappable(path, path, module, found, readers=read_as)
    as_tokens = tensor.dim() == 3 and tensor.shape[1] == math.prod(size)
    shape = (tensor.shape[2], *size) if as_tokens else tuple(tensor.shape[1:])
    tapped = path + TOKENS * as_tokens + CLONE * (tensor._version != first.version)
    if len(shape) != 3:
        return Tappable(path, path, module, str(tuple(tensor.shape)))
    found = ' x '.join(map(str, shape))
    of_lq, is_shuffled = shape[1:] == size, id(tensor) in shuffled
    return Tappable(tapped, path, module, found, shape[0], shape[1:], of_lq, is_shuffled, first.order, readers(tensor))


@dataclass(frozen=True)
class Points:
    """The points of a network that suggested taps are chosen from: the outputs of its blocks, and the last feature.

    Attributes:
        blocks: one for each block, in the order of the forward.
        last: the last before the upsampler.
    """

    blocks: tuple[Tappable, ...]
    last: Tappable

    def at_equal_depths(self, count: int) -> list[Tappable]:
        """After i / count of the blocks, i < count, and the last; fewer where there are not as many."""
        blocks = [
            self.blocks[max(i, len(self.blocks) * i // count) - 1] for i in range(1, count) if i <= len(self.blocks)
        ]
        return [*(block for block in blocks if block.path != self.last.path), self.last]


def points(paths: Sequence[Tappable]) -> dict[tuple[int, ...], Points]:
    """{H and W: the points of a network with features of that size}, its own size of blocks first.

    Blocks are modules of one class, width and parent, three or more. Of several such groups those of LQ's size come
    first, then those that are nested least, as groups of blocks before their blocks.
    """
    by_origin = {found.origin: found for found in paths}
    groups: dict[tuple[tuple[str, ...], str, int, tuple[int, ...]], list[Tappable]] = {}
    for found in paths:
        if found.origin.endswith(INPUT):
            continue
        read = found if found.channels or not found.readers else by_origin[found.readers[0]]
        if read.channels and not read.is_shuffled:
            parents = tuple(found.origin.split('.')[:-1])
            groups.setdefault((parents, found.module, read.channels, read.size), []).append(read)
    repeated = {group: members for group, members in groups.items() if len(members) >= BLOCKS} or groups
    ranked = sorted(repeated.items(), key=lambda item: (not item[1][0].at_lq_size, len(item[0][0]), -len(item[1])))
    result: dict[tuple[int, ...], Points] = {}
    for (_, _, channels, size), members in ranked:
        alike = [found for found in paths if (found.channels, found.size) == (channels, size)]
        last = max(alike, key=lambda found: (not found.is_shuffled, found.order))
        result.setdefault(size, Points(tuple(sorted(members, key=lambda found: found.order)), last))
    return result


def suggested(paths: Sequence[Tappable]) -> list[str]:
    """Paths like the paper's three, or fewer: after thirds of the blocks, and the last before the upsampler."""
    own = next(iter(points(paths).values()), None)
    return [] if own is None else [found.path for found in own.at_equal_depths(3)]


def paths_of_teachers(taps: Sequence[dict[str, Any]], teachers: int) -> list[list[str]]:
    """Each teacher's paths, of taps whose ``teacher`` is a path, for all of them, or a list with one for each."""
    return [[own[k] if isinstance(own := tap['teacher'], list) else own for tap in taps] for k in range(teachers)]


def hint(key: str) -> str:
    """Where the paths of the ``student`` or ``teacher`` are found, as the end of a message."""
    return f'; paths and shapes: facd check --modules {key.partition("[")[0]}'


def _instead(path: str, modules: Collection[str]) -> str:
    """The path that was meant, if one is similar, else what the network consists of."""
    name, *words = path.split(':')
    spelled = '.'.join(part for part in name.split('.') if part not in WRAPPING_NAMES)
    close = difflib.get_close_matches(spelled, modules, n=1, cutoff=SIMILAR)
    parts = spelled.split('.')
    holding = [own for end in range(len(parts) - 1, 0, -1) if (own := '.'.join(parts[:end])) in modules]
    nearest = next(iter([spelled] * (spelled in modules) + close + holding), None)
    if nearest is None:
        children = [name for name in modules if '.' not in name]
        return f'accepted: {", ".join(children)}, or below' if children else 'it has no modules'
    meant = {
        suffix for word in words for suffix in difflib.get_close_matches(f':{word}', SUFFIXES, n=1, cutoff=SIMILAR)
    }
    ordered = nearest + ''.join(suffix for suffix in SUFFIXES if suffix in meant)
    suffixes = '' if parsed(path)[0] == name else f', of {GRAMMAR}'
    return f'nearest: {ordered!r}{suffixes}'


def _version(tensor: Any) -> int | None:
    """How often a tensor has been changed in place; None in a compiled graph, where the eager probe has looked."""
    return tensor._version if isinstance(tensor, Tensor) and not torch.compiler.is_compiling() else None


def parsed(path: str) -> tuple[str, tuple[str, ...]]:
    """The module and the suffixes of a path."""
    name, *suffixes = TAP_PATH.fullmatch(path).groups()  # type: ignore[union-attr]  # every string matches
    return name, tuple(suffix for suffix in suffixes if suffix)
