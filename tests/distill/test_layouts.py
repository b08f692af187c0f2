"""Converted networks against the originals, written independently in official_networks.py."""

import pytest
import torch
from basicsr.archs import build_network
from distill.official_networks import DIV2K, official_edsr, official_rcan, with_trained_color_maps
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from facd_basicsr.distill.layouts import (
    from_basicsr,
    image_range,
    network_block,
    recognize,
    to_basicsr,
    trained_color_maps,
)
from facd_basicsr.errors import UserError

EDSR = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3}
RCAN = {'type': 'RCAN', 'num_in_ch': 3, 'num_out_ch': 3}


def assert_same_function(official: nn.Module, network_opt: dict, converted: dict[str, Tensor]) -> None:
    net = build_network(network_opt)
    net.load_state_dict(converted)
    lq = torch.rand(2, 3, 7, 9)
    with torch.no_grad():
        torch.testing.assert_close(net(lq), official(lq * 255) / 255, rtol=0, atol=2e-6)


@pytest.mark.parametrize('scale', [2, 3, 4])
@pytest.mark.parametrize('res_scale', [1.0, 0.1])
def test_an_official_edsr_computes_the_same_in_basicsr(scale, res_scale):
    torch.manual_seed(scale)
    official = official_edsr(8, 3, scale, res_scale)
    converted, shift = to_basicsr(official.state_dict(), 'edsr-pytorch', 'teacher.weights')
    block = {**EDSR, 'num_feat': 8, 'num_block': 3, 'upscale': scale}
    assert_same_function(official, {**block, 'res_scale': res_scale}, converted)
    assert network_block(converted) == block
    torch.testing.assert_close(shift, 255 * torch.tensor(DIV2K))


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_an_official_rcan_computes_the_same_in_basicsr(scale):
    torch.manual_seed(scale)
    official = official_rcan(8, 2, 3, scale)
    converted, _ = to_basicsr(official.state_dict(), 'rcan', 'teacher.weights')
    block = {**RCAN, 'num_feat': 8, 'num_group': 2, 'num_block': 3, 'squeeze_factor': 4, 'upscale': scale}
    assert_same_function(official, block, converted)
    assert network_block(converted) == block


def test_another_res_scale_computes_something_else():
    official = official_edsr(8, 3, 2, 1.0)
    converted, _ = to_basicsr(official.state_dict(), 'edsr-pytorch', 'teacher.weights')
    with pytest.raises(AssertionError):
        assert_same_function(
            official, {**EDSR, 'num_feat': 8, 'num_block': 3, 'upscale': 2, 'res_scale': 0.1}, converted
        )


@pytest.mark.parametrize(
    ('network_opt', 'keys'),
    [
        ({**EDSR, 'num_feat': 256, 'num_block': 32, 'upscale': 4}, 'edsr-pytorch'),
        ({**EDSR, 'num_feat': 64, 'num_block': 16, 'upscale': 3}, 'edsr-pytorch'),
        ({**RCAN, 'num_feat': 64, 'num_group': 10, 'num_block': 20, 'squeeze_factor': 16, 'upscale': 2}, 'rcan'),
    ],
    ids=['EDSR', 'EDSR baseline', 'RCAN'],
)
def test_the_published_sizes_go_there_and_back(network_opt, keys):
    with torch.device('meta'):
        state_dict = build_network(network_opt).state_dict()
    official = from_basicsr(state_dict, keys, torch.zeros(3), 'IN')
    assert recognize(official) == (keys, network_opt['type'])
    assert network_block(state_dict) == network_opt
    back, _ = to_basicsr(official, keys, 'IN')
    assert back.keys() == state_dict.keys() and all(back[key] is state_dict[key] for key in back)


