"""Image files of every kind, as they are and as the 8-bit BGR that training reads."""

import importlib.resources
import io
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageFile

from facd_basicsr.errors import UserError, one_line, reraise
from facd_basicsr.files.atomic import atomic_write

IMAGE_SUFFIXES = {'.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp'}
# what Pillow raises for damaged files, according to where the damage is
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def read_bgr(path: Path) -> np.ndarray:
    """An image file, or the first frame of it, as BGR uint8 (H, W, 3), turned as its EXIF orientation says.

    Gray and 1-bit become three equal channels, a palette its colors, CMYK Pillow's RGB; 16 bits are rounded to 8.

    Raises:
        UserError: as :func:`read_pixels`, or it has transparent pixels.
    """
    pixels, _ = read_pixels(path)
    colors, alpha = without_alpha(eight_bits(pixels))
    if alpha is not None and alpha.min() < 255:
        raise UserError(f'{path}: has transparent pixels; accepted: opaque images')
    return np.ascontiguousarray(np.broadcast_to(colors, (*colors.shape[:2], 3))[:, :, ::-1])


def read_pixels(path: Path) -> tuple[np.ndarray, bytes | None]:
    """An image file, or the first frame of it, with all its channels and bits, turned as its EXIF orientation says.

    Returns:
        Gray, gray and alpha, RGB or RGBA: uint8 or uint16 (H, W, 1 to 4). 1-bit is gray, a palette its colors, CMYK
        Pillow's RGB. And the ICC profile; None without, or if it is of other channels, as a CMYK image's.

    Raises:
        UserError: the file is missing, empty, cut short, damaged, no image, or has more than 16 bits a channel.
    """
    # Pillow, as cv2 fills what a file that was cut short lacks with gray and does not say so
    with reraise_damaged(path):
        with Image.open(path) as image:
            if image.format == 'PNG':
                image.verify()  # the checksum of every chunk, which decoding does not look at
        with Image.open(path) as image:
            deep, gray = _is_deep(image), _has_brightness_only(image)
            image.load()
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            if deep:  # Pillow drops the low byte of 16-bit colors
                pixels = _sixteen_bit(path, gray, image.info.get('transparency'))
            else:
                mode = ('L' if gray else 'RGB') + 'A' * image.has_transparency_data
                pixels = np.atleast_3d(np.asarray(image.convert(mode)))
            profile = image.info.get('icc_profile')
    if profile is not None and profile[16:20] != (b'GRAY' if gray else b'RGB '):
        profile = None
    return _turned(pixels, orientation), profile


def photograph(name: str) -> np.ndarray:
    """A photograph in ``skimage/data`` of scikit-image's wheel, BGR uint8 (H, W, 3); gray as three equal channels.

    Raises:
        UserError: scikit-image is not installed, or its package lacks the file, as some distributions' does.
    """
    try:
        return read_bgr(Path(str(importlib.resources.files('skimage') / 'data' / name)))
    except (ModuleNotFoundError, UserError) as error:
        raise UserError(
            f'scikit-image: no photograph {name} ({one_line(error)}); accepted: scikit-image by pip, which has it'
        ) from error


