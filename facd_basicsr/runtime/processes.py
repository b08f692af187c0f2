"""Communication between the ranks of a run: all-reduce and all-gather for losses, and plain Python values.

All are the identity in a single process. With :func:`total` and :func:`all_gather_samples`, R ranks
of N/R samples have the value and, under DistributedDataParallel's averaging, the gradient of one process with N.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from basicsr.utils.dist_util import get_dist_info
from torch import Tensor


def ranks() -> int:
    """The number of processes that share a batch."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.own = slice(dist.get_rank() * len(x), (dist.get_rank() + 1) * len(x))
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(ranks())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return total(gradient)[ctx.own]


def all_gather_samples(x: Tensor, with_gradient: bool = False) -> tuple[Tensor, int]:
    """Every rank's ``x`` along the batch axis, and the index of this rank's first sample.

    Args:
        x: (n, ...), the same shape on every rank.
        with_gradient: whether gradients flow back, from all ranks to the rank of the sample; as for :func:`total`,
            DDP's averaging then divides them by R.

    Returns:
        (R * n, ...) and rank * n.
    """
    x = x if with_gradient else x.detach()
    return (x, 0) if ranks() == 1 else (_Gather.apply(x), dist.get_rank() * len(x))


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


def largest(x: Tensor) -> Tensor:
    """The largest of ``x`` over ranks, element by element, without gradient."""
    if ranks() > 1:
        dist.all_reduce(x := x.detach().clone(), dist.ReduceOp.MAX)
    return x


Value = TypeVar('Value')


@functools.cache
def _gloo_group() -> dist.ProcessGroup:
    """One for the lifetime of the process, created by all ranks together."""
    return cast(dist.ProcessGroup, dist.new_group(backend='gloo'))  # this rank is in it, as all are


class Ranks:
    """Communication between ranks other than gradients. In a single process each method is the identity.

    Over gloo, so that no GPU is waited for.
    """

    def __init__(self) -> None:
        self.rank, self.size = get_dist_info()
        self._group = _gloo_group() if self.size > 1 else None

    def gather(self, value: Value) -> list[Value]:
        """Every rank's value, on every rank; plain Python values only."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, self._group)
        return values

    def to_first(self, value: Value) -> list[Value]:
        """Every rank's value, tensors too, on rank 0; on the others nothing."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size if self.rank == 0 else []
        dist.gather_object(value, values or None, group=self._group)
        return values

    def from_first(self, value: Value) -> Value:
        """Rank 0's value."""
        return self.gather(value)[0]

    def wait(self) -> None:
        """A barrier."""
        self.gather(None)

    def begin_any(self, flag: Callable[[], bool]) -> Callable[[], bool]:
        """Starts an asynchronous all-reduce of whether any rank's flag is set; calling what is returned waits for it.

        Meanwhile the processes run on: asked at the beginning of an iteration and called at its end, it costs nothing.
        """
        if self.size == 1:
            return flag
        flags = torch.tensor(int(flag()))
        work = dist.all_reduce(flags, dist.ReduceOp.MAX, self._group, async_op=True)

        def answer() -> bool:
            work.wait()
            return bool(flags)

        return answer
