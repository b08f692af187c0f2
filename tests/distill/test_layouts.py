"""Converted networks against the originals, written independently in official_networks.py."""

import pytest
import torch
from basicsr.archs import build_network
from distill.official_networks import DIV2K, official_edsr, official_rcan
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from facd_basicsr.distill.layouts import from_basicsr, network_block, recognize, to_basicsr
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


@settings(deadline=None, max_examples=40)
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


def test_colour_scaling_that_basicsr_cannot_do_is_refused():
    official = official_edsr(4, 1, 2, 1.0).state_dict()
    for key, value in (
        ('sub_mean.weight', official['sub_mean.weight'] / 0.25),
        ('add_mean.bias', official['add_mean.bias'] + 1),
    ):
        with pytest.raises(UserError, match=r'IN: sub_mean and add_mean scale the colors or do not undo each other'):
            to_basicsr({**official, key: value}, 'edsr-pytorch', 'IN')
    del official['add_mean.bias']
    with pytest.raises(UserError, match=r'IN: add_mean.bias is missing'):
        to_basicsr(official, 'edsr-pytorch', 'IN')
