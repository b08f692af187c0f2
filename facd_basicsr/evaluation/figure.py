"""Crops side by side."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MARGIN = 6
TEXT_HEIGHT = 34


def largest_error(error: np.ndarray, size: int) -> tuple[int, int]:
    """Top and left of the ``size`` x ``size`` window with the largest sum of ``error``, (H, W)."""
    integral = np.pad(error.astype(np.float64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    sums = integral[size:, size:] - integral[:-size, size:] - integral[size:, :-size] + integral[:-size, :-size]
    top, left = np.unravel_index(sums.argmax(), sums.shape)
    return int(top), int(left)


def side_by_side(rows: Sequence[Sequence[tuple[str, np.ndarray]]], zoom: int) -> Image.Image:
    """A grid of captioned crops.

    Args:
        rows: for each row its (caption, BGR uint8 (S, S, 3)) crops; captions may have two lines.
        zoom: pixels of the picture for each pixel of a crop, without smoothing.

    Returns:
        An RGB picture.
    """
    side = rows[0][0][1].shape[0] * zoom
    width = MARGIN + (side + MARGIN) * len(rows[0])
    height = MARGIN + (side + TEXT_HEIGHT + MARGIN) * len(rows)
    picture = Image.new('RGB', (width, height), 'white')
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(13)
    for i, row in enumerate(rows):
        for j, (caption, crop) in enumerate(row):
            x, y = MARGIN + j * (side + MARGIN), MARGIN + i * (side + TEXT_HEIGHT + MARGIN)
            enlarged = Image.fromarray(np.ascontiguousarray(crop[:, :, ::-1])).resize((side, side), Image.NEAREST)
            picture.paste(enlarged, (x, y))
            draw.multiline_text((x, y + side + 1), caption, fill='black', font=font, spacing=1)
    return picture
