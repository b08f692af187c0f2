import cv2
import numpy as np
import pytest
import torch
from basicsr.metrics import calculate_metric
from basicsr.metrics.metric_util import to_y_channel
from basicsr.utils import tensor2img
from basicsr.utils.registry import METRIC_REGISTRY
from hypothesis import given, settings
from hypothesis import strategies as st

from facd_basicsr.errors import UserError
from facd_basicsr.runtime.metrics import luma, scores, ssim, to_image


def metrics(border: int) -> dict:
    return {
        f'{metric}_{y}': {'type': f'calculate_{metric}', 'crop_border': border, 'test_y_channel': y}
        for metric in ('psnr', 'ssim')
        for y in (True, False)
    }


def pair(seed: int, shape: tuple[int, ...], noise: float) -> tuple[np.ndarray, np.ndarray]:
    """A random image that is smooth in places, and a noisy copy of it."""
    rng = np.random.default_rng(seed)
    image = cv2.blur(rng.uniform(0, 255, shape), (5, 5)) * rng.choice([0.5, 1.0, 2.0])
    noisy = image + rng.normal(0, noise, shape)
    return tuple(np.clip(one, 0, 255).astype(np.uint8) for one in (image, noisy))


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**31),
    height=st.integers(27, 160),
    width=st.integers(27, 90),
    border=st.integers(0, 8),
    gray=st.booleans(),
    noise=st.sampled_from([0.3, 4.0, 60.0]),
)
def test_figures_are_basicsrs_whatever_the_size_the_border_and_the_channels(seed, height, width, border, gray, noise):
    image, gt = pair(seed, (height, width) if gray else (height, width, 3), noise)
    found = list(scores(image, gt, metrics(border)).values())
    expected = [calculate_metric({'img': image, 'img2': gt}, opt) for opt in metrics(border).values()]
    assert found[:2] == pytest.approx(expected[:2], rel=1e-7)
    assert found[2:] == pytest.approx(expected[2:], abs=1e-12)
    if not gray:
        assert found[:2] == expected[:2]
        assert np.array_equal(luma(image), to_y_channel(image)[..., 0])


def test_equal_images_have_an_infinite_psnr_and_an_ssim_of_one():
    image, _ = pair(3, (40, 33, 3), 1)
    assert list(scores(image, image, metrics(2)).values()) == pytest.approx([np.inf, np.inf, 1, 1], abs=1e-12)


def test_ssim_by_hand_of_two_flat_images():
    # no variance, so (2 a b + C1) / (a^2 + b^2 + C1) with C1 = 6.5025
    flat = ssim(np.full((12, 90), 10, np.uint8), np.full((12, 90), 20, np.uint8))
    assert flat == pytest.approx((2 * 200 + 6.5025) / (100 + 400 + 6.5025), abs=1e-9)


def test_ssim_of_images_that_are_smaller_than_its_window_is_no_number():
    assert np.isnan(ssim(*pair(0, (10, 30, 3), 1)))


def test_other_metrics_are_called_as_basicsr_calls_them():
    def mean_difference(img, img2=None, factor=1):
        return factor * (img.mean() if img2 is None else np.abs(img.astype(float) - img2).mean())

    METRIC_REGISTRY._obj_map['mean_difference'] = mean_difference
    try:
        image, gt = pair(5, (20, 20, 3), 10)
        opt = {'own': {'type': 'mean_difference', 'factor': 2}, **metrics(0)}
        assert scores(image, gt, opt)['own'] == 2 * np.abs(image.astype(float) - gt).mean()
        assert scores(image, None, opt) == {'own': 2 * image.mean()}
        with pytest.raises(AssertionError, match='Image shapes are different'):
            scores(image, gt[1:], metrics(0))
    finally:
        del METRIC_REGISTRY._obj_map['mean_difference']


def test_a_metric_is_not_given_what_it_does_not_take(monkeypatch):
    monkeypatch.setitem(METRIC_REGISTRY._obj_map, 'brightness', lambda img: img.mean())
    image, gt = pair(5, (20, 20, 3), 10)
    assert scores(image, gt, {'own': {'type': 'brightness', 'better': 'lower'}}) == {'own': image.mean()}


def niqe(image: np.ndarray, border: int = 0) -> float:
    return scores(image, None, {'niqe': {'type': 'calculate_niqe', 'crop_border': border, 'better': 'lower'}})['niqe']


def test_niqe_needs_two_blocks_of_96_pixels_inside_the_border():
    image = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    for height, width, border in [(96, 192, 0), (192, 96, 0), (104, 200, 4)]:
        crop = image[:height, :width]
        assert niqe(crop, border) == calculate_metric({'img': crop}, {'type': 'calculate_niqe', 'crop_border': border})
    for height, width, border in [(191, 191, 0), (128, 128, 0), (95, 300, 0), (192, 96, 1)]:
        with pytest.raises(
            UserError,
            match=rf'^niqe: calculate_niqe with crop_border: {border} on {width}x{height} pixels; accepted: '
            rf'{192 + 2 * border}x{96 + 2 * border} or more, 2 blocks of 96x96 inside the border$',
        ):
            niqe(image[:height, :width], border)


def test_niqe_of_an_image_without_texture_is_no_number():
    assert np.isnan(niqe(np.full((192, 192, 3), 128, np.uint8)))


def test_an_image_that_the_border_takes_whole_is_refused():
    image = np.zeros((8, 20, 3), np.uint8)
    with pytest.raises(
        UserError, match=r'^psnr_True: calculate_psnr with crop_border: 4 on 20x8 pixels; accepted: 9x9'
    ):
        scores(image, image, metrics(4))
    with pytest.raises(UserError, match=r'^s: calculate_ssim with crop_border: 0 on 20x8 pixels; accepted: 11x11 or'):
        scores(image, image, {'s': {'type': 'calculate_ssim', 'crop_border': 0}})


@pytest.mark.parametrize('channels', [1, 3])
def test_an_output_becomes_the_image_that_basicsr_makes_of_it(channels):
    tensor = torch.rand(1, channels, 17, 23) * 1.4 - 0.2
    tensor[0, 0, 0, :3] = torch.tensor([0.5, 2.5, 254.5]) / 255  # halves go to the even number
    image = to_image(tensor.clone())
    assert np.array_equal(image, tensor2img([tensor])) and image.dtype == np.uint8


def test_an_output_stays_what_it_was_when_it_becomes_an_image():
    tensor = torch.full((1, 3, 4, 5), 1.5)
    assert to_image(tensor).max() == 255 and tensor.max() == 1.5