@settings(max_examples=settings.default.max_examples * 2 // 5)
@given(data=st.data(), rcan=st.booleans(), n=st.integers(1, 12), feats=st.integers(4, 9), scale=st.integers(2, 4))
def test_any_size_goes_there_and_back(data, rcan, n, feats, scale):
    with torch.device('meta'):  # names and shapes are all that conversion looks at
        if rcan:
            official = official_rcan(feats, data.draw(st.integers(1, 11)), n, scale, reduction=2).state_dict()
        else:
            official = official_edsr(feats, n, scale, 1.0).state_dict()
    trunk = {key: value for key, value in official.items() if not key.startswith(('sub_mean', 'add_mean'))}
    layout, _ = recognize(official)
    converted, _ = to_basicsr(trunk, layout, 'IN')
    with torch.device('meta'):
        net = build_network(network_block(converted))
    assert {key: value.shape for key, value in net.state_dict().items()} == {
        key: value.shape for key, value in converted.items()
    }
    back = from_basicsr(converted, layout, torch.zeros(3), 'IN')
    assert back.keys() == official.keys() and all(back[key] is trunk[key] for key in trunk)


def test_other_networks_are_not_recognised():
    with torch.device('meta'):
        msrresnet = build_network({'type': 'MSRResNet', 'num_feat': 8, 'num_block': 2})  # its blocks are EDSR's
    assert recognize(msrresnet.state_dict()) is None
    assert recognize({'head.0.weight': torch.zeros(1)}) is None


def test_a_key_that_is_not_of_the_layout_is_refused():
    official = official_edsr(4, 1, 2, 1.0).state_dict()
    with pytest.raises(UserError, match=r"teacher.weights: key 'body.0.bn.weight' is not in the layout edsr-pytorch"):
        to_basicsr({**official, 'body.0.bn.weight': torch.zeros(4)}, 'edsr-pytorch', 'teacher.weights')
    with pytest.raises(UserError, match=r"IN: key 'extra.weight' is not in BasicSR's layout"):
        from_basicsr({'extra.weight': torch.zeros(1)}, 'edsr-pytorch', torch.zeros(3), 'IN')


@pytest.mark.parametrize('drift', [1e-4, 0.02, 0.2])
def test_color_maps_that_were_trained_are_folded_and_borders_are_the_same(drift):
    torch.manual_seed(3)
    official = with_trained_color_maps(official_rcan(8, 2, 2, 2), drift)
    converted, shift = to_basicsr(official.state_dict(), 'rcan', 'IN')
    block = {**RCAN, 'num_feat': 8, 'num_group': 2, 'num_block': 2, 'squeeze_factor': 4, 'upscale': 2}
    assert_same_function(official, {**block, 'rgb_mean': (shift / 255).tolist()}, converted)


def test_a_folded_color_map_by_hand():
    official = official_edsr(4, 1, 2, 1.0).state_dict()
    weight, bias = torch.diag(torch.tensor([2.0, 1.0, 1.0])).view(3, 3, 1, 1), torch.tensor([-240.0, -100.0, -90.0])
    trained = {**official, 'sub_mean.weight': weight, 'sub_mean.bias': bias}  # 2 (x - 120), x - 100, x - 90
    trained['add_mean.bias'] = torch.tensor([121.0, 100.0, 88.0])
    assert trained_color_maps(trained) and not trained_color_maps(official)
    converted, shift = to_basicsr(trained, 'edsr-pytorch', 'IN')
    assert shift.tolist() == [120.0, 100.0, 90.0]
    assert torch.equal(converted['conv_first.weight'], official['head.0.weight'] * weight.sum(0).view(1, 3, 1, 1))
    assert torch.equal(converted['conv_first.bias'], official['head.0.bias'])
    assert torch.equal(converted['conv_last.weight'], official['tail.1.weight'])
    added = converted['conv_last.bias'] - official['tail.1.bias']
    torch.testing.assert_close(added, torch.tensor([1.0, 0.0, -2.0]), rtol=0, atol=1e-6)


def test_color_maps_that_lose_a_color_or_lack_one_are_refused():
    official = official_edsr(4, 1, 2, 1.0).state_dict()
    with pytest.raises(UserError, match=r'IN: sub_mean.weight maps colors to fewer; accepted: a matrix of 3 x 3 with'):
        to_basicsr({**official, 'sub_mean.weight': torch.ones(3, 3, 1, 1)}, 'edsr-pytorch', 'IN')
    del official['add_mean.bias']
    with pytest.raises(UserError, match=r'IN: add_mean.bias is missing'):
        to_basicsr(official, 'edsr-pytorch', 'IN')


@pytest.mark.parametrize(
    ('largest', 'img_range'), [(0.4488, 1.0), (114.4, 255.0), (29412.0, 65535.0), (0.0, None), (459.0, None)]
)
def test_the_range_is_the_one_in_which_the_mean_may_be_one_of_photographs(largest, img_range):
    assert image_range(torch.tensor([largest, 0.9 * largest, 0.0])) == img_range
