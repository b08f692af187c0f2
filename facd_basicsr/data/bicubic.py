"""MATLAB's bicubic downscaling, the standard degradation of super-resolution."""

import numpy as np
from basicsr.data.transforms import mod_crop
from basicsr.utils.matlab_functions import cubic
from torch import from_numpy

from facd_basicsr.errors import UserError

METHOD = 'bicubic as MATLAB of uint8'  # recorded with what is made by it


def bicubic_lr(hr: np.ndarray, scale: int) -> np.ndarray:
    """MATLAB's ``imresize(hr, 1 / scale, 'bicubic')`` of an 8-bit image: (H, W, C) -> (H / scale, W / scale, C) uint8.

    Bit for bit, as far as published LR files of MATLAB show (benchmarks/README.md): height first, rounded to 8
    bits after each direction, borders replicated. BasicSR's ``imresize`` computes in floating point, rounds once and
    reflects the borders, which differs by up to 12 levels.

    H and W must be multiples of ``scale``.
    """
    return _downscaled(_downscaled(hr, scale, axis=0), scale, axis=1)


def _downscaled(image: np.ndarray, scale: int, axis: int) -> np.ndarray:
    """One direction. By a whole scale, all output pixels have the same offset to input pixels: one set of weights."""
    lines = np.moveaxis(image, axis, 0)
    length = len(lines)
    center = (scale - 1) / 2  # of the first output pixel
    taps = np.arange(np.floor(center - 2 * scale), np.ceil(center + 2 * scale) + 1, dtype=int)
    weights = cubic(from_numpy((center - taps) / scale)).numpy()  # antialiased: the kernel is as much wider
    weights /= weights.sum()
    margin = 2 * scale + 1
    padded = np.pad(lines, [(margin, margin)] + [(0, 0)] * (lines.ndim - 1), 'edge').astype(np.float64)
    resized = sum(
        weight * padded[margin + tap :: scale][: length // scale] for weight, tap in zip(weights, taps.tolist())
    )
    return np.moveaxis(np.floor(resized + 0.5).clip(0, 255).astype(np.uint8), 0, axis)


def with_bicubic_lr(image: np.ndarray, scales: list[int], multiple: int) -> dict[int, np.ndarray]:
    """An image and its LR: BGR uint8 (H, W, 3) -> {1: HR, scale: LR}.

    Args:
        scales: of the LR images, 1 for HR itself.
        multiple: HR's height and width are cropped to multiples of it, at the bottom and on the right.

    Raises:
        UserError: the image is smaller than ``multiple``.
    """
    hr = mod_crop(image, multiple)
    if 0 in hr.shape:
        height, width = image.shape[:2]
        raise UserError(f'{width}x{height} pixels; accepted: {multiple} or more both ways')
    return {scale: hr if scale == 1 else bicubic_lr(hr, scale) for scale in scales}
