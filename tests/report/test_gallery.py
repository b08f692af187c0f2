import base64
import io
from itertools import permutations

import numpy as np
import pytest
from PIL import Image

from facd_basicsr.evaluation.figures import best_of
from facd_basicsr.evaluation.test_sets import ImagePair
from facd_basicsr.report.results import CROPS, differing_crops, png_uri

GRAY = np.full((40, 60, 3), 100, np.uint8)


def picture_of(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(',')[2]))))


def titles(differences: dict[str, int], gt: np.ndarray = GRAY) -> list[str]:
    """Of the crops of images, each named by a letter, in which the student is so many levels off at one pixel."""
    by_image = []
    for name, levels in differences.items():
        sr = gt.copy()
        sr[8, 30] += levels
        outputs = {'bicubic': gt, 'student': sr, 'teacher': gt}
        by_image.append(differing_crops('student', 2, ImagePair('S', name, gt[::2, ::2], gt), outputs))
    return [crop.title for crop in best_of(by_image, CROPS)]


@pytest.mark.parametrize('order', list(permutations(range(1, CROPS + 2)))[::17])
def test_of_many_images_those_that_differ_most_are_shown_in_whatever_order_they_come(order):
    found = titles({str(levels): levels for levels in order})
    assert found == [f'S/{levels}' for levels in range(CROPS + 1, 1, -1)]


def test_of_equal_images_the_first_are_shown():
    assert titles(dict.fromkeys('abcdef', 5)) == ['S/a', 'S/b', 'S/c', 'S/d']
    assert titles({**dict.fromkeys('abcde', 5), 'f': 6}) == ['S/f', 'S/a', 'S/b', 'S/c']


def test_few_images_have_several_crops_each():
    gt = np.full((100, 220, 3), 100, np.uint8)
    assert titles({'a': 5, 'b': 9}, gt) == ['S/b', 'S/a', 'S/a', 'S/b']  # the second ones do not differ


def test_images_too_small_have_none():
    assert titles({'a': 5}, np.full((11, 40, 3), 100, np.uint8)) == []


def test_a_crop_has_what_every_method_makes_of_it():
    sr = np.stack([GRAY[..., 0], GRAY[..., 0] + 7, GRAY[..., 0] + 90], -1)
    outputs = {'bicubic': GRAY, 'student': sr}
    (_, crop), *_ = differing_crops('student', 2, ImagePair('S', 'a', GRAY[::2, ::2], GRAY), outputs)
    bicubic, student, hr = crop.views
    assert (bicubic[:2], hr[:2]) == (('bicubic', 'inf dB'), ('HR', 'ground truth'))
    assert crop.size == 40 - 2 * 2
    assert picture_of(student[2]).shape == (36, 36, 3)
    assert picture_of(student[2])[0, 0].tolist() == [190, 107, 100]  # RGB


def test_a_picture_is_in_its_address():
    assert (picture_of(png_uri(Image.fromarray(GRAY))) == GRAY).all()
