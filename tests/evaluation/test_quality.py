import cv2
import numpy as np
import pytest
from conftest import SHARED_DATA
from torch import nn

from facd_basicsr.evaluation.quality import bicubic, score, upscale


def test_score_equals_a_value_worked_by_hand_and_leaves_out_the_border():
    gt = np.full((20, 20, 3), 100, np.uint8)
    sr = gt + 5
    sr[:2], sr[-2:], sr[:, :2], sr[:, -2:] = 0, 0, 0, 0
    result = score(sr, gt, scale=2)
    assert result['psnr_rgb'] == pytest.approx(20 * np.log10(255 / 5), abs=1e-4)
    # Y of BT.601 in [16, 235]: 5 levels of gray are 5 * 219 / 255 levels of Y
    assert result['psnr_y'] == pytest.approx(20 * np.log10(255 / (5 * 219 / 255)), abs=1e-3)
    assert 0 < result['ssim_y'] < 1


def test_upscale_clamps_and_rounds_and_keeps_the_channel_order():
    lq = np.zeros((2, 2, 3), np.uint8)
    lq[..., 0], lq[..., 2] = 200, 10  # BGR: blue 200, red 10
    assert np.array_equal(upscale(nn.Identity(), lq), lq)


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason='needs shared/data')
@pytest.mark.parametrize(('scale', 'published'), [(2, 33.66), (3, 30.39), (4, 28.42)])
def test_bicubic_on_set5_scores_what_is_published(scale, published):
    folder = SHARED_DATA / 'benchmark' / 'Set5'
    values = []
    for path in sorted((folder / f'LRx{scale}').iterdir()):
        sr = bicubic(cv2.imread(str(path)), scale)
        values.append(score(sr, cv2.imread(str(folder / f'GTx{scale}' / path.name)), scale)['psnr_y'])
    assert np.mean(values) == pytest.approx(published, abs=0.03)
