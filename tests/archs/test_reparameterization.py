"""Blocks that fuse for inference, beside what is worked out by hand and their own branches."""

import copy

import pytest
import torch
from basicsr.archs import build_network
from basicsr.archs.ecbsr_arch import ECB, ECBSR
from basicsr.archs.srvgg_arch import SRVGGNetCompact
from basicsr.models.base_model import BaseModel
from conftest import STUDENT
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from training_steps import trained

from facd_basicsr.archs.reparameterization import (
    as_compact,
    fused_blocks,
    reparameterized,
    with_training_branches,
)
from facd_basicsr.runtime.metrics import photograph_input

LARGEST = 1e-5  # of the output's range, in float32


def conv3xc(c_in: int, c_out: int, *, relu: bool = False, stride: int = 1) -> nn.Module:
    pytest.importorskip('spandrel')
    from spandrel.architectures.SPAN.__arch.span import Conv3XC

    return Conv3XC(c_in, c_out, gain1=2, s=stride, relu=relu)


def difference(net: nn.Module, other: nn.Module, lq: Tensor) -> float:
    """The largest between their outputs, of the range of the first's."""
    with torch.no_grad():
        expected, found = net(lq.clone()), other(lq.clone())
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / (expected.max() - expected.min()).clamp(min=1e-3))


def fill(tensor: Tensor, values: object) -> None:
    with torch.no_grad():
        tensor.copy_(torch.as_tensor(values, dtype=tensor.dtype).expand_as(tensor))


def test_an_ecb_is_the_convolution_that_is_worked_out_by_hand():
    block = ECB(1, 1, depth_multiplier=2.0, act_type='prelu', with_idt=True)
    center = torch.zeros(3, 3)
    center[1, 1] = 1
    fill(block.conv3x3.weight, center)
    fill(block.conv3x3.bias, 0.5)
    expand = block.conv1x1_3x3  # 2 * ones - 4 at the center; 9 * 1 + 4 * 3 + 0.25
    fill(expand.k0, torch.tensor([2.0, -1.0]).view(2, 1, 1, 1))
    fill(expand.b0, [1.0, 3.0])
    fill(expand.k1, torch.stack([torch.ones(3, 3), 4 * center])[None])
    fill(expand.b1, 0.25)
    for edge, (scale, k0, b0, bias) in {  # a Sobel's and a Laplacian's sum is 0, so that b0 does not count
        block.conv1x1_sbx: (0.5, 2, 1, 0.25),
        block.conv1x1_sby: (0, 1, 1, 1),
        block.conv1x1_lpl: (1, -1, 10, 0),
    }.items():
        fill(edge.scale, scale)
        fill(edge.k0, k0)
        fill(edge.b0, b0)
        fill(edge.bias, bias)
    fused = reparameterized(block)
    # at the center 1 + (2 - 4) + 0 + 4 + 1; beside it 2 + Sobel - Laplacian
    assert fused.conv3x3.weight[0, 0].tolist() == [[3, 1, 1], [3, 4, -1], [3, 1, 1]]
    assert fused.conv3x3.bias.tolist() == [0.5 + 21.25 + 0.25 + 1]
    assert [type(module) for module in fused] == [nn.Conv2d, nn.PReLU]


def test_a_conv3xc_is_the_convolution_that_is_worked_out_by_hand():
    block = conv3xc(1, 1)
    first, second, third = block.conv
    fill(first.weight, torch.tensor([1.0, 2.0]).view(2, 1, 1, 1))
    fill(first.bias, [1, 0])
    center = torch.zeros(3, 3)
    center[1, 1] = 1
    zero = torch.zeros(3, 3)
    fill(second.weight, torch.stack([torch.stack([torch.ones(3, 3), zero]), torch.stack([zero, center])]))
    fill(second.bias, [0, 5])
    fill(third.weight, torch.tensor([1.0, 10.0]).view(1, 2, 1, 1))
    fill(third.bias, 0.5)
    fill(block.sk.weight, 3)
    fill(block.sk.bias, 0.25)
    fused = reparameterized(block)
    assert type(fused) is nn.Conv2d
    assert fused.weight[0, 0].tolist() == [[1, 1, 1], [1, 1 + 10 * 2 + 3, 1], [1, 1, 1]]
    assert fused.bias.tolist() == [9 * 1 + 10 * 5 + 0.5 + 0.25]


SIDES = st.integers(1, 9)  # of 1 and 2, where every pixel is at a border


