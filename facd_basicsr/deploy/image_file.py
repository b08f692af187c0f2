"""Image files as ``facd upscale`` writes them: PNG, JPEG and WebP."""

import io
import struct
import zlib
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

from facd_basicsr.data.images import eight_bits, without_alpha
from facd_basicsr.errors import UserError

FORMATS = {'.png': 'PNG', '.jpg': 'JPEG', '.jpeg': 'JPEG', '.webp': 'WebP'}  # by suffix
LONGEST = {'PNG': 2**31 - 1, 'JPEG': 65500, 'WebP': 16383}  # pixels of a side
JPEG = {'quality': 95, 'subsampling': 0}  # no colours at half the size
WEBP = {'lossless': True, 'exact': True}  # exact: also the colours of transparent pixels
PNG_START = b'\x89PNG\r\n\x1a\n'
PNG_KINDS = {1: 0, 2: 4, 3: 2, 4: 6}  # PNG's number of the kind of image, by its channels
BLOCK = 2**22  # bytes of pixels that are compressed at a time; a PNG's chunk has less than 2**31
UP = 2  # PNG's number of the filter that leaves what differs from the row above


def check_size(height: int, width: int, suffix: str, where: str) -> None:
    """
    Raises:
        UserError: the format, by its suffix, has no images as large.
    """
    name = FORMATS[suffix]
    if max(height, width) > LONGEST[name]:
        raise UserError(f'{where}: {width}x{height} pixels; accepted by {name}: {LONGEST[name]} a side; PNG takes more')


def encoded(pixels: np.ndarray, profile: bytes | None, suffix: str) -> tuple[Iterable[bytes | memoryview], list[str]]:
    """A file's content: lossless PNG or WebP, or JPEG.

    Args:
        pixels: as of :func:`facd_basicsr.data.images.read_pixels`, upright.
        profile: the ICC profile; None: none.
        suffix: one of ``FORMATS``.

    Returns:
        The content in parts, of which a PNG's are made one by one, and what the format could not keep of the image, a
        sentence each.
    """
    name = FORMATS[suffix]
    if name == 'PNG':
        return _png(pixels, profile), []
    lost = [] if pixels.dtype == np.uint8 else [f'{name} has 8 bits a channel: rounded from 16']
    pixels = eight_bits(pixels)
    if name == 'JPEG':
        colours, alpha = without_alpha(pixels)
        if alpha is not None and alpha.min() < 255:
            lost.append('JPEG has no transparency: laid on white')
            colours = _on_white(colours, alpha)
        pixels = colours
    buffer = io.BytesIO()
    # Pillow: gray is (H, W), and makes colours of it where the format has no gray
    Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)).save(
        buffer, name, icc_profile=profile, **(JPEG if name == 'JPEG' else WEBP)
    )
    return [buffer.getbuffer()], lost


def _on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 1 or 3) and (H, W, 1) -> uint8 as colours."""
    opacity = alpha.astype(np.float32) / 255
    return (colours * opacity + 255 * (1 - opacity)).round().astype(np.uint8)


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
