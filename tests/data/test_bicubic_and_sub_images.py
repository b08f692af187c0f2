from itertools import pairwise

import cv2
import numpy as np
import pytest
from conftest import SHARED_DATA
from hypothesis import given
from hypothesis import strategies as st

from facd_basicsr.data.bicubic import bicubic_lr, with_bicubic_lr
from facd_basicsr.data.lmdb_pairs import boxes, sub_images
from facd_basicsr.errors import UserError
from facd_basicsr.runtime.metrics import bicubic, score


def test_lr_of_a_line_is_that_of_the_antialiased_kernel_rounded():
    # Keys' cubic with a = -1/2 at 1/4, 3/4, 5/4, 7/4, halved: LR row o lies at HR row 2 o + 1/2
    weights = {0.5: 0.43359375, 1.5: 0.11328125, 2.5: -0.03515625, 3.5: -0.01171875}
    hr = np.full((20, 4, 3), 100, np.uint8)
    hr[8] = 200  # a line along the second direction, which leaves it as it is
    expected = [round(100 + 100 * weights.get(abs(2 * o + 0.5 - 8), 0)) for o in range(10)]
    assert expected == [100, 100, 99, 111, 143, 96, 100, 100, 100, 100]
    assert np.array_equal(bicubic_lr(hr, 2), np.tile(np.array(expected, np.uint8)[:, None, None], (1, 2, 3)))


def test_lr_is_rounded_after_each_direction():
    hr = np.zeros((16, 16, 1), np.uint8)
    hr[8, 8] = 10
    # 10 * 0.43359375 = 4.3 is 4 after the first direction, and 4 * 0.43359375 = 1.7 is 2; unrounded it were 1.88
    assert bicubic_lr(hr, 2)[4, 4] == 2
    hr[8, 8] = 8
    # 3.47 is 3, then 1.3 is 1; rounded once, 8 * 0.188 = 1.504 were 2
    assert bicubic_lr(hr, 2)[4, 4] == 1


def test_borders_are_replicated():
    hr = np.full((8, 8, 1), 50, np.uint8)
    hr[0] = 250
    # LR row 0 lies at HR row 1/2: rows 0 and above weigh 0.43359375 + 0.11328125 - 0.03515625 - 0.01171875 = 1/2
    assert (bicubic_lr(hr, 2)[0] == 150).all()


def test_lr_equals_the_mean_of_a_flat_image_and_halves_a_ramp():
    assert np.array_equal(bicubic_lr(np.full((8, 8, 3), 77, np.uint8), 4), np.full((2, 2, 3), 77, np.uint8))
    ramp = np.tile((np.arange(16, dtype=np.uint8) * 10)[None, :, None], (8, 1, 3))
    # a symmetric kernel leaves a ramp a ramp: pixel j of LR sits between 2j and 2j+1 of HR
    assert np.array_equal(bicubic_lr(ramp, 2)[0, 2:-2, 0], np.arange(16)[::2][2:-2] * 10 + 5)


def test_hr_is_cropped_to_the_multiple_at_the_bottom_and_on_the_right():
    image = np.arange(11 * 14 * 3, dtype=np.uint8).reshape(11, 14, 3)
    versions = with_bicubic_lr(image, [1, 2, 4], multiple=4)
    assert np.array_equal(versions[1], image[:8, :12])
    assert versions[2].shape == (4, 6, 3) and versions[4].shape == (2, 3, 3)
    with pytest.raises(UserError, match=r'14x11 pixels; accepted: 12 or more both ways'):
        with_bicubic_lr(image, [1], multiple=12)


@pytest.mark.skipif(not (SHARED_DATA / 'benchmark').is_dir(), reason='no shared data')
@pytest.mark.parametrize(('scale', 'published'), [(2, 33.66), (3, 30.39), (4, 28.42)])
def test_lr_equals_independent_files_and_has_the_published_psnr(scale, published):
    psnr = []
    for path in sorted((SHARED_DATA / 'benchmark' / 'Set5' / f'GTx{scale}').iterdir()):
        gt = cv2.imread(str(path))
        lr = bicubic_lr(gt, scale)
        assert np.array_equal(lr, cv2.imread(str(path.parents[1] / f'LRx{scale}' / path.name)))
        psnr.append(score(bicubic(lr, scale), gt, scale)['psnr_y'])
    assert np.mean(psnr) == pytest.approx(published, abs=0.03)


@given(size=st.integers(1, 300), crop=st.integers(1, 20), step=st.integers(1, 20))
def test_sub_images_cover_an_axis_and_stay_inside(size, crop, step):
    crop, step = 12 * crop, 12 * min(step, crop)
    spans = sub_images(size, crop, step)
    assert spans[0][0] == 0 and spans[-1][1] == size
    assert all(end - start == min(crop, size) for start, end in spans)
    assert all(start <= previous_end for (_, previous_end), (start, _) in pairwise(spans))


def test_boxes_go_row_by_row():
    assert boxes(10, 12, 8, 4) == [(0, 8, 0, 8), (0, 8, 4, 12), (2, 10, 0, 8), (2, 10, 4, 12)]
