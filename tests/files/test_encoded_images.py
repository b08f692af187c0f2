import io
import tracemalloc

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from facd_basicsr.errors import UserError
from facd_basicsr.files import images
from facd_basicsr.files.images import check_size, encoded, encoding_nbytes, read_pixels

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()


def content_of(pixels: np.ndarray, profile: bytes | None, suffix: str) -> bytes:
    return b''.join(encoded(pixels, profile, suffix)[0])


def noise(channels: int, dtype: type = np.uint8) -> np.ndarray:
    top = np.iinfo(dtype).max
    return np.random.default_rng(channels).integers(0, top, (13, 17, channels), dtype, endpoint=True)


@pytest.mark.parametrize('channels', [1, 2, 3, 4])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_a_png_has_every_bit_and_channel_and_the_profile(tmp_path, channels, dtype):
    pixels, profile = noise(channels, dtype), SRGB if channels > 2 else None
    pixels = np.asfortranarray(pixels)  # of any layout in memory
    content, lost = encoded(pixels, profile, '.png')
    (tmp_path / 'a.png').write_bytes(b''.join(content))
    read, found = read_pixels(tmp_path / 'a.png')
    assert np.array_equal(read, pixels) and read.dtype == dtype and found == profile and lost == []


def test_another_programs_reader_agrees_on_the_png():
    for channels, dtype in ((1, np.uint8), (3, np.uint8), (4, np.uint8), (1, np.uint16), (3, np.uint16)):
        pixels = noise(channels, dtype)
        content = np.frombuffer(content_of(pixels, SRGB, '.png'), np.uint8)
        read = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
        order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]
        assert np.array_equal(read.reshape(13, 17, channels)[:, :, order], pixels)
    with Image.open(io.BytesIO(content_of(noise(2), None, '.png'))) as image:
        assert image.mode == 'LA' and np.array_equal(np.asarray(image), noise(2))


@pytest.mark.parametrize('block', [1, 120, 10**6])  # bytes: a row has 102
def test_a_png_is_the_same_image_in_blocks_of_any_number_of_rows(tmp_path, monkeypatch, block):
    monkeypatch.setattr(images, 'BLOCK', block)
    pixels = noise(3, np.uint16)
    (tmp_path / 'a.png').write_bytes(content_of(pixels, None, '.png'))
    assert np.array_equal(read_pixels(tmp_path / 'a.png')[0], pixels)


def test_large_pngs_are_of_chunks_that_take_no_more_memory_than_a_few_blocks(monkeypatch):
    monkeypatch.setattr(images, 'BLOCK', 2**16)
    pixels = np.random.default_rng(0).integers(0, 255, (700, 1000, 3), np.uint8)  # 32 blocks
    parts, _ = encoded(pixels, None, '.png')
    tracemalloc.start()
    lengths = [len(part) for part in parts]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(lengths) > 30 and max(lengths) < 2 * 2**16 and sum(lengths) > 2e6
    assert peak < pixels.nbytes / 2  # 268 kB are zlib's


@pytest.mark.parametrize('channels', [3, 4])
def test_webp_is_lossless_under_transparent_pixels_too(tmp_path, channels):
    content, lost = encoded(noise(channels), SRGB, '.webp')
    (tmp_path / 'a.webp').write_bytes(b''.join(content))
    read, profile = read_pixels(tmp_path / 'a.webp')
    assert np.array_equal(read, noise(channels)) and profile == SRGB and lost == []


@pytest.mark.parametrize(('channels', 'mode'), [(1, 'L'), (2, 'L'), (3, 'RGB'), (4, 'RGB')])
def test_jpeg_is_gray_or_colours_with_the_profile(channels, mode):
    pixels = np.full((16, 16, channels), 200, np.uint8)
    pixels[:, :, -1] = 255 if channels % 2 == 0 else 200
    content, lost = encoded(pixels, SRGB, '.jpg')
    with Image.open(io.BytesIO(b''.join(content))) as image:
        assert image.mode == mode and image.info['icc_profile'] == SRGB and lost == []
        assert np.abs(np.asarray(image).astype(int) - 200).max() <= 1


def test_what_a_format_cannot_keep_is_said():
    pixels = np.full((16, 16, 4), 0, np.uint16)
    pixels[:, :, 3] = 32896  # 128 of 255
    content, lost = encoded(pixels, None, '.jpg')
    assert lost == ['JPEG has 8 bits a channel: rounded from 16', 'JPEG has no transparency: laid on white']
    with Image.open(io.BytesIO(b''.join(content))) as image:
        assert np.abs(np.asarray(image).astype(int) - 127).max() <= 1
    assert encoded(pixels, None, '.webp')[1] == ['WebP has 8 bits a channel: rounded from 16']


def test_a_gray_image_is_in_colors_in_webp_which_its_profile_is_not_of():
    content, lost = encoded(noise(1), b'of gray', '.webp')
    assert lost == ['WebP has no gray: written in colors, without its color profile']
    with Image.open(io.BytesIO(b''.join(content))) as image:
        assert image.mode == 'RGB' and 'icc_profile' not in image.info
    assert encoded(noise(1), None, '.webp')[1] == []


def test_a_transparent_jpeg_takes_no_more_memory_than_is_counted():
    pixels = np.full((2000, 2000, 4), 100, np.uint8)
    tracemalloc.start()
    encoded(pixels, None, '.jpg')
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert pixels.nbytes + peak < encoding_nbytes(pixels.nbytes, '.jpg', deep=False)


def test_an_image_that_is_too_large_for_its_format_is_refused():
    check_size(16383, 16383, '.webp', 'a.png')
    check_size(70000, 10, '.png', 'a.png')
    with pytest.raises(UserError, match=r'a\.png: 16384x9 pixels; accepted by WebP: 16383 a side; PNG takes more'):
        check_size(9, 16384, '.webp', 'a.png')
