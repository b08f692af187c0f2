import pytest
import torch
from basicsr.archs.edsr_arch import EDSR
from basicsr.archs.rcan_arch import RCAN
from torch import nn

from facd_basicsr.distill.taps import Taps
from facd_basicsr.errors import UserError


@pytest.fixture
def edsr() -> EDSR:
    torch.manual_seed(0)
    return EDSR(3, 3, num_feat=4, num_block=3, upscale=2)


def test_features_are_the_modules_outputs_in_the_order_of_the_paths(edsr):
    x = torch.rand(2, 3, 5, 6)
    output, feats = Taps(edsr, ['body.1', 'body.0'], 'student').run(edsr, x)
    first = edsr.conv_first((x - edsr.mean) * 255)
    after_one = edsr.body[0](first)
    assert torch.equal(feats[1], after_one)
    assert torch.equal(feats[0], edsr.body[1](after_one))
    assert torch.equal(output, edsr(x))


@pytest.mark.parametrize('net', [EDSR(3, 3, 4, 2, 2), RCAN(3, 3, 16, 2, 1, upscale=2)])
def test_input_of_the_upsampler_is_the_feature_after_the_global_skip(net):
    x = torch.rand(1, 3, 5, 6)
    _, (feat,) = Taps(net, ['upsample:input'], 'student').run(net, x)
    first = net.conv_first((x - net.mean) * 255)
    torch.testing.assert_close(feat, net.conv_after_body(net.body(first)) + first)


@pytest.mark.parametrize('net', [EDSR(3, 3, 4, 2, 2), RCAN(3, 3, 16, 2, 1, upscale=2)])
def test_a_tap_that_is_changed_in_place_is_refused_and_the_right_one_named(net):
    taps = Taps(net, ['body.0', 'conv_after_body'], 'teacher')
    with pytest.raises(UserError, match=r"taps\[1\].teacher: 'conv_after_body' .*in place.*'upsample:input'"):
        taps.run(net, torch.rand(1, 3, 5, 6))


def test_an_output_that_an_in_place_relu_overwrites_is_refused(edsr):
    with pytest.raises(UserError, match=r"'body.0.conv1' is changed in place"):
        Taps(edsr, ['body.0.conv1'], 'student').run(edsr, torch.rand(1, 3, 5, 6))


@pytest.mark.parametrize(
    ('path', 'nearest'), [('body.9', 'body.2'), ('boddy.2', 'body.2'), ('upsampel:input', 'upsample:input')]
)
def test_an_unknown_path_is_refused_with_the_nearest_one(edsr, path, nearest):
    with pytest.raises(UserError, match=rf"taps\[0\].student: '{path}' is not in EDSR; nearest: '{nearest}'"):
        Taps(edsr, [path], 'student')


def test_an_output_that_is_no_nchw_tensor_is_refused():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    with pytest.raises(UserError, match=r"taps\[0\].teacher: '0' gives \(2, 12\); accepted: a tensor of shape"):
        Taps(net, ['0'], 'teacher').run(net, torch.rand(2, 3, 2, 2))


def test_a_module_that_runs_twice_or_never_is_refused():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.idle = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.conv(self.conv(x))

    net = Shared()
    for path, times in (('conv', 2), ('idle', 0)):
        with pytest.raises(UserError, match=rf"'{path}' ran {times} times in one forward of Shared; accepted: once"):
            Taps(net, [path], 'student').run(net, torch.rand(1, 3, 2, 2))


def test_nothing_is_kept_outside_run(edsr):
    taps = Taps(edsr, ['body.0'], 'student')
    edsr(torch.rand(1, 3, 4, 4))
    assert taps._seen is None
    taps.run(edsr, torch.rand(1, 3, 4, 4))
    assert taps._seen is None


def test_a_path_may_serve_several_taps(edsr):
    _, (a, b) = Taps(edsr, ['body.0', 'body.0'], 'teacher').run(edsr, torch.rand(1, 3, 4, 4))
    assert a is b


def test_gradient_flows_through_a_tap(edsr):
    _, (feat,) = Taps(edsr, ['body.1'], 'student').run(edsr, torch.rand(1, 3, 4, 4))
    feat.sum().backward()
    assert edsr.body[0].conv1.weight.grad.abs().sum() > 0
    assert edsr.body[2].conv1.weight.grad is None
