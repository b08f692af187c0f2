import re

import pytest
import torch
from basicsr.archs.edsr_arch import EDSR
from basicsr.archs.rcan_arch import RCAN
from basicsr.archs.srvgg_arch import SRVGGNetCompact
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from facd_basicsr.distill.taps import Taps, suggested, tappable
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
    message = (
        r"taps\[1\].teacher: 'conv_after_body' is changed in place .*; its final value is 'upsample:input'; its value "
        "at this point is 'conv_after_body:clone'$"
    )
    with pytest.raises(UserError, match=message):
        taps.run(net, torch.rand(1, 3, 5, 6))


@pytest.mark.parametrize('net', [EDSR(3, 3, 4, 2, 2), RCAN(3, 3, 16, 2, 1, upscale=2)])
def test_a_clone_is_the_feature_before_the_global_skip_and_passes_gradient_on(net):
    x = torch.rand(2, 3, 5, 6)
    output, (feat,) = Taps(net, ['conv_after_body:clone'], 'student').run(net, x)
    before_skip = net.conv_after_body(net.body(net.conv_first((x - net.mean) * 255)))
    torch.testing.assert_close(feat, before_skip)
    torch.testing.assert_close(output, net(x))
    weight = net.conv_after_body.weight
    torch.testing.assert_close(
        *(torch.autograd.grad(feature.square().mean(), weight)[0] for feature in (feat, before_skip))
    )


def test_a_clone_takes_part_in_the_gradient_of_a_loss_that_reads_the_output_too(edsr):
    x = torch.rand(1, 3, 5, 6)
    output, (feat,) = Taps(edsr, ['conv_after_body:clone'], 'student').run(edsr, x)
    plain = edsr(x)
    before_skip = edsr.conv_after_body(edsr.body(edsr.conv_first((x - edsr.mean) * 255)))
    for parameter in edsr.parameters():
        found, expected = (
            torch.autograd.grad(sr.mean() + f.mean(), parameter, retain_graph=True)[0]
            for sr, f in ((output, feat), (plain, before_skip))
        )
        torch.testing.assert_close(found, expected)


def test_an_input_too_may_be_read_as_it_is_at_that_moment():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 3, 1))
    x = torch.rand(1, 3, 2, 2)
    message = (
        r"'1:input' is changed in place .*; its final value is '2:input'; its value at this point is '1:input:clone'"
    )
    with pytest.raises(UserError, match=message):
        Taps(net, ['1:input'], 'student').run(net, x)
    _, (before, after) = Taps(net, ['1:input:clone', '2:input'], 'student').run(net, x)
    assert torch.equal(before, net[0](x)) and torch.equal(after, net[0](x).relu())


def test_tokens_may_be_cloned():
    net = nn.Sequential(nn.Flatten(2), nn.ReLU(inplace=True))  # (1, 3, 6)
    net = nn.Sequential(Transposed(), net[1], nn.Unflatten(1, (2, 3)))
    x = torch.randn(1, 4, 2, 3)
    with pytest.raises(UserError, match="its value at this point is '0:tokens:clone'"):
        Taps(net, ['0:tokens'], 'student').run(net, x)
    for path in ('0:tokens:clone', '1:input:tokens:clone'):
        _, (feat,) = Taps(net, [path], 'student').run(net, x)
        assert torch.equal(feat, x)
    assert [found.path for found in tappable(net, x, net)][:2] == ['0:tokens:clone', '1:tokens']


class Transposed(nn.Module):
    def forward(self, x):
        return x.flatten(2).transpose(1, 2).contiguous()


