"""FFTLoss, WaveletLoss and GradientLoss; what gating needs of every pixel loss holds for BasicSR's own too."""

import cmath
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from facd_basicsr.losses import build_loss
from facd_basicsr.losses.pixel_loss import haar, sobel, spectra_difference

OURS = [
    {'type': 'FFTLoss'},
    {'type': 'FFTLoss', 'norm': 'ortho'},
    {'type': 'FFTLoss', 'of': 'amplitude_phase'},
    {'type': 'WaveletLoss'},
    {'type': 'WaveletLoss', 'levels': 1, 'll': False},
    {'type': 'GradientLoss'},
]
LINEAR = [options for options in OURS if options.get('of') != 'amplitude_phase']
ALL = [*OURS, {'type': 'L1Loss'}, {'type': 'MSELoss'}, {'type': 'CharbonnierLoss'}]


def name_of(options: dict) -> str:
    return ' '.join(map(str, options.values()))


def of_each(losses: list[dict]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize('options', losses, ids=name_of)


def image(*rows: list[float]) -> Tensor:
    """(1, 1, H, W)."""
    return torch.tensor(rows)[None, None]


def pair(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Prediction, which requires a gradient, and target; float64."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(*shape, generator=generator, dtype=torch.float64)
    return (target + 0.2 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 0.1).requires_grad_(), target


def dft(x: Tensor) -> dict[tuple[int, int], complex]:
    """The definition: X(u, v) = sum of x(h, w) exp(-2 pi i (u h / H + v w / W)); (H, W)."""
    height, width = x.shape
    return {
        (u, v): sum(
            x[h, w].item() * cmath.exp(-2j * math.pi * (u * h / height + v * w / width))
            for h in range(height)
            for w in range(width)
        )
        for u in range(height)
        for v in range(width)
    }


def test_the_spectrum_is_the_direct_sum():
    pred, target = (x.detach() for x in pair(1, 1, 3, 4))
    p, t = dft(pred[0, 0]), dft(target[0, 0])
    expected = sum(abs((p[at] - t[at]).real) + abs((p[at] - t[at]).imag) for at in p) / 24
    assert build_loss({'type': 'FFTLoss'})(pred, target).item() == pytest.approx(expected, rel=1e-12)


def test_amplitude_and_wrapped_phase_are_those_of_the_direct_sum():
    pred, target = torch.stack(
        [torch.arange(12, dtype=torch.float64).mul(k).sin().view(1, 1, 3, 4) for k in (1, 5)]
    )  # far apart: some angles differ by more than pi
    p, t = dft(pred[0, 0]), dft(target[0, 0])
    angles = [cmath.phase(p[at]) - cmath.phase(t[at]) for at in p]
    assert max(map(abs, angles)) > math.pi
    wrapped = [min(abs(angle + turn * 2 * math.pi) for turn in (-1, 0, 1)) for angle in angles]
    amplitudes = [abs(abs(p[at]) - abs(t[at])) for at in p]
    loss = build_loss({'type': 'FFTLoss', 'of': 'amplitude_phase'})
    assert loss(pred, target).item() == pytest.approx((sum(amplitudes) + sum(wrapped)) / 24, rel=1e-9)


def test_an_impulse_has_the_same_spectrum_everywhere():
    impulse = image([1.0, 0.0], [0.0, 0.0])
    assert build_loss({'type': 'FFTLoss'})(impulse, 0 * impulse) == 0.5  # real 1, imaginary 0
    assert build_loss({'type': 'FFTLoss', 'norm': 'ortho'})(impulse, 0 * impulse) == 0.25


def test_a_swap_changes_the_phase_alone():
    # spectra 1.5, 0.5 and 1.5, -0.5: amplitudes are equal, angles 0 and pi
    loss = build_loss({'type': 'FFTLoss', 'of': 'amplitude_phase'})
    assert loss(image([1.0, 0.5]), image([0.5, 1.0])).item() == pytest.approx(math.pi / 4)


@pytest.mark.parametrize('second', [0.5, 0.5 - 1e-7, 0.5 + 1e-4])
def test_a_frequency_below_the_rounding_of_pixels_has_no_phase(second):
    pred = image([0.5, second]).double().requires_grad_()
    difference = spectra_difference(pred, image([0.4, 0.6]).double(), of='amplitude_phase')
    assert difference[..., 1].abs().max() < 1e-12
    (gradient,) = torch.autograd.grad(difference[..., 1].sum(), pred)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_unnormalized_spectra_grow_with_the_root_of_the_area():
    pred, target = pair(2, 3, 6, 24)
    backward, ortho = (build_loss({'type': 'FFTLoss', 'norm': norm})(pred, target) for norm in ('backward', 'ortho'))
    torch.testing.assert_close(backward, 12 * ortho)
    of = (
        spectra_difference(pred, target, 'amplitude_phase'),
        spectra_difference(pred, target, 'amplitude_phase', 'ortho'),
    )
    torch.testing.assert_close(of[0][..., 0], 12 * of[1][..., 0])
    torch.testing.assert_close(of[0][..., 1], of[1][..., 1])


def test_haar_of_four_pixels():
    x = image([1.0, 2.0], [3.0, 5.0])  # LL 5.5, details -2.5, -1.5, 0.5
    assert build_loss({'type': 'WaveletLoss'})(x, 0 * x) == 1.5 + 5.5
    assert build_loss({'type': 'WaveletLoss', 'll': False})(x, 0 * x) == 1.5


def test_each_level_of_haar_has_the_weight_of_its_mean():
    x = image([1.0, 2.0], [3.0, 5.0]).repeat_interleave(2, 2).repeat_interleave(2, 3)  # LL is twice the last test's
    losses = [build_loss({'type': 'WaveletLoss', 'levels': levels})(x, 0 * x).item() for levels in (1, 2, 3, 40)]
    assert losses == [5.5, 3 + 11, 3 + 11, 3 + 11]  # there is no third level


def test_haar_is_orthonormal():
    x = pair(2, 3, 4, 6)[0].detach()
    coefficients = haar(x, 1)  # 3/4 of them are details, 1/4 LL: weights 4/3 and 4
    details, ll = coefficients[:, :54] * 3 / 4, coefficients[:, 54:] / 4
    torch.testing.assert_close(details.square().sum() + ll.square().sum(), x.square().sum())


def test_haar_repeats_the_last_row_and_column_of_odd_sizes():
    x = image([1.0, 1.0, 2.0])  # 1 1 2 2 twice; LL 2 4; then details 0, -2, 0, and LL 6
    assert build_loss({'type': 'WaveletLoss'})(x, 0 * x).item() == pytest.approx(2 / 3 + 6)


def test_sobel_of_a_ramp():
    ramp = image([0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0])
    x, y = sobel(ramp)[0, :, 0]
    assert x.tolist() == [[4.0, 8.0, 4.0]] * 3 and not y.any()  # half of it at the border, which is repeated
    assert torch.equal(sobel(ramp.mT), sobel(ramp).flip(1).mT)
    assert build_loss({'type': 'GradientLoss'})(ramp, 0 * ramp).item() == pytest.approx(16 / 6)


def test_brightness_has_no_gradient_and_channels_do_not_mix():
    pred, target = pair(2, 3, 4, 5)
    loss = build_loss({'type': 'GradientLoss'})
    torch.testing.assert_close(loss(pred + 0.3, target), loss(pred, target))
    torch.testing.assert_close(sobel(pred)[:, :, :1], sobel(pred[:, :1]))


@of_each(OURS)
def test_gradcheck(options):
    pred, target = pair(2, 2, 4, 5)
    assert torch.autograd.gradcheck(lambda pred: build_loss(options)(pred, target), pred)


@of_each(OURS)
def test_equal_images_give_nothing_and_a_finite_gradient(options):
    for x in (pair(2, 3, 6, 7)[0], torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)):
        pred = x.detach().requires_grad_()
        value = build_loss(options)(pred, x.detach())
        assert value.item() == pytest.approx(0, abs=1e-12)
        assert torch.autograd.grad(value, pred)[0].isfinite().all()


@of_each(LINEAR)
def test_twice_the_difference_is_twice_the_loss(options):
    pred, target = pair(2, 3, 6, 7)
    loss = build_loss(options)
    torch.testing.assert_close(loss(2 * pred, 2 * target), 2 * loss(pred, target))
    torch.testing.assert_close(loss(2 * pred - target, target), 2 * loss(pred, target))


@of_each(OURS)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_first(options, dtype):
    pred, target = (x.detach().to(dtype).requires_grad_() for x in pair(2, 3, 16, 16))
    value = build_loss(options)(pred, target)
    torch.testing.assert_close(value, build_loss(options)(pred.float(), target.float()), rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(value, pred)
    assert gradient.dtype == dtype and gradient.isfinite().all()


@of_each(OURS)
def test_autocast_rounds_nothing(options):
    pred, target = (x.detach().float() for x in pair(2, 3, 16, 16))
    expected = build_loss(options)(pred, target)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(build_loss(options)(pred, target), expected)
    assert expected.dtype == torch.float32


@of_each(ALL)
def test_reductions_agree_and_are_weighted(options):
    pred, target = pair(3, 3, 5, 4)
    elements, mean, total = (build_loss({**options, 'reduction': how})(pred, target) for how in ('none', 'mean', 'sum'))
    assert len(elements) == 3
    torch.testing.assert_close((elements.mean(), elements.sum()), (mean, total))
    torch.testing.assert_close(build_loss({**options, 'loss_weight': 0.05})(pred, target), 0.05 * mean)


@of_each(ALL)
@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 4), height=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 99))
def test_the_mean_of_a_batch_is_that_of_its_samples_of_any_size(options, n, height, width, seed):
    pred, target = pair(n, 2, height, width, seed=seed)
    loss = build_loss(options)
    alone = torch.stack([loss(pred[i : i + 1], target[i : i + 1]) for i in range(n)])
    torch.testing.assert_close(loss(pred, target), alone.mean())
    elements = build_loss({**options, 'reduction': 'none'})(pred, target)
    torch.testing.assert_close(elements.flatten(1).mean(1), alone)


@of_each(OURS)
def test_a_pixel_loss_is_a_module_without_parameters(options):
    loss = build_loss(options)
    assert isinstance(loss, nn.Module) and not list(loss.parameters()) and loss in {loss}
