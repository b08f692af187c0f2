"""Fake quantization: its values and gradients by hand, ranges, and networks that stay what they are."""

import copy
import re

import pytest
import torch
from basicsr.archs import build_network
from basicsr.utils.registry import ARCH_REGISTRY
from conftest import STUDENT
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from facd_basicsr.errors import UserError
from facd_basicsr.runtime.fake_quantization import FakeQuantization, fake_quantize

RGB = {'num_in_ch': 3, 'num_out_ch': 3}
RCAN = {'type': 'RCAN', **RGB, 'num_feat': 16, 'num_group': 1, 'num_block': 1, 'upscale': 2}
COMPACT = {'type': 'SRVGGNetCompact', **RGB, 'num_feat': 4, 'num_conv': 1, 'upscale': 2}
RRDB = {'type': 'RRDBNet', **RGB, 'num_feat': 4, 'num_block': 1, 'num_grow_ch': 2, 'scale': 4}
SWINIR = {'type': 'SwinIR', 'img_size': 8, 'window_size': 4, 'embed_dim': 6, 'depths': [1], 'num_heads': [2]}
SWINIR |= {'upscale': 2, 'upsampler': 'pixelshuffledirect', 'drop_path_rate': 0.0}


def images(seed: int = 0) -> Tensor:
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def quantized(net: nn.Module, decay: float = 0.99, keep: tuple[str, ...] = ()) -> FakeQuantization:
    found = FakeQuantization.of(net, 8, next(net.parameters()).shape[1], keep=keep, decay=decay)
    found.attach(net)
    return found


