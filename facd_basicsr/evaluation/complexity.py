"""What a network costs: parameters, FLOPs and latency."""

import copy
import statistics
import time

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

OUTPUT_SIZE = (720, 1280)  # the size for which efficient super-resolution papers state their cost


def parameters(net: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in net.parameters())


def flops(net: nn.Module, scale: int, output_size: tuple[int, int] = OUTPUT_SIZE) -> int:
    """Floating-point operations of one forward that gives an image of ``output_size`` (height, width).

    Two for each multiply-add, convolutions and matrix products only, counted on the meta device: nothing runs.
    The input is rounded down where ``scale`` does not divide the output.
    """
    meta = copy.deepcopy(net).to('meta')
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        meta(torch.empty(1, 3, output_size[0] // scale, output_size[1] // scale, device='meta'))
    return counter.get_total_flops()


def latency_ms(net: nn.Module, lq: Tensor, repeats: int = 5) -> float:
    """Milliseconds of one forward on the CPU: the median of ``repeats``, after one that is not counted."""
    times = []
    with torch.inference_mode():
        for _ in range(repeats + 1):
            start = time.perf_counter()
            net(lq)
            times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[1:])