def randomized(block: nn.Module, seed: int) -> nn.Module:
    """With values of a trained block's size, biases too."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in block.parameters():
        if parameter.requires_grad:
            fill(parameter, 0.5 * torch.randn(parameter.shape, generator=generator))
    return block


def assert_fuses(block: nn.Module, seed: int, shape: tuple[int, int, int, int]) -> None:
    """In float64, where rounding hides nothing."""
    block = randomized(block, seed).double()
    lq = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    with torch.no_grad():
        expected = with_training_branches(block)(lq.clone())
        torch.testing.assert_close(reparameterized(block)(lq.clone()), expected, rtol=1e-12, atol=1e-11)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**31),
    c_in=st.integers(1, 5),
    c_out=st.integers(1, 5),
    act_type=st.sampled_from(['prelu', 'relu', 'rrelu', 'softplus', 'linear']),
    with_idt=st.booleans(),
    height=SIDES,
    width=SIDES,
)
def test_a_fused_ecb_gives_what_its_branches_give_at_the_borders_too(
    seed, c_in, c_out, act_type, with_idt, height, width
):
    assert_fuses(ECB(c_in, c_out, 2.0, act_type, with_idt), seed, (2, c_in, height, width))


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**31),
    c_in=st.integers(1, 5),
    c_out=st.integers(1, 5),
    relu=st.booleans(),
    stride=st.integers(1, 2),
    height=SIDES,
    width=SIDES,
)
def test_a_fused_conv3xc_gives_what_its_branches_give_at_the_borders_too(
    seed, c_in, c_out, relu, stride, height, width
):
    assert_fuses(conv3xc(c_in, c_out, relu=relu, stride=stride), seed, (2, c_in, height, width))


def span() -> nn.Module:
    pytest.importorskip('spandrel')
    from spandrel.architectures.SPAN import SPAN

    return SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2)


def ecbsr(channels: int = 3, out: int = 3, act_type: str = 'prelu', with_idt: bool = True, scale: int = 2) -> ECBSR:
    return ECBSR(channels, out, 2, 8, with_idt, act_type, scale)


NETWORKS = {'ECB': (ecbsr, 4), 'Conv3XC': (span, 20)}


@pytest.mark.parametrize('kind', NETWORKS)
def test_a_network_is_the_same_after_training_steps_fused_and_not(kind):
    torch.manual_seed(0)
    build, blocks = NETWORKS[kind]
    net = trained(build())
    assert fused_blocks(net) == {kind: blocks}
    kept = copy.deepcopy(net.state_dict())
    lq = photograph_input('chelsea.png', 3, 37, 50)
    fused = reparameterized(net)
    assert not fused.training and net.training
    assert all(torch.equal(value, kept[key]) for key, value in net.state_dict().items())
    assert difference(with_training_branches(net), fused, lq) <= LARGEST
    assert difference(net.eval(), fused, lq) <= LARGEST
    own = {name for name, module in net.named_modules() if type(module).__name__ == kind}
    assert own <= {name for name, _ in fused.named_modules()}  # blocks stay where they were


def test_a_network_without_such_blocks_stays_itself():
    net = build_network(STUDENT)
    assert not fused_blocks(net)
    assert reparameterized(net) is net and with_training_branches(net) is net and as_compact(net) is None


class Changed(ECB):
    """Adds something to what ECB gives."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def test_a_class_derived_from_a_block_is_not_taken_for_it():
    assert not fused_blocks(nn.Sequential(Changed(3, 3, 2.0)))


def test_a_block_at_two_places_is_fused_at_both():
    block = randomized(ECB(2, 2, 2.0), 0)
    net = nn.Module()
    net.first, net.second, net.body = block, block, nn.Sequential(nn.ReLU(), block)
    fused = reparameterized(net)
    assert fused.first is fused.second is fused.body[1] and type(fused.first) is nn.Sequential


class RepBlock(nn.Module):
    """RepVGG's convention, in small: two branches, one of which is the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Conv2d(2, 2, 1)
        self.deployed: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x) + x if self.deployed is None else self.deployed(x)

    def switch_to_deploy(self) -> None:
        self.deployed = copy.deepcopy(self.dense)
        with torch.no_grad():
            self.deployed.weight[:, :, 0, 0] += torch.eye(2)
        del self.dense


def test_a_block_that_can_switch_to_deploy_does_so():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 2, 3), RepBlock())
    fused = reparameterized(net)
    assert fused_blocks(net) == {'RepBlock': 1}
    assert net[1].deployed is None and not hasattr(fused[1], 'dense')
    assert difference(net.eval(), fused, torch.rand(1, 3, 5, 6)) <= LARGEST


@pytest.mark.parametrize(
    ('act_type', 'channels', 'out', 'with_idt', 'scale'),
    [
        ('prelu', 3, 3, True, 2),
        ('relu', 1, 1, False, 3),
        ('rrelu', 1, 3, True, 2),
        ('linear', 3, 3, False, 4),
    ],
)
def test_a_fused_ecbsr_is_a_srvggnetcompact_bit_for_bit(act_type, channels, out, with_idt, scale, tmp_path):
    torch.manual_seed(0)
    net = trained(ecbsr(channels, out, act_type, with_idt, scale), channels).eval()
    lq = photograph_input('astronaut.png', channels, 19, 26)
    before = torch.get_rng_state()
    compact = as_compact(net)
    assert torch.equal(torch.get_rng_state(), before)
    stock = SRVGGNetCompact(channels, out, num_feat=8, num_conv=2, upscale=scale)
    torch.save({'params': compact.state_dict()}, tmp_path / 'net.pth')
    BaseModel({'num_gpu': 0, 'is_train': False}).load_network(stock, tmp_path / 'net.pth', True, 'params')
    with torch.no_grad():
        assert torch.equal(stock(lq), reparameterized(net)(lq))
        assert torch.equal(stock(lq), compact(lq))
    assert difference(net, stock, lq) <= LARGEST


def test_spandrel_opens_a_fused_ecbsr_of_any_activation_that_is_piecewise_linear(tmp_path):
    spandrel = pytest.importorskip('spandrel')
    torch.manual_seed(0)
    net = trained(ecbsr(act_type='relu')).eval()
    torch.save({'params': as_compact(net).state_dict()}, tmp_path / 'net.pth')
    opened = spandrel.ModelLoader('cpu').load_from_file(str(tmp_path / 'net.pth'))
    assert (opened.architecture.id, opened.scale, opened.input_channels) == ('Compact', 2, 3)
    assert difference(net, opened.model, photograph_input('chelsea.png', 3, 20, 30)) <= LARGEST


def test_softplus_has_no_stock_class():
    assert as_compact(ecbsr(act_type='softplus')) is None