class Sum(nn.Module):
    """Two convolutions by 1 without a bias, and the sum of what they give and their input."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = (nn.Conv2d(1, 1, 1, bias=False) for _ in range(2))
        for layer in (self.one, self.other):
            nn.init.ones_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x) + self.other(x)
        return self.other(y)


def test_a_value_is_at_the_nearest_step_between_the_ends_and_its_gradient_is_0_beyond_them():
    x = torch.tensor([-9.0, -0.74, 0.26, 0.25, 0.74, 5.0], requires_grad=True)  # 0.25 is half a step: to the even one
    y = fake_quantize(x, torch.tensor(0.5), -1, 2)
    y.sum().backward()
    assert y.tolist() == [-0.5, -0.5, 0.5, 0.0, 0.5, 1.0]
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 0]
    assert fake_quantize(torch.tensor([float('nan')]), torch.tensor(0.5), -1, 2).isnan().all()


def test_values_and_gradients_are_those_of_torchs_operator():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0), requires_grad=True)
    scale, zero = torch.tensor(0.013), 100
    ours = fake_quantize(x, scale, torch.tensor(-100.0), torch.tensor(155.0))
    theirs = torch.fake_quantize_per_tensor_affine(x, scale.item(), zero, 0, 255)
    assert torch.equal(ours, theirs)
    assert torch.equal(*(torch.autograd.grad(y.square().sum(), x)[0] for y in (ours, theirs)))
    assert ours.min().item() == pytest.approx(-1.3) and len(ours.unique()) <= 256


def test_ranges_begin_with_the_first_batchs_extremes_then_follow_and_have_zero_in_them():
    net = Sum().train()
    own = quantized(net, decay=0.75)
    assert own.names == ['conv2d one', 'add 1', 'add 2', 'conv2d other']  # x, both of the sum, and the sum
    x = torch.tensor([0.3, 1.0, 2.55]).reshape(1, 1, 1, 3)
    assert torch.equal(net(x), 2 * x)  # nothing is quantized before the first update
    assert own.entry() is None
    net(-x)  # of the same batch: the second part
    own.update()
    assert own.bounds.tolist() == [pytest.approx([2.55] * 3 + [5.1])] * 2
    net(2 * x)  # -2.55 to 2.55 then 0 to 5.1: a quarter of the way
    own.update()
    low, high = own.entry()['ranges']['conv2d one'].tolist()
    assert (low, high) == (pytest.approx(-2.55 * 0.75), pytest.approx(2.55 * 0.75 + 5.1 * 0.25))
    net.eval()(100 * x)
    own.update()  # nothing was observed
    assert own.entry()['ranges']['conv2d one'].tolist() == [low, high]


def test_a_feature_in_uint8_steps_by_hand():
    net = Sum().train()
    own = quantized(net)
    net(torch.tensor([0.0, 2.55]).reshape(1, 1, 1, 2))  # steps of 0.01, the sum's of 0.02
    own.update()
    y = net.eval()(torch.tensor([0.104, 0.117, 1.0]).reshape(1, 1, 1, 3))
    # 0.10 + 0.10 = 0.20; 0.12 + 0.12 = 0.24; 2.00
    torch.testing.assert_close(y.flatten(), torch.tensor([0.2, 0.24, 2.0]))


def test_features_that_are_not_finite_leave_the_ranges_as_they_are():
    net = Sum().train()
    own = quantized(net, decay=0.5)
    net(torch.full((1, 1, 1, 1), 2.0))
    own.update()
    for value in (float('nan'), float('inf')):
        net(torch.full((1, 1, 1, 1), value))
        own.update()
    assert own.bounds.isfinite().all() and own.bounds[1].tolist() == [2, 2, 2, 4]


def test_a_first_batch_that_is_not_finite_is_passed_over():
    net = Sum().train()
    own = quantized(net)
    net(torch.tensor([1.0, float('nan')]).reshape(1, 1, 1, 2))
    own.update()
    assert own.bounds is None
    net(torch.full((1, 1, 1, 1), 2.0))
    own.update()
    assert own.bounds[1].tolist() == [2, 2, 2, 4]


def test_weights_are_in_127_steps_of_the_largest_of_their_output_channel():
    weight = torch.tensor([[1.27, 0.104], [12.7, 0.104]])[..., None, None]
    own = FakeQuantization(['x'])
    own.set_bounds(torch.ones(2, 1))
    by_rows = torch.tensor([[1.27, 0.1], [12.7, 0.1]])
    torch.testing.assert_close(own.weight(weight, 0)[..., 0, 0], by_rows)
    by_columns = torch.tensor([[1.3, 0.104], [12.7, 0.104]])  # of a transposed convolution
    torch.testing.assert_close(own.weight(weight, 1)[..., 0, 0], by_columns)
    own.exports = True
    torch.testing.assert_close(own.weight(weight, 0)[..., 0, 0], by_rows)


def test_the_features_of_edsr_are_named_and_each_is_quantized_once():
    net = build_network({**STUDENT, 'num_block': 1})
    block = ['conv2d body.0.conv1', 'conv2d body.0.conv2', 'add 1']
    tail = ['conv2d conv_after_body', 'add 2', 'conv2d upsample.0', 'pixel_shuffle 1']
    assert quantized(net).names == ['conv2d conv_first', *block, *tail]
    # conv_last reads what the PixelShuffle gives, which is quantized; conv_first read the input alone
    assert quantized(net, keep=('conv_first', 'conv_last')).names == [*block, *tail]


@pytest.mark.parametrize('network', [STUDENT, RCAN, COMPACT, RRDB, SWINIR], ids=lambda block: block['type'])
def test_a_network_stays_what_it_is_and_its_output_without_ranges_is_the_same_to_the_last_bit(network):
    torch.manual_seed(0)
    net = build_network(network)
    expected, keys, modules, cls = net(images()), [*net.state_dict()], [*dict(net.named_modules())], type(net)
    own = quantized(net)
    assert ([*net.state_dict()], [*dict(net.named_modules())], type(net)) == (keys, modules, cls)
    found = net.train()(images())
    assert torch.equal(found, expected)
    found.sum().backward()
    own.update()
    net.zero_grad()
    net(images()).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    with torch.no_grad():
        difference = (net.eval()(images()) - expected).abs().max()
        assert 0 < difference < 0.02 * (expected.max() - expected.min())
        assert torch.equal(copy.deepcopy(net)(images()), net(images()))
        restored = build_network(network)
        restored.load_state_dict(net.state_dict())
        FakeQuantization.of_entry(own.entry(), 'x').attach(restored)
        assert torch.equal(restored.eval()(images()), net(images()))


def test_a_kept_convolution_is_float_and_a_relu_is_part_of_the_convolution_before_it():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3)).train()
    first, _, last = net
    own = quantized(net, keep=('0',))
    assert own.names == ['conv2d 2']
    net(images())
    own.update()
    feature = own.feature(0, first(images()).relu())
    assert torch.equal(net(images()), F.conv2d(feature, own.weight(last.weight, 0), last.bias))
    assert len(feature.unique()) < 257 and own.bounds[0] == 0


def test_half_precision_features_are_quantized_in_float32():
    torch.manual_seed(0)
    net = build_network(STUDENT).train()
    own = quantized(net)
    for _ in range(2):
        with torch.autocast('cpu', torch.bfloat16):
            net(images()).float().sum().backward()
        own.update()
    assert own.bounds.dtype == torch.float32
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in net.parameters())


def test_a_path_of_keep_that_is_no_layers_is_one_line_with_layers_that_there_are():
    net = build_network(STUDENT)
    for path in ('conv_frist', 'body', 'body.0.relu'):
        line = rf"train.quantize.keep\[1\]: '{re.escape(path)}' is no layer of EDSRStudent .*conv_first, conv_last$"
        with pytest.raises(UserError, match=line):
            quantized(net, keep=('conv_first', path))


@ARCH_REGISTRY.register()
class EvalDiffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if self.training or x.shape[-1] == 6 else self.conv(self.conv(x) + x)


def test_a_network_whose_operators_differ_from_forward_to_forward_is_refused_in_one_line():
    net = EvalDiffers()
    with pytest.raises(UserError, match=r'train.quantize: EvalDiffers runs other operators in eval mode'):
        quantized(net)
    FakeQuantization.of(net, 6, 3).attach(net)
    with pytest.raises(UserError, match=r'train.quantize: EvalDiffers runs add where there was another operator'):
        net.eval()(images())
    net.train()(images())  # as before


@pytest.mark.parametrize('network, of_images', [(STUDENT, [0]), (COMPACT, [0, 6])], ids=['EDSRStudent', 'Compact'])
def test_the_range_of_images_is_from_black_to_white_though_no_batch_has_either(network, of_images):
    net = build_network(network).train()
    own = quantized(net)
    assert own.least.sum(0).nonzero().flatten().tolist() == of_images
    for _ in range(3):
        net(0.4 + 0.2 * images())
        own.update()
    low, high = (float(own.bounds[side, of_images[0]]) for side in (0, 1))
    if network is STUDENT:  # (x - mean) * 255, of three channels
        assert (low, high) == (pytest.approx(0.4488 * 255), pytest.approx((1 - 0.4040) * 255))
    else:
        assert (low, high) == (0, 1)


def test_nothing_to_quantize_is_one_line():
    with pytest.raises(UserError, match=r'train.quantize: Sequential has nothing to quantize'):
        FakeQuantization.of(nn.Sequential(nn.BatchNorm2d(3)), 8, 3)


@pytest.mark.parametrize('entry', [{}, [], {'keep': [], 'ranges': {'a': torch.tensor([1.0, 2.0])}}, {'keep': 1}])
def test_an_entry_of_another_program_is_one_line(entry):
    with pytest.raises(UserError, match=r'net_g.pth: quantization: not as train.quantize writes it'):
        FakeQuantization.of_entry(entry, 'net_g.pth')
