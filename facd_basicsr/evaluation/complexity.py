"""What a network costs: parameters, FLOPs, activations, memory and latency."""

import math
import time
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from facd_basicsr.archs.reparameterization import fused_blocks, reparameterized, with_training_branches
from facd_basicsr.runtime.size_requirements import on_meta

OUTPUT_SIZE = (720, 1280)  # the size for which efficient super-resolution papers state their cost
FUSED = ', fused'  # after the name of a network that is re-parameterized
LQ_SIZE = (256, 256)  # the size of LQ for which NTIRE's challenges on efficient super-resolution state it


def parameters(net: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in net.parameters())


def as_trained_and_fused(name: str, net: nn.Module) -> dict[str, Any]:
    """A network by its name and, of one that fuses for inference, both: as it is trained, and re-parameterized."""
    if not fused_blocks(net):
        return {name: net}
    return {name: with_training_branches(net), name + FUSED: reparameterized(net)}


def flops(
    net: nn.Module,
    scale: int,
    output_size: tuple[int, int] = OUTPUT_SIZE,
    num_in_ch: int = 3,
) -> int:
    """Floating-point operations of one forward that gives an image of ``output_size`` (height, width).

    Two for each multiply-add, convolutions and matrix products only, counted on the meta device: nothing runs,
    unless the network decides by values. The input is rounded down where ``scale`` does not divide the output.
    """
    lq_size = (output_size[0] // scale, output_size[1] // scale)
    return _counted(net, lq_size, num_in_ch, lambda net: FlopCounterMode(display=False)).get_total_flops()


def footprint(net: nn.Module, lq_size: tuple[int, int], num_in_ch: int = 3) -> tuple[int, int]:
    """Activations and memory of one forward on LQ of ``lq_size`` (height, width), counted as :func:`flops` counts.

    Args:
        net: the network, for float32 input.

    Returns:
        Activations: elements of the outputs of all convolutions, as NTIRE's challenges count them. Memory: bytes of all
        live tensors at the peak: weights, input, features. What an operator needs for itself, as cuDNN's workspaces,
        does not count.
    """
    tensors = _counted(net, lq_size, num_in_ch, _LiveTensors)
    return tensors.activations, tensors.peak


Counter = TypeVar('Counter', bound=AbstractContextManager)


def _counted(
    net: nn.Module, lq_size: tuple[int, int], num_in_ch: int, counter_of: Callable[[nn.Module], Counter]
) -> Counter:
    """What has counted one forward: on the meta device, or in fact, where the network decides by values, as SeemoRe."""
    try:
        meta = on_meta(net)
        # What a forward makes is on the meta device too, as ECBSR's fused kernels.
        with torch.device('meta'), counter_of(meta) as counter:
            _forward(meta, lq_size, num_in_ch)
    except (RuntimeError, NotImplementedError) as error:
        if 'meta' not in str(error).lower():
            raise
        with counter_of(net) as counter:
            _forward(net, lq_size, num_in_ch)
    return counter


def _forward(net: nn.Module, lq_size: tuple[int, int], num_in_ch: int) -> None:
    device = next(net.parameters()).device
    with torch.no_grad():  # not inference_mode, in which convolutions are called by other names
        net(torch.full((1, num_in_ch, *lq_size), 0.5, device=device))


class _LiveTensors(TorchDispatchMode):
    """Tracks the memory of live tensors, from creation until they are freed, and of a network's own."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.activations = 0
        self.peak = 0
        self._now = 0
        self._alive: set[int] = set()
        self.hold([*net.parameters(), *net.buffers()])

    def hold(self, values: Any) -> None:
        """Counts the memory of the tensors among nested values, each storage once."""
        for storage in (leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)):
            if storage._cdata not in self._alive:
                self._alive.add(storage._cdata)
                self._now += storage.nbytes()
                self.peak = max(self.peak, self._now)
                weakref.finalize(storage, self._let_go, storage._cdata, storage.nbytes())

    def _let_go(self, address: int, size: int) -> None:
        self._alive.remove(address)
        self._now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten.convolution:
            self.activations += made.numel()
        self.hold(made)
        return made


def peak_gpu_memory(net: nn.Module, lq: Tensor) -> int:
    """Bytes that the GPU of ``lq`` holds at the peak of one forward, the network's weights and workspaces included.

    By ``torch.cuda.max_memory_allocated``, as in NTIRE's challenges; memory allocated before does not
    count.
    """
    own = sum(tensor.nbytes for tensor in (*net.parameters(), *net.buffers(), lq))
    before = torch.cuda.memory_allocated(lq.device)
    torch.cuda.reset_peak_memory_stats(lq.device)
    with torch.inference_mode():
        net(lq)
    return torch.cuda.max_memory_allocated(lq.device) - before + own


def architecture(net: nn.Module) -> Hashable:
    """What a forward runs, apart from the weights' values: equal for networks that take equally long."""
    modules = ((name, type(module).forward, module.extra_repr()) for name, module in net.named_modules())
    return *modules, *((name, p.shape, p.dtype) for name, p in net.named_parameters())


def latencies_ms(
    nets: Mapping[str, tuple[nn.Module, Tensor]],
    repeats: int,
    limit: float = math.inf,
    on_turn: Callable[[str], None] = lambda name: None,
) -> dict[str, list[float]]:
    """Milliseconds of each network's forwards, interleaved, so that other load on the machine affects all alike.

    Networks of one architecture, with inputs of one shape, share the forwards of the first.

    Args:
        repeats: how many forwards count, after one that does not.
        limit: seconds after which a network has no further turn. If its first forward takes as long, that one counts.
    """
    alike: dict[Hashable, str] = {}
    measured = {
        name: alike.setdefault((architecture(net), lq.shape, lq.dtype, lq.device), name)
        for name, (net, lq) in nets.items()
    }
    times: dict[str, list[float]] = {name: [] for name in alike.values()}
    for _ in range(repeats + 1):
        for name in times:
            net, lq = nets[name]
            on_turn(name)
            if sum(times[name]) < 1000 * limit:
                times[name].append(_forward_ms(net, lq))
    return {name: times[first][1:] or times[first] for name, first in measured.items()}


def _forward_ms(net: nn.Module, lq: Tensor) -> float:
    lq = lq.clone()  # spandrel's RCAN works on its input in place
    with torch.inference_mode():
        if lq.is_cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        net(lq)
        if lq.is_cuda:
            torch.cuda.synchronize()
        return 1000 * (time.perf_counter() - start)


@contextmanager
def saved_activations(weights: Iterable[Tensor]) -> Iterator[dict[int, int]]:
    """Collects the most memory that autograd keeps for a backward pass at a time: {address: bytes}, filled inside the
    context.

    Args:
        weights: tensors that do not count, as they exist anyway.
    """
    there = {tensor.untyped_storage().data_ptr() for tensor in weights}
    kept: dict[int, int] = {}
    now: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address not in there and address not in now:
            now[address] = storage.nbytes()
            weakref.finalize(storage, let_go, address)
        return tensor

    def let_go(address: int) -> None:
        look()
        del now[address]

    def look() -> None:
        if sum(now.values()) > sum(kept.values()):
            kept.clear()
            kept.update(now)

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield kept
    look()
