"""What inputs of views are made of: random numbers of each sample, and augmentations that can be undone."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from facd_basicsr.losses.base import DistillState
from facd_basicsr.losses.pairwise import at_least_float32
from facd_basicsr.runtime.rng import seed_for

# Each its own inverse: they are applied in this order, and undone in the reverse.
AUGMENTATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    'invert': lambda images: 1 - images,
    'hflip': lambda images: images.flip(3),
    'vflip': lambda images: images.flip(2),
    'transpose': lambda images: images.transpose(2, 3),
}


def generators(state: DistillState, purpose: str) -> list[torch.Generator]:
    """Of each sample, on the CPU: numbers for ``purpose`` that depend on the sample's seed alone."""
    seeds = state.seeds or range(len(state.lq))
    return [torch.Generator().manual_seed(seed_for(seed, purpose)) for seed in seeds]


def drawn_augmentations(state: DistillState, purpose: str, probability: float, count: int = 1) -> Tensor:
    """Which of :data:`AUGMENTATIONS` the ``count`` images of each sample get, each with ``probability``.

    None is transposed where LQ is not square, since a batch has one shape.

    Returns:
        (N * count, 4) of bool, sample by sample, on the CPU.
    """
    drawn = torch.cat([torch.rand(count, len(AUGMENTATIONS), generator=own) for own in generators(state, purpose)])
    drawn = drawn < probability
    drawn[:, -1] &= state.lq.shape[2] == state.lq.shape[3]
    return drawn


def augmented(images: Tensor, augmentations: Tensor) -> Tensor:
    """F of DUKD and DCKD: each image with its :data:`AUGMENTATIONS`, where inversion is of its colors, 1 - x.

    Args:
        images: (N, C, H, W) in [0, 1].
        augmentations: (N, 4) of bool, on the CPU.
    """
    return _applied(images, augmentations, range(len(AUGMENTATIONS)))


def undone(images: Tensor, augmentations: Tensor) -> Tensor:
    """The inverse of :func:`augmented`, on images of any size."""
    return _applied(images, augmentations, reversed(range(len(AUGMENTATIONS))))


def _applied(images: Tensor, augmentations: Tensor, order: Iterable[int]) -> Tensor:
    operations = list(AUGMENTATIONS.values())
    masks = like(images, augmentations)[..., None, None, None]  # (N, 4, 1, 1, 1)
    for index in order:
        changed = operations[index](images)
        if changed.shape == images.shape:
            images = torch.where(masks[:, index], changed, images)
    return images


def like(images: Tensor, drawn: Tensor) -> Tensor:
    """What was drawn on the CPU, on the images' device; nothing waits for the copy."""
    return drawn.pin_memory().to(images.device, non_blocking=True) if images.is_cuda else drawn


def downscaled(images: Tensor, scale: int) -> Tensor:
    """Bicubic with antialiasing, as LQ is made of GT but for the border: (N, C, H, W) -> (N, C, H / scale, W / scale).

    In float32 or float64 and not clamped; pixels beyond a multiple of ``scale`` are cut off.
    """
    height, width = (size // scale for size in images.shape[2:])
    cut = at_least_float32(images[..., : height * scale, : width * scale])
    return F.interpolate(cut, size=(height, width), mode='bicubic', antialias=True)
