"""Sums of absolute differences between samples on the GPU, which reads the features once forward and once backward.

Importing this needs Triton; pairwise.py does it for the first pair of CUDA tensors. No sum depends on the order in
which programs run, so a run repeated on a GPU is bit-identical.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

MAX_HEIGHT = 16  # samples of a, and of b, that a program compares at a time
MAX_WIDTH = 512  # elements of a sample at a time
# Tiles of which ptxas keeps every value in registers, with enough left for other warps.
FORWARD_SUMS, FORWARD_WARPS = 8192, 4
BACKWARD_SUMS, BACKWARD_WARPS = 2048, 8
PROGRAMS = 1024  # about as many forward, each with sums of its own to store


@triton.jit
def _sum_kernel(  # type: ignore[no-untyped-def]  # Triton reads a kernel's annotations as its own
    a, b, partial, n, m, size, steps, tiles, tiles_b,
    height_a: tl.constexpr, height_b: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """Sums |a - b| over ``steps * width`` elements of height_a x height_b samples."""
    program = tl.program_id(0)
    tile, chunk = program % tiles, program // tiles  # neighbors share their elements, which the cache then has
    rows_a = (tile // tiles_b) * height_a + tl.arange(0, height_a)
    rows_b = (tile % tiles_b) * height_b + tl.arange(0, height_b)
    column = chunk * steps * width + tl.arange(0, width)
    a += rows_a[:, None].to(tl.int64) * size
    b += rows_b[:, None].to(tl.int64) * size
    sums = tl.zeros((height_a, height_b, width), dtype=tl.float32)
    for _ in range(steps):
        inside = column[None, :] < size
        a_tile = tl.load(a + column[None, :], mask=(rows_a[:, None] < n) & inside, other=0.0).to(tl.float32)
        b_tile = tl.load(b + column[None, :], mask=(rows_b[:, None] < m) & inside, other=0.0).to(tl.float32)
        sums += tl.abs(a_tile[:, None, :] - b_tile[None, :, :])
        column += width
    at = (chunk * n + rows_a[:, None]) * m + rows_b[None, :]
    tl.store(partial + at, tl.sum(sums, axis=2), mask=(rows_a[:, None] < n) & (rows_b[None, :] < m))


@triton.jit
def _gradient_kernel(  # type: ignore[no-untyped-def]  # as above
    a, b, grad, out, n, m, size, stride_a, stride_b, tiles,
    height_a: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """Sums grad[i, k] * sign(a[i] - b[k]) over all k, for width elements of height_a samples of a."""
    program = tl.program_id(0)
    rows_a = (program % tiles) * height_a + tl.arange(0, height_a)
    column = (program // tiles) * width + tl.arange(0, width)
    inside = column[None, :] < size
    mask_a = (rows_a[:, None] < n) & inside
    at = rows_a[:, None].to(tl.int64) * size + column[None, :]
    a_tile = tl.load(a + at, mask=mask_a, other=0.0).to(tl.float32)
    sums = tl.zeros((height_a, width), dtype=tl.float32)
    b += column[None, :]
    grad += rows_a[:, None] * stride_a
    for _ in range(m):  # a sample of b at a time: tiles of three dimensions are shuffled through shared memory
        b_row = tl.load(b, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(grad, mask=rows_a[:, None] < n, other=0.0)
        difference = a_tile - b_row
        # 0 for equal elements and for nan, as cdist's
        sums += tl.where(difference > 0, g, tl.where(difference < 0, -g, 0.0))
        b += size
        grad += stride_b
    tl.store(out + at, sums.to(out.dtype.element_ty), mask=mask_a)


class _L1Sums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        (n, size), m = a.shape, b.shape[0]
        height_a, height_b = _height(n), _height(m)
        tiles_b = triton.cdiv(m, height_b)
        tiles = triton.cdiv(n, height_a) * tiles_b
        width = min(MAX_WIDTH, FORWARD_SUMS // (height_a * height_b))
        blocks = triton.cdiv(size, width)
        steps = triton.cdiv(blocks, triton.cdiv(PROGRAMS, tiles))
        chunks = triton.cdiv(blocks, steps)
        partial = torch.empty(chunks, n, m, device=a.device, dtype=torch.float32)
        with _on(a):
            _sum_kernel[(tiles * chunks,)](
                a, b, partial, n, m, size, steps, tiles, tiles_b, height_a, height_b, width, num_warps=FORWARD_WARPS
            )
        return partial.sum(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        of_a = _gradient(a, b, grad) if ctx.needs_input_grad[0] else None
        of_b = _gradient(b, a, grad.T) if ctx.needs_input_grad[1] else None
        return of_a, of_b


def l1_sums(a: Tensor, b: Tensor) -> Tensor:
    """``torch.cdist(a, b, p=1)``, the sums of |a[i] - b[k]|. It can be differentiated once.

    Needs N * M sums for each of about 1024 programs, and nothing of (N, M, D).

    Args:
        a: (N, D), float32, float16 or bfloat16; D below 2**30.
        b: (M, D), likewise.

    Returns:
        (N, M), float32, and summed in float32. The gradients have the inputs' types.
    """
    return _L1Sums.apply(a.contiguous(), b.contiguous())


def _gradient(a: Tensor, b: Tensor, grad: Tensor) -> Tensor:
    """Of ``a``: (N, D), from that of the sums, (N, M)."""
    (n, size), m = a.shape, b.shape[0]
    height = _height(n)
    tiles = triton.cdiv(n, height)
    width = min(MAX_WIDTH, BACKWARD_SUMS // height)
    out = torch.empty_like(a)
    with _on(a):
        _gradient_kernel[(tiles * triton.cdiv(size, width),)](
            a, b, grad, out, n, m, size, *grad.stride(), tiles, height, width, num_warps=BACKWARD_WARPS
        )
    return out


def _height(rows: int) -> int:
    return min(MAX_HEIGHT, triton.next_power_of_2(rows))


def _on(x: Tensor) -> torch.cuda.device:
    """Triton launches on the current device, which need not be the tensor's. On the CPU it interprets."""
    return torch.cuda.device(x.device if x.is_cuda else -1)
