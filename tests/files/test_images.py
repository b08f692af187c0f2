import io
import struct
import zlib
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms, ImageOps

from facd_basicsr.errors import UserError
from facd_basicsr.files.images import (
    image_size,
    images_below,
    images_in,
    is_gray,
    photograph,
    read_bgr,
    read_pixels,
    write_png,
)

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def saved(image: Image.Image, path: Path, **how: object) -> np.ndarray:
    image.save(path, **how)
    return read_bgr(path)


def test_a_colour_image_is_bgr(tmp_path):
    rgb = Image.new('RGB', (3, 2), (10, 20, 30))
    assert saved(rgb, tmp_path / 'a.png').shape == (2, 3, 3)
    for suffix in ('png', 'bmp', 'tif'):
        assert (saved(rgb, tmp_path / f'a.{suffix}') == (30, 20, 10)).all()


@pytest.mark.parametrize(('mode', 'value', 'level'), [('L', 77, 77), ('1', 1, 255)])
def test_gray_becomes_three_equal_channels(tmp_path, mode, value, level):
    assert np.array_equal(saved(Image.new(mode, (3, 2), value), tmp_path / 'a.png'), np.full((2, 3, 3), level))


def test_gray_files_are_told_from_coloured_ones(tmp_path):
    for mode, gray in (('1', True), ('L', True), ('LA', True), ('I;16', True), ('P', False), ('RGB', False)):
        Image.new(mode, (4, 4)).save(tmp_path / 'a.png')
        assert is_gray(tmp_path / 'a.png') == gray, mode


