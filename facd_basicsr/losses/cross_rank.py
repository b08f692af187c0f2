"""Sums and samples over all ranks, so that a loss that mixes samples does not depend on how the batch is split.

Both are the identity in a single process. With them R ranks of N/R samples have the value and, under
DistributedDataParallel's averaging, the gradient of one process with N.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def ranks() -> int:
    """The number of processes that share a batch."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_samples(x: Tensor) -> tuple[Tensor, int]:
    """Every rank's ``x`` along the batch axis, without gradient, and the index of this rank's first sample.

    Args:
        x: (n, ...), the same shape on every rank.

    Returns:
        (R * n, ...) and rank * n.
    """
    if ranks() == 1:
        return x.detach(), 0
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(ranks())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts), dist.get_rank() * x.shape[0]


class _Total(torch.autograd.Function):
    """What torch.distributed.nn.functional.all_reduce did, which is deprecated without a successor in torch 2.4."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        summed = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        return _Total.apply(gradient)


def total(x: Tensor) -> Tensor:
    """Sum of ``x`` over ranks. Its backward sums the ranks' gradients, which DDP's averaging then divides by R."""
    return _Total.apply(x) if ranks() > 1 else x
