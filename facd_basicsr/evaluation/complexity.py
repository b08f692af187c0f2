"""What a network costs: parameters, FLOPs and latency."""

import copy
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

OUTPUT_SIZE = (720, 1280)  # the size for which efficient super-resolution papers state their cost


def parameters(net: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in net.parameters())


def flops(
    net: nn.Module,
    scale: int,
    output_size: tuple[int, int] = OUTPUT_SIZE,
    num_in_ch: int = 3,
    pad: Callable[[Tensor], Tensor] = lambda lq: lq,
) -> int:
    """Floating-point operations of one forward that gives an image of ``output_size`` (height, width).

    Two for each multiply-add, convolutions and matrix products only, counted on the meta device: nothing runs.
    The input is rounded down where ``scale`` does not divide the output.

    Args:
        net: the network.
        scale: its upscaling factor.
        output_size: height and width of the output.
        num_in_ch: channels of the input.
        pad: what makes the input one that the network takes.
    """
    meta = copy.deepcopy(net).to('meta')
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        meta(pad(torch.empty(1, num_in_ch, output_size[0] // scale, output_size[1] // scale, device='meta')))
    return counter.get_total_flops()


def latency_ms(net: nn.Module, lq: Tensor, repeats: int = 5) -> float:
    """Milliseconds of one forward, where ``lq`` is: the median of ``repeats``, after one that is not counted."""
    times = []
    with torch.inference_mode():
        for _ in range(repeats + 1):
            start = time.perf_counter()
            net(lq)
            if lq.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[1:])


@contextmanager
def saved_activations(weights: Iterable[Tensor]) -> Iterator[dict[int, int]]:
    """Collects the memory that autograd keeps for the backward pass: {address: bytes}, filled inside the context.

    Args:
        weights: tensors that do not count, for they are there anyway.
    """
    there = {tensor.untyped_storage().data_ptr() for tensor in weights}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield kept
