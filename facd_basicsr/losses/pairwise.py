"""Distances between samples, in memory linear in N * M."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


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
    a = at_least_float32(a).flatten(1)  # (N, D)
    b = at_least_float32(b).flatten(1)  # (M, D)
    # cdist's CUDA backward allocates (M, N, D) (ATen/native/cuda/DistanceKernel.cu).
    d = cdist_by_column(a, b) if a.is_cuda else torch.cdist(a, b, p=1)  # (N, D) x (M, D) -> (N, M)
    return d / a.shape[1]


def cdist_by_column(a: Tensor, b: Tensor) -> Tensor:
    """``torch.cdist(a, b, p=1)`` whose backward needs (N, D) instead of (M, N, D) where it works in one piece."""
    return torch.cat([torch.cdist(a, b_k[None], p=1) for b_k in b], dim=1)  # M x (N, 1) -> (N, M)
