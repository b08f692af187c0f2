import numpy as np
import pytest
import torch
from torch import nn

from facd_basicsr.runtime.metrics import luma, photograph_input, score, upscale


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


def test_a_one_channel_image_is_its_own_y():
    gt = np.full((20, 20, 3), 100, np.uint8)
    assert score(gt + 5, gt, scale=2, gray=True)['psnr_y'] == pytest.approx(20 * np.log10(255 / 5), abs=1e-3)
    assert np.allclose(luma(gt, gray=True), 100, atol=1e-3)
    assert np.allclose(luma(gt), 16 + 100 * 219 / 255, atol=1e-3)


def test_the_input_of_a_network_is_the_middle_of_a_photograph_or_all_of_it_mirrored():
    whole = photograph_input('astronaut.png', 3, 128, 128)
    assert torch.equal(photograph_input('astronaut.png', 3, 10, 20), whole[:, :, 59:69, 54:74])
    wide = photograph_input('astronaut.png', 3, 16, 400)
    assert torch.equal(wide[..., 136:264], whole[:, :, 56:72]) and torch.equal(
        wide[..., 8:136], wide[..., 136:264].flip(3)
    )
    assert 0 <= whole.min() < 0.1 and 0.9 < whole.max() <= 1
    gray = photograph_input('astronaut.png', 2, 128, 128)
    assert torch.equal(gray[:, 0], gray[:, 1]) and torch.allclose(gray[:, 0], whole.mean(1))
