"""Pictures of pictures: captioned grids, crops side by side, marked windows."""

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MARGIN = 6
FONT_SIZE = 13
LINE_HEIGHT = 16
RED, YELLOW = (255, 40, 40), (255, 230, 0)  # RGB

Box = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom are outside


def window_sums(error: np.ndarray, size: int) -> np.ndarray:
    """Sum of each ``size`` x ``size`` window of ``error``: (H, W) -> (H - size + 1, W - size + 1), by top and left."""
    integral = np.pad(error.astype(np.float64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    return integral[size:, size:] - integral[:-size, size:] - integral[size:, :-size] + integral[:-size, :-size]


def largest_error(error: np.ndarray, size: int) -> tuple[int, int]:
    """Top and left of the ``size`` x ``size`` window with the largest sum of ``error``, (H, W)."""
    sums = window_sums(error, size)
    top, left = np.unravel_index(sums.argmax(), sums.shape)
    return int(top), int(left)


def side_by_side(rows: Sequence[Sequence[tuple[str, np.ndarray]]], zoom: int) -> Image.Image:
    """A grid of captioned crops.

    Args:
        rows: for each row its (caption, BGR uint8 (S, S, 3)) crops; captions may have several lines.
        zoom: pixels of the picture for each pixel of a crop, without smoothing.

    Returns:
        An RGB picture.
    """
    return grid([[(caption, enlarge(crop, zoom)) for caption, crop in row] for row in rows])


def enlarge(image: np.ndarray, zoom: int) -> Image.Image:
    """BGR uint8 (H, W, 3) -> RGB picture of (W * zoom) x (H * zoom) pixels, without smoothing."""
    return as_picture(image).resize((image.shape[1] * zoom, image.shape[0] * zoom), Image.Resampling.NEAREST)


def as_picture(image: np.ndarray) -> Image.Image:
    """BGR uint8 (H, W, 3) -> RGB picture."""
    return Image.fromarray(np.ascontiguousarray(image[:, :, ::-1]))


def grid(rows: Sequence[Sequence[tuple[str, Image.Image]]]) -> Image.Image:
    """Captioned pictures in rows and columns. Captions stand below and are broken to their column's width.

    Args:
        rows: for each row its (caption, picture).

    Returns:
        An RGB picture.
    """
    font = ImageFont.load_default(FONT_SIZE)
    columns = max(map(len, rows))
    widths = [max(row[j][1].width for row in rows if j < len(row)) for j in range(columns)]
    lines = [[_broken(caption, font, width) for (caption, _), width in zip(row, widths)] for row in rows]
    heights = [
        max(picture.height + len(caption) * LINE_HEIGHT for (_, picture), caption in zip(row, captions))
        for row, captions in zip(rows, lines)
    ]
    size = (sum(widths) + MARGIN * (columns + 1), sum(heights) + MARGIN * (len(rows) + 1))
    result = Image.new('RGB', size, 'white')
    draw = ImageDraw.Draw(result)
    y = MARGIN
    for row, captions, height in zip(rows, lines, heights):
        x = MARGIN
        for (_, picture), caption, width in zip(row, captions, widths):
            result.paste(picture, (x, y))
            for number, line in enumerate(caption):
                draw.text((x, y + picture.height + number * LINE_HEIGHT), line, fill='black', font=font)
            x += width + MARGIN
        y += height + MARGIN
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
    """A whole image with an outlined window.

    Args:
        image: BGR uint8 (H, W, 3).
        box: the window in its pixels.
        fit: largest width and height of the picture; a larger image is made smaller, smoothly.

    Returns:
        An RGB picture.
    """
    picture = as_picture(image)
    picture.thumbnail(fit, Image.Resampling.LANCZOS)
    left, top, right, bottom = (round(edge * picture.width / image.shape[1]) for edge in box)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((left - 1, top - 1, right, bottom), None, 'black')  # the outline shows on any colour
    draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), None, YELLOW, width=2)
    return picture


def tinted(image: np.ndarray, boxes: Iterable[Box]) -> np.ndarray:
    """The image with windows half red: BGR uint8 (H, W, 3), both ways."""
    result = image.copy()
    for left, top, right, bottom in boxes:
        window = result[top:bottom, left:right]
        window[:] = (window.astype(np.uint16) + np.array(RED[::-1], np.uint16)) // 2
    return result
