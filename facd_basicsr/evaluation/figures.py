"""The paper's figures: captioned grids, crops side by side, and where the teacher loses to the student."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from facd_basicsr.errors import UserError
from facd_basicsr.evaluation.methods import BICUBIC, Method, is_teacher
from facd_basicsr.evaluation.test_sets import ImagePair
from facd_basicsr.losses.image import indicator
from facd_basicsr.losses.pairwise import sample_l1
from facd_basicsr.runtime.metrics import as_input, luma, psnr

PANEL_MARGIN = 6
FONT_SIZE = 13
LINE_HEIGHT = 16
RED, YELLOW = (255, 40, 40), (255, 230, 0)  # RGB

Box = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom are outside


def window_sums(error: np.ndarray, size: int) -> np.ndarray:
    """Sum of each ``size`` x ``size`` window of ``error``: (H, W) -> (H - size + 1, W - size + 1), by top and left."""
    integral = np.pad(error.astype(np.float64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    return integral[size:, size:] - integral[:-size, size:] - integral[size:, :-size] + integral[:-size, :-size]


def enlarge(image: np.ndarray, zoom: int) -> Image.Image:
    """BGR uint8 (H, W, 3) -> RGB picture of (W * zoom) x (H * zoom) pixels, without smoothing."""
    return as_picture(image).resize((image.shape[1] * zoom, image.shape[0] * zoom), Image.Resampling.NEAREST)


def as_picture(image: np.ndarray) -> Image.Image:
    """BGR uint8 (H, W, 3) -> RGB picture."""
    return Image.fromarray(np.ascontiguousarray(image[:, :, ::-1]))


def grid(rows: Sequence[Sequence[tuple[str, Image.Image]]]) -> Image.Image:
    """Rows of (caption, picture) as one RGB picture. Captions stand below and are broken to their column's width."""
    font = ImageFont.load_default(FONT_SIZE)
    columns = max(map(len, rows))
    widths = [max(row[j][1].width for row in rows if j < len(row)) for j in range(columns)]
    lines = [[_broken(caption, font, width) for (caption, _), width in zip(row, widths)] for row in rows]
    heights = [
        max(picture.height + len(caption) * LINE_HEIGHT for (_, picture), caption in zip(row, captions))
        for row, captions in zip(rows, lines)
    ]
    size = (sum(widths) + PANEL_MARGIN * (columns + 1), sum(heights) + PANEL_MARGIN * (len(rows) + 1))
    result = Image.new('RGB', size, 'white')
    draw = ImageDraw.Draw(result)
    y = PANEL_MARGIN
    for row, captions, height in zip(rows, lines, heights):
        x = PANEL_MARGIN
        for (_, picture), caption, width in zip(row, captions, widths):
            result.paste(picture, (x, y))
            for number, line in enumerate(caption):
                draw.text((x, y + picture.height + number * LINE_HEIGHT), line, fill='black', font=font)
            x += width + PANEL_MARGIN
        y += height + PANEL_MARGIN
    return result


def _broken(caption: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """The caption's lines, those that are too wide broken where they reach ``width`` pixels."""
    lines = []
    for line in caption.split('\n'):
        start = 0
        for end in range(1, len(line) + 1):
            if end > start + 1 and font.getlength(line[start:end]) > width:
                lines.append(line[start : end - 1])
                start = end - 1
        lines.append(line[start:])
    return lines


def marked(image: np.ndarray, box: Box, fit: tuple[int, int]) -> Image.Image:
    """A whole image, BGR uint8 (H, W, 3), with an outlined window, as an RGB picture.

    Args:
        fit: largest width and height of the picture; a larger image is made smaller, smoothly.
    """
    picture = as_picture(image)
    picture.thumbnail(fit, Image.Resampling.LANCZOS)
    left, top, right, bottom = (round(edge * picture.width / image.shape[1]) for edge in box)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((left - 1, top - 1, right, bottom), None, 'black')  # the outline shows on any color
    draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), None, YELLOW, width=2)
    return picture


def tinted(image: np.ndarray, boxes: Iterable[Box]) -> np.ndarray:
    """The image with windows half red: BGR uint8 (H, W, 3), both ways."""
    result = image.copy()
    for left, top, right, bottom in boxes:
        window = result[top:bottom, left:right]
        window[:] = (window.astype(np.uint16) + np.array(RED[::-1], np.uint16)) // 2
    return result


T = TypeVar('T')


@dataclass(frozen=True)
class Crop:
    """A square window of an image, in pixels of GT."""

    pair: ImagePair
    left: int
    top: int
    size: int

    @property
    def box(self) -> Box:
        return self.left, self.top, self.left + self.size, self.top + self.size

    def of(self, image: np.ndarray) -> np.ndarray:
        """(H, W, C) -> (size, size, C)."""
        return image[self.top : self.top + self.size, self.left : self.left + self.size]


def error_map(sr: np.ndarray, crop: Crop, top: float) -> np.ndarray:
    """The absolute error of a crop in Y: BGR uint8 (size, size, 3), from black for 0 to the brightest for ``top``.

    Args:
        sr: the whole image, BGR uint8 (H, W, 3).
        top: in 8-bit levels; larger errors are as bright.
    """
    levels = (absolute_error(sr, crop) * (255 / max(top, 1e-6))).clip(0, 255)
    return cv2.applyColorMap(levels.round().astype(np.uint8), cv2.COLORMAP_INFERNO)


