"""Image files of every kind as the 8-bit BGR that training reads."""

import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps

from facd_basicsr.errors import UserError

IMAGE_SUFFIXES = {'.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp'}
# what Pillow raises for damaged files, according to where the damage is
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def read_bgr(path: Path) -> np.ndarray:
    """An image file, or the first frame of it, as BGR uint8 (H, W, 3), turned as its EXIF orientation says.

    Gray and 1-bit become three equal channels, a palette its colours, CMYK Pillow's RGB; 16 bits are rounded to 8.

    Raises:
        UserError: the file is missing, empty, cut short, damaged, no image, has transparent pixels or more than 16
            bits a channel.
    """
    # Pillow, as cv2 fills what a file that was cut short lacks with gray and does not say so
    with damage_named(path):
        with Image.open(path) as image:
            if image.format == 'PNG':
                image.verify()  # the checksum of every chunk, which decoding does not look at
        with Image.open(path) as image:
            deep = image.mode[0] in 'IF' or re.search(r'RGBA?;16|LA;16', str(image.tile)) is not None
            image.load()
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            # Pillow drops the low byte of 16-bit colours
            pixels = _sixteen_bit(path) if deep else _eight_bit(image)
        if pixels.shape[2] == 4:
            if pixels[:, :, 3].min() < 255:
                raise UserError(f'{path}: has transparent pixels; accepted: opaque images')
            pixels = pixels[:, :, :3]
    return np.ascontiguousarray(_turned(pixels, orientation)[:, :, ::-1])


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) by the file's header, turned as the EXIF orientation says, but of PNG.

    Raises:
        UserError: the file is missing, empty or no image.
    """
    with damage_named(path), Image.open(path) as image:
        # of a PNG Pillow would decode all to look for EXIF
        lying = image.format in ('JPEG', 'MPO', 'WEBP') and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return (image.width, image.height) if lying else (image.height, image.width)


def is_gray(file: Path | IO[bytes]) -> bool:
    """Whether an image file has one channel of brightness, with or without transparency, by its header."""
    with Image.open(file) as image:
        return image.mode == 'LA' or (len(image.getbands()) == 1 and image.mode != 'P')


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder by their suffixes, sorted. Hidden files are left out.

    Raises:
        UserError: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise UserError(f'{folder}: no such folder')
    paths = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != '.']
    if not paths:
        raise UserError(f'{folder}: no images; accepted: {", ".join(sorted(IMAGE_SUFFIXES))}')
    return sorted(paths)


def write_png(path: Path, image: np.ndarray) -> None:
    """Writes BGR uint8 (H, W, 3), under a temporary name until the file is whole."""
    partial = path.with_name(f'.partial_{path.name}')
    partial.write_bytes(cv2.imencode('.png', image)[1].tobytes())
    partial.replace(path)


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turns what Pillow says about a damaged file into a :class:`UserError` that names it."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f'{path}: no such file') from error
    except DAMAGED as error:
        empty = path.is_file() and path.stat().st_size == 0
        reason = 'the file is empty' if empty else ' '.join(str(error).split())
        raise UserError(f'{path}: not a readable image ({reason})') from error


def _eight_bit(image: Image.Image) -> np.ndarray:
    """RGB or RGBA uint8 (H, W, 3 or 4)."""
    return np.asarray(image.convert('RGBA' if image.has_transparency_data else 'RGB'))


def _sixteen_bit(path: Path) -> np.ndarray:
    """RGB or RGBA uint8 (H, W, 3 or 4) of a file with 16 bits a channel."""
    pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        found = 'not decoded' if pixels is None else pixels.dtype
        raise UserError(f'{path}: {found}; accepted: integers of 8 or 16 bits a channel')
    pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if pixels.ndim == 2:
        return np.dstack([pixels] * 3)
    return np.dstack([pixels[:, :, 2::-1], pixels[:, :, 3:]])


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """An image upright, by its EXIF orientation, 1 to 8."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image.info['exif'] = exif.tobytes()
    return np.asarray(ImageOps.exif_transpose(image))
