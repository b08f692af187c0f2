"""The crops of a page: where a student and bicubic differ most, with what every method makes of them."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from facd_basicsr.evaluation.benchmark_sets import Pair
from facd_basicsr.evaluation.crops import Crop, best_of, crop_psnr, differing_windows
from facd_basicsr.evaluation.figure import as_picture, marked
from facd_basicsr.evaluation.methods import BICUBIC

CROPS = 4
SIZE, LEAST_SIZE = 96, 8  # of a crop in pixels of GT; smaller than the first where an image has no room for it
WHOLE = (240, 160)  # width and height that an image's thumbnail fits in


@dataclass(frozen=True)
class View:
    """A crop as one method has it: the method's name, what is said of it, and the PNG as a data URI."""

    name: str
    caption: str
    image: str


@dataclass(frozen=True)
class ShownCrop:
    """A crop: its image and where in it, a thumbnail of the image with the crop's outline, and all views of it."""

    title: str
    size: int
    whole: str
    views: list[View]


class Gallery:
    """Takes images one by one and has the crops at their end: as :func:`facd_basicsr.evaluation.crops.find_crops`
    chooses, but that no image is kept and none is upscaled again.

    Args:
        student: the name of what is compared with bicubic.
        scale: upscaling factor, and the border that is left out.
    """

    def __init__(self, student: str, scale: int) -> None:
        self._compared, self._scale = (BICUBIC, student), scale
        self._by_image: list[list[tuple[float, ShownCrop]]] = []

    def look(self, pair: Pair, outputs: Mapping[str, np.ndarray]) -> None:
        """Keeps an image's windows if they may be among those that are shown.

        Args:
            pair: the image.
            outputs: by method, the upscaled LQ, BGR uint8 (H, W, 3).
        """
        size = min(SIZE, min(pair.gt.shape[:2]) - 2 * self._scale)
        if size < LEAST_SIZE:
            return
        compared = [outputs[name] for name in self._compared]
        windows = differing_windows(compared, pair, self._scale, size, CROPS)
        if len(self._by_image) == CROPS:  # more images than that show their best window only
            firsts = [image[0][0] for image in self._by_image]
            least = max(index for index, first in enumerate(firsts) if first == min(firsts))
            if windows[0][0] <= firsts[least]:
                return
            del self._by_image[least]
        self._by_image.append([(difference, _shown(crop, outputs)) for difference, crop in windows])

    def crops(self) -> list[ShownCrop]:
        """Up to ``CROPS``; none where all images were too small."""
        return best_of(self._by_image, CROPS)


def _shown(crop: Crop, outputs: Mapping[str, np.ndarray]) -> ShownCrop:
    pair = crop.pair
    box = (crop.left, crop.top, crop.left + crop.size, crop.top + crop.size)
    views = [
        View(name, f'{crop_psnr(sr, crop):.2f} dB', png_uri(as_picture(crop.of(sr)))) for name, sr in outputs.items()
    ]
    views.append(View('HR', 'ground truth', png_uri(as_picture(crop.of(pair.gt)))))
    return ShownCrop(f'{pair.set}/{pair.image}', crop.size, png_uri(marked(pair.gt, box, WHOLE)), views)


def png_uri(picture: Image.Image) -> str:
    """A picture as the ``src`` of an ``img``."""
    buffer = io.BytesIO()
    picture.save(buffer, 'PNG', optimize=True)
    return f'data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}'