def test_a_palette_becomes_its_colors(tmp_path):
    image = Image.new('P', (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    assert saved(image, tmp_path / 'a.png').tolist() == [[[0, 0, 255], [255, 0, 0]]]


@pytest.mark.parametrize(
    ('mode', 'pixel'), [('L', (7,)), ('LA', (7, 9)), ('RGB', (1, 2, 3)), ('RGBA', (1, 2, 3, 4)), ('1', (255,))]
)
def test_pixels_are_read_with_all_channels(tmp_path, mode, pixel):
    Image.new(mode, (3, 2), pixel if len(pixel) > 1 else pixel[0]).save(tmp_path / 'a.png')
    pixels, profile = read_pixels(tmp_path / 'a.png')
    assert pixels.dtype == np.uint8 and np.array_equal(pixels, np.full((2, 3, len(pixel)), pixel)) and profile is None


def test_a_palettes_transparency_is_alpha(tmp_path):
    image = Image.new('P', (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / 'a.png', transparency=1)
    assert read_pixels(tmp_path / 'a.png')[0].tolist() == [[[*RED, 255], [*BLUE, 0]]]


@pytest.mark.parametrize('suffix', ['png', 'tif'])
@pytest.mark.parametrize('channels', [1, 3, 4])
def test_16_bits_of_every_channel_are_read(tmp_path, suffix, channels):
    pixels = np.random.default_rng(0).integers(0, 65536, (4, 5, channels), np.uint16)
    cv2.imwrite(str(tmp_path / f'a.{suffix}'), pixels)
    read, _ = read_pixels(tmp_path / f'a.{suffix}')
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]
    assert read.dtype == np.uint16 and np.array_equal(read, pixels[:, :, order])


@pytest.mark.parametrize(('kind', 'value'), [(0, (300,)), (2, (300, 4, 65535))])  # PNG's numbers of gray and RGB
def test_a_transparent_value_of_16_bits_is_alpha(tmp_path, kind, value):
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack('>I', len(body)) + name + body + struct.pack('>I', zlib.crc32(name + body))

    other = tuple(level ^ 1 for level in value)
    chunks = [
        (b'IHDR', struct.pack('>IIBBBBB', 2, 1, 16, kind, 0, 0, 0)),
        (b'tRNS', struct.pack(f'>{len(value)}H', *value)),
        (b'IDAT', zlib.compress(b'\0' + struct.pack(f'>{2 * len(value)}H', *value, *other))),
        (b'IEND', b''),
    ]
    (tmp_path / 'a.png').write_bytes(b'\x89PNG\r\n\x1a\n' + b''.join(chunk(*each) for each in chunks))
    assert read_pixels(tmp_path / 'a.png')[0].tolist() == [[[*value, 0], [*other, 65535]]]


def test_the_profile_is_read_unless_it_is_of_other_channels(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    for mode, kept in (('RGB', True), ('P', True), ('L', False), ('CMYK', False)):
        path = tmp_path / ('a.jpg' if mode == 'CMYK' else 'a.png')
        Image.new(mode, (8, 8)).save(path, icc_profile=profile if mode != 'CMYK' else profile.replace(b'RGB ', b'CMYK'))
        assert read_pixels(path)[1] == (profile if kept else None), mode


@pytest.mark.parametrize('orientation', range(1, 9))
def test_every_orientation_is_turned_as_pillow_turns_it(tmp_path, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored = Image.fromarray(np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8))
    stored.save(tmp_path / 'a.png', exif=exif)
    with Image.open(tmp_path / 'a.png') as image:
        assert np.array_equal(read_pixels(tmp_path / 'a.png')[0], np.asarray(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize('suffix', ['png', 'tif'])
@pytest.mark.parametrize('channels', [1, 3, 4])
def test_16_bits_are_rounded_to_8(tmp_path, suffix, channels):
    values = np.array([0, 128, 129, 257, 385, 386, 65406, 65407, 65535], np.uint16)
    # 128 / 257 is just below one half, 129 / 257 just above
    rounded = [0, 0, 1, 1, 1, 2, 254, 255, 255]
    pixels = np.stack([values] * channels, -1)[None]
    if channels >= 3:
        pixels[..., 0] = 65535  # blue
    pixels[..., 3:] = 65535
    path = tmp_path / f'a.{suffix}'
    cv2.imwrite(str(path), pixels)
    image = read_bgr(path)
    assert image.dtype == np.uint8 and image.shape == (1, 9, 3)
    assert image[0, :, 1].tolist() == image[0, :, 2].tolist() == rounded
    assert image[0, :, 0].tolist() == (rounded if channels == 1 else [255] * 9)


def test_32_bit_images_are_refused(tmp_path):
    cv2.imwrite(str(tmp_path / 'a.tif'), np.ones((2, 2), np.float32))
    with pytest.raises(UserError, match=r'a\.tif: float32; accepted: integers of 8 or 16 bits a channel'):
        read_bgr(tmp_path / 'a.tif')


def test_red_in_a_cmyk_jpeg_stays_red(tmp_path):
    image = Image.new('RGB', (16, 16), RED).convert('CMYK')
    blue, green, red = saved(image, tmp_path / 'a.jpg', quality=95)[8, 8]  # Pillow writes Adobe's inverted CMYK
    assert b'Adobe' in (tmp_path / 'a.jpg').read_bytes()
    assert red >= 250 and green <= 5 and blue <= 5


@pytest.mark.parametrize('mode', ['RGBA', 'LA'])
def test_an_opaque_alpha_channel_is_dropped_and_a_transparent_pixel_refused(tmp_path, mode):
    image = Image.new('L', (2, 2), 9).convert(mode)
    assert np.array_equal(saved(image, tmp_path / 'a.png'), np.full((2, 2, 3), 9))
    image.putpixel((1, 1), (9,) * (len(mode) - 1) + (254,))
    with pytest.raises(UserError, match=r'b\.png: has transparent pixels; accepted: opaque images'):
        saved(image, tmp_path / 'b.png')


def test_a_transparent_palette_entry_is_refused_where_a_pixel_has_it(tmp_path):
    image = Image.new('P', (2, 1))
    image.putpalette([*RED, *BLUE])
    assert saved(image, tmp_path / 'a.png', transparency=1).tolist() == [[[0, 0, 255]] * 2]
    with pytest.raises(UserError, match=r'b\.png: has transparent pixels'):
        saved(image, tmp_path / 'b.png', transparency=0)


@pytest.mark.parametrize(
    ('orientation', 'corner'), [(1, (0, 0)), (2, (0, 1)), (3, (2, 1)), (4, (2, 0)), (5, (0, 0)), (6, (0, 2))]
)
def test_the_exif_orientation_is_applied(tmp_path, orientation, corner):
    stored = Image.new('RGB', (2, 3))  # 3 high, 2 wide
    stored.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = saved(stored, tmp_path / 'a.png', exif=exif)
    assert image.shape == ((3, 2, 3) if orientation < 5 else (2, 3, 3))
    assert image[corner].tolist() == [0, 0, 255] and image.sum() == 255


def test_the_size_by_the_header_is_that_of_the_image_that_is_read(tmp_path):
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        for name in ('a.jpg', 'a.webp', 'a.tif'):
            image = saved(Image.new('RGB', (20, 30)), tmp_path / name, exif=exif)
            assert image_size(tmp_path / name) == image.shape[:2] == ((30, 20) if orientation < 5 else (20, 30))


def file_bytes(kind: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize('kind', ['png', 'jpeg', 'bmp', 'tiff', 'webp'])
def test_a_file_cut_short_is_refused_by_name(tmp_path, kind):
    whole = file_bytes(kind)
    for length in (10, len(whole) // 2, len(whole) - 30):
        path = tmp_path / f'cut.{kind}'
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=rf'cut\.{kind}: not a readable image \(.+\)$'):
            read_bgr(path)


def test_empty_files_other_files_and_folders_are_refused_by_name(tmp_path):
    (tmp_path / 'empty.png').touch()
    with pytest.raises(UserError, match=r'empty\.png: not a readable image \(the file is empty\)'):
        read_bgr(tmp_path / 'empty.png')
    (tmp_path / 'text.png').write_text('no image')
    with pytest.raises(UserError, match=r'text\.png: not a readable image \(cannot identify image file'):
        read_bgr(tmp_path / 'text.png')
    (tmp_path / 'folder.png').mkdir()
    with pytest.raises(UserError, match=r'folder\.png: not a readable image \(.*[Ii]s a directory'):
        read_bgr(tmp_path / 'folder.png')
    with pytest.raises(UserError, match=r'absent\.png: no such file'):
        read_bgr(tmp_path / 'absent.png')


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    Image.new('L', (100, 100)).save(tmp_path / 'bomb.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    with pytest.raises(UserError, match=r'bomb\.png: not a readable image \(Image size \(10000 pixels\) exceeds limit'):
        read_bgr(tmp_path / 'bomb.png')


def test_what_opencv_refuses_to_decode_is_refused_by_name(tmp_path, monkeypatch):
    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((4, 4), np.uint16))
    monkeypatch.setattr(cv2, 'imdecode', Mock(side_effect=cv2.error('pixels <= CV_IO_MAX_IMAGE_PIXELS')))
    with pytest.raises(UserError, match=r'a\.png: OpenCV does not decode it \(pixels <= CV_IO_MAX_IMAGE_PIXELS\)'):
        read_pixels(tmp_path / 'a.png')


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(['png', 'jpeg', 'bmp', 'tiff', 'webp']),
    changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_a_damaged_file_is_an_image_or_refused_and_never_another_error(tmp_path, kind, changes):
    damaged = bytearray(file_bytes(kind))
    for position, value in changes:
        damaged[position % len(damaged)] = value
    path = tmp_path / f'damaged.{kind}'
    path.write_bytes(damaged)
    try:
        image = read_bgr(path)
    except UserError as error:
        assert 'damaged' in str(error) and '\n' not in str(error)
    else:
        assert image.ndim == 3 and image.dtype == np.uint8


def test_a_changed_byte_inside_a_png_is_noticed(tmp_path):
    damaged = bytearray(file_bytes('png'))
    damaged[2500] ^= 1
    (tmp_path / 'a.png').write_bytes(damaged)
    with pytest.raises(UserError, match=r'a\.png: not a readable image \(broken PNG file'):
        read_bgr(tmp_path / 'a.png')


def test_images_of_a_folder_are_found_by_their_suffix(tmp_path):
    for name in ('b.PNG', 'a.jpg', '.hidden.png', 'Thumbs.db'):
        (tmp_path / name).touch()
    assert [path.name for path in images_in(tmp_path)] == ['a.jpg', 'b.PNG']
    with pytest.raises(UserError, match=r'absent: no such folder'):
        images_in(tmp_path / 'absent')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match=r'empty: no images; accepted: \.bmp, \.jpeg, \.jpg'):
        images_in(tmp_path / 'empty')


def test_images_are_found_in_all_folders_below_but_for_those_of_links(tmp_path):
    for name in ('b.png', 'inner/a.JPG', 'inner/deep/c.webp', '.hidden/d.png', 'inner/.e.png', 'inner/notes.txt'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in images_below(tmp_path)]
    assert found == ['b.png', 'inner/a.JPG', 'inner/deep/c.webp']
    (tmp_path / 'outside').symlink_to(tmp_path / 'inner')  # it might be one that it lies in
    (tmp_path / 'link.png').symlink_to(tmp_path / 'b.png')
    assert [path.name for path in images_below(tmp_path)] == ['b.png', 'a.JPG', 'c.webp', 'link.png']
    assert images_below(tmp_path / '.hidden') == [tmp_path / '.hidden' / 'd.png']


def test_a_written_png_reads_back(tmp_path):
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    write_png(tmp_path / 'a.png', image)
    assert np.array_equal(read_bgr(tmp_path / 'a.png'), image)
    assert [path.name for path in tmp_path.iterdir()] == ['a.png']


def test_a_photograph_that_scikit_image_lacks_is_a_line():
    assert photograph('camera.png').shape == (512, 512, 3)
    with pytest.raises(
        UserError, match=r'scikit-image: no photograph no.png \(.*no such file\); accepted: scikit-image'
    ):
        photograph('no.png')
