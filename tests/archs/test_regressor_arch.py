import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from facd_basicsr.archs.regressor_arch import DeepRegressor, PReLU


def test_registered():
    assert ARCH_REGISTRY.get('DeepRegressor') is DeepRegressor


def test_five_1x1_convolutions_with_prelu_between_them():
    regressor = DeepRegressor(3, 8)
    assert [type(layer) for layer in regressor] == [nn.Conv2d, PReLU] * 4 + [nn.Conv2d]
    convs = [layer for layer in regressor if isinstance(layer, nn.Conv2d)]
    assert [conv.kernel_size for conv in convs] == [(1, 1)] * 5
    assert [(conv.in_channels, conv.out_channels) for conv in convs] == [(3, 8), (8, 8), (8, 8), (8, 8), (8, 8)]


@pytest.mark.parametrize('slope', [0.25, 0.0, -0.5])
@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize(
    ('dtype', 'tolerance'), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)]
)
def test_the_faster_prelu_is_torchs(slope, channels_last, dtype, tolerance):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x, grad = (torch.randn(2, 3, 5, 7, dtype=dtype).contiguous(memory_format=layout) for _ in range(2))
    x[0, 0] = 0  # where the slope changes
    found, expected = [], []
    for prelu, results in ((PReLU(init=slope), found), (nn.PReLU(init=slope), expected)):
        own, prelu = x.clone().requires_grad_(), prelu.to(dtype)
        output = prelu(own)
        output.backward(grad)
        results += [output, own.grad, prelu.weight.grad]
    for ours, torchs in zip(found, expected):
        assert ours.dtype == torchs.dtype and ours.stride() == torchs.stride()
        torch.testing.assert_close(ours, torchs, rtol=tolerance, atol=tolerance)


def test_a_prelu_with_a_slope_for_each_channel_is_torchs():
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(PReLU(3)(x), nn.PReLU(3)(x))


def test_maps_width_and_keeps_size():
    assert DeepRegressor(3, 8, num_feat=5, num_layer=2)(torch.rand(2, 3, 6, 7)).shape == (2, 8, 6, 7)


def test_one_layer_equals_a_value_worked_by_hand():
    regressor = DeepRegressor(2, 1, num_layer=1)
    with torch.no_grad():
        regressor[0].weight.copy_(torch.tensor([2.0, -1.0]).view(1, 2, 1, 1))
        regressor[0].bias.fill_(0.5)
    feat = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    assert regressor(feat).item() == 2 * 3 - 4 + 0.5  # no PReLU after the last convolution


def test_no_layers_are_refused():
    with pytest.raises(ValueError, match=r'network_r.num_layer: 0; accepted: 1 or more'):
        DeepRegressor(2, 2, num_layer=0)
