"""MATLAB's bicubic downscaling, by which super-resolution defines its LR images."""

import numpy as np
from basicsr.data.transforms import mod_crop
from basicsr.utils.matlab_functions import imresize

from facd_basicsr.errors import UserError


def bicubic_lr(hr: np.ndarray, scale: int) -> np.ndarray:
    """MATLAB's antialiased bicubic downscaling: (H, W, C) uint8 -> (H / scale, W / scale, C) uint8.

    H and W must be multiples of ``scale``. Of MATLAB's variants this is the one of BasicSR's own script: computed in
    floating point and rounded once, the image reflected at its borders (benchmarks/README.md has the others).
    """
    lr = imresize(hr.astype(np.float32) / 255, 1 / scale)
    return (lr * 255).round().clip(0, 255).astype(np.uint8)


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
