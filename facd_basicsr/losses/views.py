"""What inputs of views are made of: random numbers of each sample, and augmentations that can be undone."""

import zlib

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from facd_basicsr.losses.base import DistillState

AUGMENTATIONS = ('invert', 'hflip', 'vflip', 'transpose')  # in this order; undone in the reverse


def generators(state: DistillState, purpose: str) -> list[torch.Generator]:
    """Of each sample, on the CPU: numbers for ``purpose`` that depend on the sample's seed alone."""
    seeds = state.seeds or range(len(state.lq))
    number = zlib.crc32(purpose.encode())
    mixed = [int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0]) for seed in seeds]
    return [torch.Generator().manual_seed(seed) for seed in mixed]


def drawn_augmentations(state: DistillState, purpose: str, probability: float) -> Tensor:
    """Which of :data:`AUGMENTATIONS` each sample gets, each with ``probability``: (N, 4) of bool, on the CPU.

    None is transposed where LQ is not square, since a batch has one shape.
    """
    drawn = (
        torch.stack([torch.rand(len(AUGMENTATIONS), generator=own) for own in generators(state, purpose)]) < probability
    )
    drawn[:, -1] &= state.lq.shape[2] == state.lq.shape[3]
    return drawn


def augmented(images: Tensor, augmentations: Tensor) -> Tensor:
    """F of DUKD and DCKD: each image with its :data:`AUGMENTATIONS`, where inversion is of its colors, 1 - x.

    Args:
        images: (N, C, H, W) in [0, 1].
        augmentations: (N, 4) of bool, on the CPU.
    """
    return torch.stack([_augmented(image, own) for image, own in zip(images, augmentations.tolist())])


def undone(images: Tensor, augmentations: Tensor) -> Tensor:
    """The inverse of :func:`augmented`, on images of any size."""
    return torch.stack([_undone(image, own) for image, own in zip(images, augmentations.tolist())])


def _augmented(image: Tensor, augmentations: list[bool]) -> Tensor:
    invert, hflip, vflip, transpose = augmentations
    image = 1 - image if invert else image
    image = image.flip([dim for dim, own in ((2, hflip), (1, vflip)) if own])
    return image.transpose(1, 2) if transpose else image


def _undone(image: Tensor, augmentations: list[bool]) -> Tensor:
    invert, hflip, vflip, transpose = augmentations
    image = image.transpose(1, 2) if transpose else image
    image = image.flip([dim for dim, own in ((2, hflip), (1, vflip)) if own])
    return 1 - image if invert else image


def downscaled(images: Tensor, scale: int) -> Tensor:
    """Bicubic with antialiasing, as LQ is made of GT but for the border: (N, C, H, W) -> (N, C, H / scale, W / scale).

    In float32 and not clamped; pixels beyond a multiple of ``scale`` are cut off.
    """
    height, width = (size // scale for size in images.shape[2:])
    cut = images[..., : height * scale, : width * scale].float()
    return F.interpolate(cut, size=(height, width), mode='bicubic', antialias=True)