def eight_bits(pixels: np.ndarray) -> np.ndarray:
    """uint8 as it is, uint16 rounded to uint8."""
    return pixels if pixels.dtype == np.uint8 else ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def without_alpha(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """(H, W, 1 to 4) -> gray (H, W, 1) or RGB (H, W, 3), and alpha (H, W, 1) or None."""
    channels = pixels.shape[2]
    return (pixels, None) if channels % 2 else (pixels[:, :, : channels - 1], pixels[:, :, channels - 1 :])


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) by the file's header, turned as the EXIF orientation says, but of PNG.

    Raises:
        UserError: the file is missing, empty or no image.
    """
    with reraise_damaged(path), Image.open(path) as image:
        # of a PNG Pillow would decode all to look for EXIF
        lying = image.format in ('JPEG', 'MPO', 'WEBP') and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return (image.width, image.height) if lying else (image.height, image.width)


def pixels_nbytes(path: Path) -> tuple[int, int, bool]:
    """By the file's header: bytes of what :func:`read_pixels` gives, the most that reading takes, whether of 16 bits.

    Raises:
        UserError: as :func:`image_size`.
    """
    with reraise_damaged(path), Image.open(path) as image:
        deep, channels = _is_deep(image), 1 if _has_brightness_only(image) else 3
        channels += image.mode in ('LA', 'PA', 'RGBA') or image.has_transparency_data
        pixels = image.width * image.height
    own = pixels * channels * (1 + deep)
    return own, 4 * own + 8 * pixels, deep  # Pillow has four bytes a pixel, twice where it converts


def _is_deep(image: ImageFile.ImageFile) -> bool:
    """Whether it has more than 8 bits a channel, before it is loaded."""
    return image.mode[0] in 'IF' or re.search(r'RGBA?;16|LA;16', str(image.tile)) is not None


def is_gray(file: Path | IO[bytes]) -> bool:
    """Whether an image file has one channel of brightness, with or without transparency, by its header."""
    with Image.open(file) as image:
        return _has_brightness_only(image)


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder by their suffixes, sorted. Hidden files are left out.

    Raises:
        UserError: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise UserError(f'{folder}: no such folder')
    paths = [path for path in folder.iterdir() if _is_named_as_image(path)]
    if not paths:
        raise UserError(f'{folder}: no images; accepted: {", ".join(sorted(IMAGE_SUFFIXES))}')
    return sorted(paths)


def images_below(folder: Path) -> list[Path]:
    """As :func:`images_in`, with those of its folders and theirs, but for hidden ones and links. May be none."""
    folders = [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink() and path.name[0] != '.']
    own = [path for path in folder.iterdir() if path not in folders and _is_named_as_image(path)]
    return sorted([*own, *(path for inner in folders for path in images_below(inner))])


def _is_named_as_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != '.'


def write_png(path: Path, image: np.ndarray) -> None:
    """Writes BGR uint8 (H, W, 3), atomically."""
    atomic_write(path, cv2.imencode('.png', image)[1].tobytes())


def reraise_damaged(path: Path) -> AbstractContextManager[None]:
    """Turns what Pillow says about a damaged file into a :class:`UserError` that names it."""

    def translated(error: Exception) -> UserError:
        if isinstance(error, FileNotFoundError):
            return UserError(f'{path}: no such file')
        empty = path.is_file() and path.stat().st_size == 0
        return UserError(f'{path}: not a readable image ({"the file is empty" if empty else one_line(error)})')

    return reraise((FileNotFoundError, *DAMAGED), translated)


def _has_brightness_only(image: ImageFile.ImageFile) -> bool:
    """Of an image that is not loaded yet. Gray and alpha of 16 bits are RGBA to Pillow."""
    one_channel = len(image.getbands()) == 1 and image.mode != 'P'
    return one_channel or image.mode == 'LA' or 'LA;16' in str(image.tile)


def _sixteen_bit(path: Path, gray: bool, transparent: int | tuple[int, int, int] | None) -> np.ndarray:
    """uint16 (H, W, 1 to 4) of a file with 16 bits a channel, one value of which may stand for transparency."""
    try:
        pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:  # of images with too many pixels
        raise UserError(f'{path}: OpenCV does not decode it ({one_line(error)})') from error
    if pixels is None or pixels.dtype != np.uint16:
        found = 'not decoded' if pixels is None else pixels.dtype
        raise UserError(f'{path}: {found}; accepted: integers of 8 or 16 bits a channel')
    if pixels.ndim == 2 and transparent is not None:  # of colors cv2 makes the alpha channel itself
        return np.dstack([pixels, np.where(pixels == transparent, 0, 65535).astype(np.uint16)])
    if pixels.ndim == 2:
        return pixels[:, :, None]
    # of gray and alpha cv2 makes four channels, three of them gray
    return np.dstack([pixels[:, :, 2:3] if gray else pixels[:, :, 2::-1], pixels[:, :, 3:]])


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """An image (H, W, C) upright, by its EXIF orientation, 1 to 8; others are taken for 1."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


IMAGE_FORMATS = {'.png': 'PNG', '.jpg': 'JPEG', '.jpeg': 'JPEG', '.webp': 'WebP'}  # by suffix
LONGEST = {'PNG': 2**31 - 1, 'JPEG': 65500, 'WebP': 16383}  # pixels of a side
JPEG = {'quality': 95, 'subsampling': 0}  # no colors at half the size
WEBP = {'lossless': True, 'exact': True}  # exact: also the colors of transparent pixels
PNG_START = b'\x89PNG\r\n\x1a\n'
PNG_KINDS = {1: 0, 2: 4, 3: 2, 4: 6}  # PNG's number of the kind of image, by its channels
BLOCK = 2**22  # bytes of pixels that are compressed at a time; a PNG's chunk has less than 2**31
UP = 2  # PNG's number of the filter that leaves what differs from the row above