@pytest.mark.parametrize(
    ('path', 'nearest'),
    [
        ('body.1:clone:input', 'body.1:input:clone'),
        ('upsample:tokens:input', 'upsample:input:tokens'),
        ('body.1:clone:tokens:input', 'body.1:input:tokens:clone'),
        ('upsample:input:input', 'upsample:input'),
        ('upsample:inptu', 'upsample:input'),
        ('body.1:output', 'body.1'),
        ('body.1:', 'body.1'),
        ('boddy.1:clones', 'body.1:clone'),
    ],
)
def test_a_suffix_that_there_is_not_or_another_order_is_refused_with_the_right_spelling(edsr, path, nearest):
    message = (
        f"taps[0].student: '{path}' is not in EDSR; nearest: '{nearest}', of MODULE[:input][:tokens][:clone]; paths"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        Taps(edsr, [path], 'student')


@pytest.mark.parametrize(
    ('path', 'nearest'),
    [
        ('_orig_mod.body.2', 'body.2'),
        ('module.body.2:clone', 'body.2:clone'),
        ('module._orig_mod.upsample:input', 'upsample:input'),
        ('body._orig_mod.2', 'body.2'),
        ('module.body.9', 'body.2'),
        ('conv_first.eval_conv', 'conv_first'),  # of a network whose branches are not fused
        ('body.1.conv1.rep_conv.0', 'body.1.conv1'),
    ],
)
def test_a_path_of_a_wrapped_compiled_or_fused_network_is_refused_with_that_of_this_one(edsr, path, nearest):
    with pytest.raises(UserError, match=re.escape(f'{path!r} is not in EDSR; nearest: {nearest!r}; paths')):
        Taps(edsr, [path], 'student')


class Attended(nn.Module):
    """As SPAN's block: the feature, and what else it computed."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        out = self.conv(x)
        return out + x, out.sigmoid()


class OfTuples(nn.Module):
    """As SPAN: blocks that return tuples."""

    def __init__(self, blocks: int = 3):
        super().__init__()
        self.conv_first = nn.Conv2d(3, 4, 3, padding=1)
        self.body = nn.ModuleList(Attended() for _ in range(blocks))
        self.conv_last = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x):
        x = self.conv_first(x)
        for block in self.body:
            x, _ = block(x)
        return self.conv_last(x)


def test_a_tap_on_a_tuple_is_refused_with_the_path_that_carries_its_tensor():
    net, x = OfTuples(), torch.rand(1, 3, 5, 6)
    message = r"taps\[0\]\.student: 'body.0' gives tuple; .*; its tensors: 'body.1:input'; paths and shapes: "
    with pytest.raises(UserError, match=message):
        Taps(net, ['body.0'], 'student').run(net, x)
    listed = {found.path: found for found in tappable(net, x, net)}
    assert listed['body.0'].found == 'tuple; its tensors: body.1:input' and not listed['body.0'].channels
    assert listed['body.1:input'].found == '4 x 5 x 6'
    assert suggested(tappable(net, x, net)) == ['body.1:input', 'body.2:input', 'conv_last:input']


def test_a_tap_on_a_tuple_that_no_module_reads_is_refused_too():
    net = nn.LSTM(6, 6)
    with pytest.raises(
        UserError, match=r"'0' gives tuple; accepted: a tensor of shape \(N, C, H, W\), or tokens .*; paths"
    ):
        Taps(nn.Sequential(net), ['0'], 'student').run(lambda x: net(x[0, 0]), torch.rand(1, 1, 5, 6))


def test_for_a_module_that_does_not_run_the_one_that_holds_it_is_named():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.eval_conv = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.conv(x) if self.training else self.eval_conv(x)

    net = nn.Sequential(Branches())
    for mode, path in ((True, '0.eval_conv'), (False, '0.conv')):
        with pytest.raises(UserError, match=rf"'{path}' ran 0 times in .*; accepted: once; nearest: '0'; paths"):
            Taps(net.train(mode), [path], 'student').run(net, torch.rand(1, 3, 2, 2))


def test_an_output_that_an_in_place_relu_overwrites_is_refused(edsr):
    with pytest.raises(UserError, match=r"'body.0.conv1' is changed in place"):
        Taps(edsr, ['body.0.conv1'], 'student').run(edsr, torch.rand(1, 3, 5, 6))


@pytest.mark.parametrize(
    ('path', 'nearest'), [('body.9', 'body.2'), ('boddy.2', 'body.2'), ('upsampel:input', 'upsample:input')]
)
def test_an_unknown_path_is_refused_with_the_nearest_one(edsr, path, nearest):
    message = (
        rf"taps\[0\].student: '{path}' is not in EDSR; nearest: '{nearest}'; paths and shapes: facd check --modules "
        'student$'
    )
    with pytest.raises(UserError, match=message):
        Taps(edsr, [path], 'student')


def test_for_a_path_of_another_network_it_is_said_what_this_one_consists_of(edsr):
    message = (
        r"'layers.0.blocks.5' is not in EDSR; accepted: conv_first, body, conv_after_body, upsample, conv_last, or "
        r'below; paths and shapes: facd check --modules teacher$'
    )
    with pytest.raises(UserError, match=message):
        Taps(edsr, ['layers.0.blocks.5'], 'teacher')


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


@st.composite
def nets(draw, depth: int = 0) -> nn.Module:
    """A small network of random structure: convolutions, activations and blocks of them, some with a skip."""
    kinds = ['conv', 'act', 'conv'] + ['block', 'skip'] * (depth < 3)
    layers: list[nn.Module] = []
    for kind in draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=3)):
        if kind == 'conv':
            layers.append(nn.Conv2d(2, 2, 3, padding=1))
        elif kind == 'act':
            layers.append(nn.PReLU())
        else:
            block = draw(nets(depth + 1))
            layers.append(Skip(block) if kind == 'skip' else block)
    return nn.Sequential(*layers)


class Skip(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x):
        return x + self.body(x)


@settings(deadline=None, max_examples=40)
@given(net=nets(), data=st.data())
def test_at_any_path_of_any_network_a_tap_reads_what_a_plain_hook_sees(net, data):
    modules = {name: module for name, module in net.named_modules() if name}
    paths = data.draw(st.lists(st.sampled_from([name + end for name in modules for end in ('', ':input')]), max_size=5))
    seen = {}
    hooks = [
        module.register_forward_hook(
            lambda _, inputs, output, name=name: seen.update({name: output, f'{name}:input': inputs[0]})
        )
        for name, module in modules.items()
    ]
    x = torch.rand(1, 2, 4, 5)
    plain = net(x)
    for hook in hooks:
        hook.remove()
    output, feats = Taps(net, paths, 'student').run(net, x)
    assert torch.equal(output, plain)
    assert len(feats) == len(paths)
    assert all(torch.equal(feat, seen[path]) for feat, path in zip(feats, paths))


SUFFIXES = ('', ':input', ':tokens', ':clone', ':input:tokens', ':input:clone', ':tokens:clone', ':input:tokens:clone')
WORDS = ('0', '1', '2', '89', '.', 'body', ':', ':input', ':tokens', ':clone', 'module.', '_orig_mod.', '\n')


@settings(deadline=None, max_examples=80)
@given(net=nets(), path=st.lists(st.sampled_from(WORDS), max_size=6).map(''.join))
def test_an_unknown_path_is_refused_in_a_line_with_one_that_there_is(net, path):
    paths = {name for name, _ in net.named_modules() if name}
    try:
        Taps(net, [path], 'teacher')
    except UserError as error:
        found = re.fullmatch(
            r"taps\[0\]\.teacher: .* is not in Sequential; (?:nearest: '(.*?)'|accepted: (\w+)\b.*, or below)"
            r'(?:, of MODULE\[:input\]\[:tokens\]\[:clone\])?; paths and shapes: facd check --modules teacher',
            str(error),
        )
        assert found and path not in {name + end for name in paths for end in SUFFIXES}
        Taps(net, [found[1] or found[2]], 'teacher')
    else:
        assert path in {name + end for name in paths for end in SUFFIXES}


def test_a_network_without_modules_has_no_nearest_path():
    with pytest.raises(UserError, match=r"taps\[0\]\.student: 'body' is not in PReLU; it has no modules"):
        Taps(nn.PReLU(), ['body'], 'student')


def test_what_can_be_tapped_is_listed_with_shapes_and_what_cannot_with_the_reason(edsr):
    listed = {found.path: found for found in tappable(edsr, torch.rand(1, 3, 5, 6), edsr)}
    assert listed['body.1'].module == 'ResidualBlockNoBN' and listed['body.1'].found == '4 x 5 x 6'
    assert listed['conv_after_body:clone'].found == '4 x 5 x 6'  # changed in place later, by the global skip
    assert 'conv_after_body' not in listed and listed['body.0.conv1:clone'].found == '4 x 5 x 6'  # by a ReLU
    assert listed['upsample:input'].found == '4 x 5 x 6'  # which no module returns
    assert listed['upsample.0'].found == '16 x 5 x 6' and listed['upsample'].found == '4 x 10 x 12'
    assert 'body.1:input' not in listed  # it is body.0
    assert [path for path in listed if listed[path].channels] == list(
        dict.fromkeys(path for path in listed if 'x' in listed[path].found)
    )
    feats = Taps(edsr, [path for path in listed if listed[path].channels], 'teacher').run(edsr, torch.rand(1, 3, 5, 6))
    shapes = [' x '.join(map(str, feat.shape[1:])) for feat in feats[1]]
    assert shapes == [found.found for found in listed.values() if found.channels]


def test_tokens_are_listed_as_they_are_tapped_and_other_outputs_by_what_they_are():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.pooled, self.two, self.twice, self.once = (
                nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.LSTM(30, 30), nn.Identity(), nn.Identity()
            )  # fmt: skip

        def forward(self, x):
            tokens = self.embed(x)  # (1, 3, 30)
            self.pooled(tokens)
            self.two(tokens)
            self.once(self.embed2(tokens))
            return self.twice(self.twice(self.embed2(tokens))).transpose(1, 2).unflatten(2, x.shape[2:])

        def embed2(self, tokens):
            return tokens.transpose(1, 2)

    net = Tokens()
    listed = {found.path: found.found for found in tappable(net, torch.rand(1, 3, 5, 6), net)}
    assert listed == {
        'embed': '(1, 3, 30)', 'pooled': '(1, 3, 1)', 'two': 'tuple', 'twice': 'runs 2 times',
        'twice:input': 'runs 2 times', 'once:input:tokens': '3 x 5 x 6', 'once:tokens': '3 x 5 x 6',
    }  # fmt: skip


@pytest.mark.parametrize(
    ('net', 'paths'),
    [
        (EDSR(3, 3, 4, 12, 2), ['body.3', 'body.7', 'upsample:input']),
        (EDSR(3, 3, 4, 4, 2), ['body.0', 'body.1', 'upsample:input']),
        (RCAN(3, 3, 16, 3, 5, upscale=2), ['body.0', 'body.1', 'upsample:input']),
        (SRVGGNetCompact(num_feat=8, num_conv=5, upscale=2), ['body.2', 'body.6', 'body.11']),
    ],
)
def test_paths_like_the_papers_are_suggested(net, paths):
    found = tappable(net, torch.rand(1, 3, 5, 6), net)
    assert suggested(found) == paths
    Taps(net, paths, 'student').run(net, torch.rand(1, 3, 5, 6))


def test_of_a_network_without_features_none_is_suggested():
    net = nn.Sequential(nn.Flatten())
    assert suggested(tappable(net, torch.rand(1, 3, 4, 4), net)) == []