def absolute_error(sr: np.ndarray, crop: Crop) -> np.ndarray:
    """|Y of SR - Y of GT| of a crop in 8-bit levels, (size, size)."""
    return np.abs(crop.of(luma(sr)) - crop.of(luma(crop.pair.gt)))


def crop_psnr(sr: np.ndarray, crop: Crop) -> float:
    """PSNR-Y in dB of the crop alone, without border: "calculated only by consideration of cropped images".

    Args:
        sr: the whole image, BGR uint8 (H, W, 3).
    """
    return psnr(*(crop.of(luma(image)) for image in (sr, crop.pair.gt)))


def chosen_crop(pair: ImagePair, left: int, top: int, size: int) -> Crop:
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


def find_crops(methods: Sequence[Method], images: Iterable[ImagePair], size: int, count: int) -> list[Crop]:
    """The windows in which the methods differ most, each from another image as long as there are images.

    The difference in a window is the largest minus the smallest, over the methods, of its mean squared error in Y.
    Students are compared with each other; a single one with bicubic, and without one bicubic with the teacher.
    Windows that touch the border of ``scale`` pixels, which no metric reads, and windows that overlap a chosen one
    are left out. Of equal windows the first is taken, so the same images give the same crops.

    Args:
        images: where to look; images too small for a window are skipped.
        size: side of the windows in pixels of GT.
        count: how many windows; fewer come back where there is no room for more.

    Raises:
        UserError: no image is large enough.
    """
    students = [method for method in methods if method.name != BICUBIC and not is_teacher(method.name)]
    others = [method for method in methods if method.name == BICUBIC or is_teacher(method.name)]
    compared = students if len(students) > 1 else [*students, *others[: 2 - len(students)]]
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
    outputs: Sequence[np.ndarray], pair: ImagePair, border: int, size: int, count: int
) -> list[tuple[float, Crop]]:
    """(difference, window) of up to ``count`` windows that do not overlap, the largest difference first.

    Args:
        outputs: what is compared: the upscaled LQ, BGR uint8 (H, W, 3) each.
        pair: of an image with room for a window.
        border: pixels that are left out at each side.
        size: side of the windows in pixels of GT.
    """
    gt = luma(pair.gt)
    errors = [(luma(sr) - gt) ** 2 for sr in outputs]
    inside = np.s_[border:-border, border:-border]
    sums = np.stack([window_sums(error[inside], size) for error in errors])
    spread = (sums.max(0) - sums.min(0)) / size**2  # (H - 2 * border - size + 1, W - 2 * border - size + 1)
    windows: list[tuple[float, Crop]] = []
    while len(windows) < count and spread.max() >= 0:
        top, left = (int(index) for index in np.unravel_index(spread.argmax(), spread.shape))
        windows.append((float(spread[top, left]), Crop(pair, left + border, top + border, size)))
        spread[max(0, top - size + 1) : top + size, max(0, left - size + 1) : left + size] = -1
    return windows


@dataclass(frozen=True)
class TeacherMap:
    """One image's patches, by equation (1).

    Attributes:
        pair: the image.
        boxes: the patches in pixels of GT, row by row.
        loses: for each patch, whether the teacher's error is larger than the student's (alpha = 0).
        student_error, teacher_error: for each patch the mean absolute error to GT, in 8-bit levels.
    """

    pair: ImagePair
    boxes: list[Box]
    loses: np.ndarray
    student_error: np.ndarray
    teacher_error: np.ndarray

    @property
    def share(self) -> float:
        """Share of the patches in which the teacher loses, 0 to 1; NaN if the image is smaller than a patch."""
        return float(self.loses.mean()) if self.boxes else float('nan')

    def lost(self) -> list[Box]:
        """The patches in which the teacher loses."""
        return [box for box, loses in zip(self.boxes, self.loses) if loses]

    def worst(self) -> int:
        """Index of the patch in which the teacher is furthest behind the student."""
        return int((self.teacher_error - self.student_error).argmax())


def teacher_map(student: Method, teacher: Method, pair: ImagePair, patch: int) -> TeacherMap:
    """Equation (1) on every patch of an image, by the loss's own indicator, on outputs that are not clamped.

    Student and teacher upscale the whole image, as a user's would; in training they see each patch alone. Patches
    do not overlap; what is left at the right and bottom is not counted.

    Args:
        patch: side of a patch in pixels of LQ.
    """
    gt_size = patch * student.scale
    gt = as_input(pair.gt)
    height, width = (length // gt_size * gt_size for length in gt.shape[2:])
    boxes = [
        (left, top, left + gt_size, top + gt_size)
        for top in range(0, height, gt_size)
        for left in range(0, width, gt_size)
    ]
    if not boxes:
        return TeacherMap(pair, [], np.zeros(0, bool), np.zeros(0), np.zeros(0))
    images = (student.output(pair.lq).cpu(), teacher.output(pair.lq).cpu(), gt)
    sr_s, sr_t, gt_patches = (
        torch.cat([image[:, :, top:bottom, left:right] for left, top, right, bottom in boxes]) for image in images
    )  # (1, C, H, W) -> (N, C, gt_size, gt_size) each
    loses = indicator(sr_s, sr_t, gt_patches) == 0  # (N,)
    student_error, teacher_error = (255 * sample_l1(sr, gt_patches) for sr in (sr_s, sr_t))  # (N,), (N,)
    return TeacherMap(pair, boxes, loses.numpy(), student_error.numpy(), teacher_error.numpy())
