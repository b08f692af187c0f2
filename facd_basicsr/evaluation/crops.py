"""Crops that show what methods differ in: Figure 4 of the paper."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from basicsr.metrics import calculate_psnr

from facd_basicsr.errors import UserError
from facd_basicsr.evaluation.benchmark_sets import Pair
from facd_basicsr.evaluation.figure import window_sums
from facd_basicsr.evaluation.methods import BICUBIC, TEACHER, Method
from facd_basicsr.evaluation.quality import luma

T = TypeVar('T')


@dataclass(frozen=True)
class Crop:
    """A square window of an image, in pixels of GT."""

    pair: Pair
    left: int
    top: int
    size: int

    def of(self, image: np.ndarray) -> np.ndarray:
        """(H, W, C) -> (size, size, C)."""
        return image[self.top : self.top + self.size, self.left : self.left + self.size]


def crop_psnr(sr: np.ndarray, crop: Crop) -> float:
    """PSNR-Y in dB of the crop alone, without border: "calculated only by consideration of cropped images".

    Args:
        sr: the whole image, BGR uint8 (H, W, 3).
        crop: the window.
    """
    return calculate_psnr(*(crop.of(luma(image, crop.pair.gray)) for image in (sr, crop.pair.gt)), crop_border=0)


def chosen_crop(pair: Pair, left: int, top: int, size: int) -> Crop:
    """The window that a user names.

    Raises:
        UserError: it is not inside the image.
    """
    height, width = pair.gt.shape[:2]
    if size < 1 or not (0 <= left <= width - size and 0 <= top <= height - size):
        raise UserError(
            f'--crop: {left} {top} {size} (left, top, size) is not inside {pair.set}/{pair.image}; accepted: a window '
            f'of its {width}x{height} pixels (width x height)'
        )
    return Crop(pair, left, top, size)


def find_crops(methods: Sequence[Method], images: Iterable[Pair], size: int, count: int) -> list[Crop]:
    """The windows in which the methods differ most, each from another image as long as there are images.

    The difference in a window is the largest minus the smallest, over the methods, of its mean squared error in Y.
    Students are compared with each other; a single one with bicubic, and without one bicubic with the teacher.
    Windows that touch the border of ``scale`` pixels, which no metric reads, and windows that overlap a chosen one
    are left out. Of equal windows the first is taken, so the same images give the same crops.

    Args:
        methods: what is compared.
        images: where to look; images too small for a window are passed over.
        size: side of the windows in pixels of GT.
        count: how many windows; fewer come back where there is no room for more.

    Raises:
        UserError: no image is large enough.
    """
    students = [method for method in methods if method.name not in (BICUBIC, TEACHER)]
    compared = students if len(students) > 1 else [method for method in methods if method.name != TEACHER]
    by_image: list[list[tuple[float, Crop]]] = []
    border = methods[0].scale
    for pair in images:
        if min(pair.gt.shape[:2]) >= size + 2 * border:
            outputs = [method.upscale(pair.lq) for method in compared]
            by_image.append(differing_windows(outputs, pair, border, size, count))
    if not by_image:
        raise UserError(f'--size: {size}; accepted: a window that fits into an image without {border} pixels of border')
    return best_of(by_image, count)


def best_of(by_image: Sequence[Sequence[tuple[float, T]]], count: int) -> list[T]:
    """Up to ``count`` of what has a difference: every image's first by their differences, then every one's second."""
    found: list[T] = []
    for turn in range(count):
        windows = [windows[turn] for windows in by_image if turn < len(windows)]
        found += [window for _, window in sorted(windows, key=lambda window: -window[0])]
    return found[:count]


def differing_windows(
    outputs: Sequence[np.ndarray], pair: Pair, border: int, size: int, count: int
) -> list[tuple[float, Crop]]:
    """(difference, window) of up to ``count`` windows that do not overlap, the largest difference first.

    Args:
        outputs: what is compared: the upscaled LQ, BGR uint8 (H, W, 3) each.
        pair: of an image with room for a window.
        border: pixels that are left out at each side.
        size: side of the windows in pixels of GT.
        count: how many windows.
    """
    gt = luma(pair.gt, pair.gray)[..., 0]
    errors = [(luma(sr, pair.gray)[..., 0] - gt) ** 2 for sr in outputs]
    inside = np.s_[border:-border, border:-border]
    sums = np.stack([window_sums(error[inside], size) for error in errors])
    spread = (sums.max(0) - sums.min(0)) / size**2  # (H - 2 * border - size + 1, W - 2 * border - size + 1)
    windows: list[tuple[float, Crop]] = []
    while len(windows) < count and spread.max() >= 0:
        top, left = (int(index) for index in np.unravel_index(spread.argmax(), spread.shape))
        windows.append((float(spread[top, left]), Crop(pair, left + border, top + border, size)))
        spread[max(0, top - size + 1) : top + size, max(0, left - size + 1) : left + size] = -1
    return windows