def check_size(height: int, width: int, suffix: str, where: str) -> None:
    """
    Raises:
        UserError: the format, by its suffix, has no images as large.
    """
    name = IMAGE_FORMATS[suffix]
    if max(height, width) > LONGEST[name]:
        raise UserError(f'{where}: {width}x{height} pixels; accepted by {name}: {LONGEST[name]} a side; PNG takes more')


def encoded(pixels: np.ndarray, profile: bytes | None, suffix: str) -> tuple[Iterable[bytes | memoryview], list[str]]:
    """A file's content: lossless PNG or WebP, or JPEG.

    Args:
        pixels: as of :func:`facd_basicsr.files.images.read_pixels`, upright.
        suffix: one of ``IMAGE_FORMATS``.

    Returns:
        The content in parts, of which a PNG's are made one by one, and what the format could not keep of the image, a
        sentence each.
    """
    name = IMAGE_FORMATS[suffix]
    if name == 'PNG':
        return _png(pixels, profile), []
    lost = [] if pixels.dtype == np.uint8 else [f'{name} has 8 bits a channel: rounded from 16']
    pixels = eight_bits(pixels)
    if name == 'JPEG':
        colors, alpha = without_alpha(pixels)
        if alpha is not None and alpha.min() < 255:
            lost.append('JPEG has no transparency: laid on white')
            colors = np.stack([_on_white(*rows) for rows in zip(colors, alpha)])
        pixels = colors
    if name == 'WebP' and pixels.shape[2] < 3 and profile is not None:
        profile = None
        lost.append('WebP has no gray: written in colors, without its color profile')
    buffer = io.BytesIO()
    # Pillow: gray is (H, W), and makes colors of it where the format has no gray
    Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)).save(
        buffer, name, icc_profile=profile, **(JPEG if name == 'JPEG' else WEBP)
    )
    return [buffer.getbuffer()], lost


def _on_white(colors: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """A row, (W, C) and (W, 1) uint8 -> (W, C) uint8: of an image float32 would be the most that a file takes."""
    opacity = alpha.astype(np.float32) / 255
    return (colors * opacity + 255 * (1 - opacity)).round().astype(np.uint8)


def encoding_nbytes(output: int, suffix: str, deep: bool) -> int:
    """The most that an image of so many bytes takes while :func:`encoded` makes a file of it, itself included."""
    times = {'PNG': 1.0, 'JPEG': 5.0 if deep else 3.0, 'WebP': 8.0}[IMAGE_FORMATS[suffix]]
    return int(times * output) + 6 * BLOCK


def _png(pixels: np.ndarray, profile: bytes | None) -> Iterator[bytes]:
    """Of all channels and both depths; neither Pillow nor cv2 writes 16 bits of all of them, or cv2 a profile.

    https://www.w3.org/TR/png-3/
    """
    height, width, channels = pixels.shape
    depth, length = 8 * pixels.itemsize, width * channels * pixels.itemsize
    header = struct.pack('>IIBBBBB', width, height, depth, PNG_KINDS[channels], 0, 0, 0)
    yield PNG_START + _chunk(b'IHDR', header)
    if profile is not None:
        yield _chunk(b'iCCP', b'ICC profile\0\0' + zlib.compress(profile))
    compressor = zlib.compressobj()
    above = np.zeros(length, np.uint8)
    at_once = max(1, BLOCK // length)
    for first in range(0, height, at_once):
        block = np.ascontiguousarray(pixels[first : first + at_once], pixels.dtype.newbyteorder('>'))
        rows = block.view(np.uint8).reshape(-1, length)
        filtered = np.empty((len(rows), 1 + length), np.uint8)
        filtered[:, 0] = UP
        np.subtract(rows[0], above, out=filtered[0, 1:])  # modulo 256, as PNG has it
        np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
        above = rows[-1]
        content = compressor.compress(filtered.data)
        if content:  # of what compresses well it may keep all for later
            yield _chunk(b'IDAT', content)
    yield _chunk(b'IDAT', compressor.flush()) + _chunk(b'IEND', b'')


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))
