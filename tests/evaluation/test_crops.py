import math

import numpy as np
import pytest

from facd_basicsr.errors import UserError
from facd_basicsr.evaluation.figures import Crop, absolute_error, chosen_crop, crop_psnr, error_map, find_crops
from facd_basicsr.evaluation.test_sets import ImagePair


class Painted:
    """A method that returns GT with squares ``levels`` brighter: {image: [(left, top, size, levels)]}."""

    def __init__(self, name: str, squares: dict[str, list[tuple[int, int, int, int]]]) -> None:
        self.name, self.squares, self.scale = name, squares, 2

    def upscale(self, lq: np.ndarray) -> np.ndarray:
        image = np.full((60, 80, 3), 100, np.uint8)
        for left, top, size, levels in self.squares.get(chr(lq[0, 0, 0]), []):
            image[top : top + size, left : left + size] += levels
        return image


def pair(image: str) -> ImagePair:
    """The image's name is the level of its LQ."""
    return ImagePair('S', image, np.full((30, 40, 3), ord(image), np.uint8), np.full((60, 80, 3), 100, np.uint8))


def boxes(crops: list[Crop]) -> list[tuple]:
    return [(crop.pair.image, crop.left, crop.top) for crop in crops]


def test_crops_are_where_the_students_differ_most_one_for_each_image():
    same = {'a': [(40, 30, 10, 90)]}  # where both err alike is no difference
    x = Painted('x', {'a': [*same['a'], (8, 6, 10, 20), (60, 6, 10, 19)], 'b': [(20, 20, 10, 30)]})
    y = Painted('y', same)
    found = find_crops([Painted('bicubic', {'a': [(2, 2, 50, 100)]}), x, y], [pair('a'), pair('b')], 10, 2)
    assert boxes(found) == [('b', 20, 20), ('a', 8, 6)]


def test_one_image_gives_several_crops_that_do_not_overlap():
    x = Painted('x', {'a': [(8, 6, 10, 20), (60, 6, 10, 19)]})
    assert boxes(find_crops([x, Painted('y', {})], [pair('a')], 10, 2)) == [('a', 8, 6), ('a', 60, 6)]


def test_a_single_student_is_compared_with_bicubic_and_not_with_the_teacher():
    methods = [
        Painted('bicubic', {}),
        Painted('x', {'a': [(8, 6, 10, 20)]}),
        Painted('teacher', {'a': [(60, 6, 10, 90)]}),
    ]
    assert boxes(find_crops(methods, [pair('a')], 10, 1)) == [('a', 8, 6)]


def test_without_students_bicubic_is_compared_with_the_teacher():
    methods = [Painted('bicubic', {}), Painted('teacher', {'a': [(60, 6, 10, 90)]})]
    assert boxes(find_crops(methods, [pair('a')], 10, 1)) == [('a', 60, 6)]


def test_the_border_that_no_metric_reads_is_left_out():
    found = find_crops([Painted('x', {'a': [(0, 0, 2, 90)]}), Painted('y', {})], [pair('a')], 56, 9)
    assert boxes(found) == [('a', 2, 2)]  # and there is room for one only


def test_crops_that_fit_no_image_are_refused():
    with pytest.raises(UserError, match=r'--size: 57; accepted: a window that fits'):
        find_crops([Painted('x', {})], [pair('a')], 57, 1)


def test_a_crops_psnr_is_of_the_crop_alone():
    sr = pair('a').gt.copy()
    sr[:10, :10] += 5
    crop = Crop(pair('a'), 0, 0, 20)
    assert crop_psnr(sr, crop) == pytest.approx(20 * math.log10(255 / (5 * 219 / 255) * 2), abs=1e-3)
    assert crop_psnr(sr, Crop(pair('a'), 10, 10, 20)) == math.inf


@pytest.mark.parametrize('window', [(61, 0, 20), (0, 41, 20), (-1, 0, 20), (0, 0, 0)])
def test_a_window_outside_the_image_is_refused(window):
    with pytest.raises(UserError, match=r'--crop: .* is not inside S/a; accepted: a window of its 80x60 pixels'):
        chosen_crop(pair('a'), *window)


def test_a_window_that_touches_the_images_edge_is_accepted():
    assert boxes([chosen_crop(pair('a'), 60, 40, 20)]) == [('a', 60, 40)]


def test_an_error_map_is_black_where_there_is_no_error_and_brightest_from_its_top_on():
    crop = Crop(pair('a'), 8, 6, 4)
    image = Painted('x', {'a': [(8, 6, 2, 219)]}).upscale(np.full((1, 1, 3), ord('a'), np.uint8))
    image[6, 10] += 40  # Y has 219 levels for 255 of gray
    assert np.allclose(
        absolute_error(image, crop)[0], [np.abs(63 - 100) * 219 / 255] * 2 + [40 * 219 / 255, 0], atol=1e-3
    )
    colors = error_map(image, crop, top=30.0).astype(int).sum(2)  # of the map from black to pale yellow
    assert colors[3, 3] == colors.min() < 10 and colors[0, 2] == colors.max() == colors[0, 0] > 500
    assert colors[0, 0] > error_map(image, crop, top=60.0).astype(int).sum(2)[0, 0]
