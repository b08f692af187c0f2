import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from facd_basicsr.archs.regressor_arch import DeepRegressor


def test_registered():
    assert ARCH_REGISTRY.get('DeepRegressor') is DeepRegressor


def test_five_1x1_convolutions_with_prelu_between_them():
    regressor = DeepRegressor(3, 8)
    assert [type(layer) for layer in regressor] == [nn.Conv2d, nn.PReLU] * 4 + [nn.Conv2d]
    convs = [layer for layer in regressor if isinstance(layer, nn.Conv2d)]
    assert [conv.kernel_size for conv in convs] == [(1, 1)] * 5
    assert [(conv.in_channels, conv.out_channels) for conv in convs] == [(3, 8), (8, 8), (8, 8), (8, 8), (8, 8)]


def test_maps_width_and_keeps_size():
    assert DeepRegressor(3, 8, num_feat=5, num_layer=2)(torch.rand(2, 3, 6, 7)).shape == (2, 8, 6, 7)


def test_one_layer_equals_a_value_worked_by_hand():
    regressor = DeepRegressor(2, 1, num_layer=1)
    with torch.no_grad():
        regressor[0].weight.copy_(torch.tensor([2.0, -1.0]).view(1, 2, 1, 1))
        regressor[0].bias.fill_(0.5)
    feat = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    assert regressor(feat).item() == 2 * 3 - 4 + 0.5  # no PReLU after the last convolution


def test_by_option_a_prelu_follows_the_last_convolution_too():
    regressor = DeepRegressor(3, 8, last_act=True)
    assert [type(layer) for layer in regressor] == [nn.Conv2d, nn.PReLU] * 5
    feat = torch.randn(1, 3, 4, 4)
    with torch.no_grad():
        regressor[-1].weight.fill_(0.5)
        signed = nn.Sequential(*list(regressor)[:-1])(feat)
        assert (signed < 0).any()
        torch.testing.assert_close(regressor(feat), torch.where(signed < 0, signed / 2, signed))


def test_no_layers_are_refused():
    with pytest.raises(ValueError, match=r'network_r.num_layer: 0; accepted: 1 or more'):
        DeepRegressor(2, 2, num_layer=0)
