"""Distances between samples, in memory linear in N * M."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from basicsr.utils import get_root_logger
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

ANCHOR_ROWS = 4  # samples that share their columns in pairwise_l1_triu


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32, or as it is if float32 or float64: sums over C * H * W elements overflow float16."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def full_precision(x: Tensor) -> AbstractContextManager:
    """A context in which autocast does not round products of ``x``. The meta device knows no autocast."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def sample_l1(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference of each sample of ``a`` to the same sample of ``b``: (N, ...) x (N, ...) -> (N,)."""
    return (at_least_float32(a) - at_least_float32(b)).abs().flatten(1).mean(1)


def pairwise_l1(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference of every sample of ``a`` to every sample of ``b``.

    Entry (i, k) is ``(a[i] - b[k]).abs().mean()``. The (N, M, C, H, W) differences are never stored, neither
    forward nor backward.

    Args:
        a: (N, ...), any float type.
        b: (M, ...), same trailing shape.

    Returns:
        (N, M), float32 (float64 for float64 inputs).
    """
    a, b = _as_rows(a, b)
    return _l1_sums(a, b) / a.shape[1]


def pairwise_l1_triu(a: Tensor, b: Tensor, first: int) -> Tensor:
    """As :func:`pairwise_l1`, but most entries (i, k) with k < first + i are 0: a third less work on a CPU.

    Args:
        a: (N, ...), the samples ``first`` to ``first + N - 1``.
        b: (M, ...), the samples 0 to M - 1; M >= first + N.
        first: at least 0.

    Returns:
        (N, M), float32 (float64 for float64 inputs).
    """
    if a.is_cuda:
        return pairwise_l1(a, b)  # in one kernel
    a, b = _as_rows(a, b)
    starts = range(first, first + len(a), ANCHOR_ROWS)
    rows = [F.pad(_l1_sums(part, b[start:]), (start, 0)) for start, part in zip(starts, a.split(ANCHOR_ROWS))]
    return torch.cat(rows) / a.shape[1]  # of (ANCHOR_ROWS, M) each


def _as_rows(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(N, D) and (M, D), without a copy where both are channels_last: a distance has no order of elements."""
    if a.dim() == 4 and all(x.is_contiguous(memory_format=torch.channels_last) for x in (a, b)):
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    return a.flatten(1), b.flatten(1)


def _l1_sums(a: Tensor, b: Tensor) -> Tensor:
    """(N, D) x (M, D) -> (N, M)."""
    if a.is_cuda and torch.float64 not in (a.dtype, b.dtype):
        fused = fused_sums(a.device, a.dtype, b.dtype)
        if fused is not None:
            return fused(a, b)
    a, b = at_least_float32(a), at_least_float32(b)
    # cdist's CUDA backward allocates (M, N, D) (ATen/native/cuda/DistanceKernel.cu).
    return cdist_by_column(a, b) if a.is_cuda else torch.cdist(a, b, p=1)


def cdist_by_column(a: Tensor, b: Tensor) -> Tensor:
    """``torch.cdist(a, b, p=1)`` whose backward needs (N, D) instead of (M, N, D) where it works in one piece."""
    return torch.cat([torch.cdist(a, b_k[None], p=1) for b_k in b], dim=1)  # M x (N, 1) -> (N, M)


@functools.cache
def fused_sums(device: torch.device, *dtypes: torch.dtype) -> Callable[[Tensor, Tensor], Tensor] | None:
    """``pairwise_triton.l1_sums``, or None, with a line in the log, where it does not work.

    The user's Triton compiles it for the user's GPU, and needs a C compiler: so it is tried first, with no random
    numbers.
    """
    try:
        from facd_basicsr.losses.pairwise_triton import l1_sums

        _check_sums(l1_sums, device, *dtypes)
    except Exception as error:  # of Triton, of its compilers, of the driver
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
        get_root_logger().warning(f'Distances between samples use torch.cdist, since Triton failed: {reason}')
        return None
    return l1_sums


def _check_sums(sums: Callable[[Tensor, Tensor], Tensor], device: torch.device, *dtypes: torch.dtype) -> None:
    """Raises ValueError if values or gradients are not those of the definition. Some elements are equal."""
    a, b = (
        torch.arange(rows * 600, device=device).sin().view(rows, 600).to(dtype).requires_grad_()
        for rows, dtype in zip((17, 3), dtypes)
    )
    weight = torch.arange(17 * 3, device=device).cos().view(17, 3)
    found = []
    with torch.enable_grad(), full_precision(a):
        for d in (sums(a, b), (a.double()[:, None] - b.double()).abs().sum(2)):
            found.append([d, *torch.autograd.grad((weight * d).sum(), (a, b))])
    for ours, theirs, tolerance in zip(*found, (1e-4, 0.01, 0.01)):  # gradients have the inputs' types
        if not torch.allclose(ours.double(), theirs.double(), rtol=tolerance, atol=tolerance):
            raise ValueError(f'wrong by {(ours - theirs).abs().max().item():.3g}')
