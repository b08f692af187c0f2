import pytest
import torch
from torch import nn

from facd_basicsr.engine.winograd import Winograd, gains

WIDE = nn.Conv2d(64, 7, 3, padding=1)
needs_nnpack = pytest.mark.skipif(not gains(WIDE), reason='no NNPACK for this processor')


@needs_nnpack
@pytest.mark.parametrize('images', [1, 3])
@pytest.mark.parametrize('bias', [False, True])
def test_a_wide_convolution_is_the_same_up_to_rounding_but_not_to_the_last_bit(images, bias):
    convolution = nn.Conv2d(64, 7, 3, padding=1, bias=bias)
    x = torch.rand(images, 64, 19, 31)
    with torch.no_grad():
        expected = convolution(x)
        with Winograd():
            found = convolution(x)
    assert torch.allclose(found, expected, atol=1e-4) and not torch.equal(found, expected)
    assert gains(nn.Sequential(nn.ReLU(), convolution))


@pytest.mark.parametrize(
    ('convolution', 'images'),
    [
        (nn.Conv2d(63, 2, 3, padding=1), 1),
        (nn.Conv2d(64, 2, 3, padding=1).double(), 1),
        (nn.Conv2d(64, 2, 1), 1),
        (nn.Conv2d(64, 2, 5, padding=2), 1),
        (nn.Conv2d(64, 2, 3, padding=0), 1),
        (nn.Conv2d(64, 2, 3, padding='same'), 1),
        (nn.Conv2d(64, 2, 3, padding=1, stride=2), 1),
        (nn.Conv2d(64, 2, 3, padding=1, dilation=2), 1),
        (nn.Conv2d(128, 2, 3, padding=1, groups=2), 1),
    ],
)
def test_any_other_convolution_is_what_it_was(convolution, images):
    x = torch.rand(images, convolution.in_channels, 9, 12, dtype=convolution.weight.dtype)
    with torch.no_grad():
        expected = convolution(x)
        with Winograd():
            found = convolution(x)
    assert torch.equal(found, expected)


def test_narrow_networks_gain_nothing():
    assert not gains(nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 1), nn.Conv2d(32, 64, 3)))


def test_where_nnpack_fails_torchs_own_convolution_is_taken(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError('NNPACK SpatialConvolution_updateOutput failed')

    monkeypatch.setattr(torch, '_nnpack_spatial_convolution', fail, raising=False)
    x = torch.rand(1, 64, 9, 12)
    with torch.no_grad(), Winograd():
        assert torch.equal(WIDE(x), nn.functional.conv2d(x, WIDE.weight, WIDE.bias, padding=1))
