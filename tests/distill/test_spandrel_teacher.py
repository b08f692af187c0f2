"""Teachers that spandrel recognizes: the extra `spandrel` is part of `dev`."""

import contextlib
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network
from conftest import build_teacher, changed, write_yml
from distill.official_networks import official_rcan, with_trained_color_maps
from torch import Tensor

from facd_basicsr.distill.taps import Taps
from facd_basicsr.errors import UserError
from facd_basicsr.options import parser
from facd_basicsr.train import train

spandrel = pytest.importorskip('spandrel')


def small_dat() -> torch.nn.Module:
    from spandrel.architectures.DAT import DAT

    torch.manual_seed(0)
    return DAT(
        img_size=16, embed_dim=64, split_size=(4, 4), depth=(2,), num_heads=(2,), expansion_factor=2.0, upscale=2,
        upsampler='pixelshuffledirect', img_range=1.0, resi_connection='1conv',
    )  # fmt: skip


def small_swinir() -> torch.nn.Module:
    from spandrel.architectures.SwinIR import SwinIR

    return SwinIR(
        img_size=16, window_size=8, embed_dim=12, depths=[2], num_heads=[2], mlp_ratio=2, upscale=2,
        upsampler='pixelshuffledirect', resi_connection='1conv',
    )  # fmt: skip


def small_hat() -> torch.nn.Module:
    from spandrel.architectures.HAT import HAT

    return HAT(
        img_size=16, window_size=8, embed_dim=12, depths=[2], num_heads=[2], mlp_ratio=2, upscale=2, squeeze_factor=4,
        upsampler='pixelshuffle', resi_connection='1conv', compress_ratio=3,
    )  # fmt: skip


@pytest.fixture
def dat_opt(tmp_path: Path) -> dict:
    torch.save({'params': small_dat().state_dict()}, tmp_path / 'dat.pth')
    return {'weights': str(tmp_path / 'dat.pth')}


@pytest.fixture
def rcan_opt(tmp_path: Path) -> dict:
    torch.manual_seed(0)
    torch.save(official_rcan(8, 2, 2, 2).state_dict(), tmp_path / 'RCAN_BIX2.pt')
    return {'weights': str(tmp_path / 'RCAN_BIX2.pt'), 'format': 'spandrel'}


def test_spandrels_rcan_as_teachers_network_takes_a_checkpoint_of_its_own(tmp_path):
    """It has the authors' keys, which are BasicSR's RCAN's to be renamed."""
    network = {'type': 'RCAN_spandrel', 'n_resgroups': 2, 'n_resblocks': 1, 'n_feats': 16, 'scale': 2}
    net = build_network(network).eval()
    torch.save({'params': net.state_dict()}, tmp_path / 'rcan.pth')
    found = build_teacher({'weights': str(tmp_path / 'rcan.pth'), 'network': network}, 2)
    lq = torch.rand(1, 3, 8, 8)
    assert torch.equal(found(lq), net(lq.clone()))


def test_a_transformer_is_recognised_and_frozen(dat_opt):
    teacher = build_teacher(dat_opt, 2)
    assert type(teacher.net).__name__ == 'DAT'
    assert not any(m.training for m in teacher.train().modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    lq = torch.rand(1, 3, 16, 16)
    sr = teacher(lq)
    assert sr.shape == (1, 3, 32, 32) and not sr.requires_grad and not sr.is_inference()
    torch.testing.assert_close(sr, small_dat().eval()(lq))  # with random weights its output leaves [0, 1]: not clamped
    assert sr.min() < 0 or sr.max() > 1


@pytest.mark.parametrize('network', [small_dat, small_swinir, small_hat])
def test_any_transformers_tokens_and_last_feature_can_be_tapped(network, tmp_path):
    net = network()
    torch.save({'params_ema': net.state_dict()}, tmp_path / 'net.pth')
    teacher = build_teacher({'weights': str(tmp_path / 'net.pth')}, 2)
    lq = torch.rand(2, 3, 16, 24)
    torch.testing.assert_close(teacher(lq), net.eval()(lq))
    paths = ['layers.0.residual_group.blocks.0:tokens' if network is not small_dat else 'layers.0.blocks.0:tokens']
    _, feats = Taps(teacher.net, [*paths, 'layers.0:tokens', 'conv_after_body'], 'teacher').run(teacher, lq)
    width = teacher.net.conv_first.out_channels
    assert [feat.shape for feat in feats] == [(2, width, 16, 24)] * 3
    assert teacher(torch.rand(1, 3, 13, 18)).shape == (1, 3, 26, 36)  # windows that do not fit are padded


def test_a_network_beside_others_is_found_and_two_are_refused(tmp_path):
    def build(*prefixes: str) -> torch.nn.Module:
        content = {'loss.vgg.0.weight': torch.zeros(4, 3, 3, 3)}
        for prefix in prefixes:
            content |= {prefix + key: value for key, value in net.state_dict().items()}
        torch.save({'state_dict': content, 'epoch': 3}, tmp_path / 'net.ckpt')
        return build_teacher({'weights': str(tmp_path / 'net.ckpt')}, 2)

    net = small_swinir()
    lq = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(build('model.')(lq), net.eval()(lq))
    with pytest.raises(UserError, match=r'net.ckpt: spandrel recognizes one below each of model., ema. \(first key: '):
        build('model.', 'ema.')


def test_an_image_below_the_networks_least_size_is_padded_and_cropped(dat_opt):
    teacher = build_teacher(dat_opt, 2)
    lq = torch.rand(1, 3, 9, 20)
    sr = teacher(lq)
    assert sr.shape == (1, 3, 18, 40)
    padded = torch.cat([lq, lq[:, :, 1:8].flip(2)], 2)  # reflected to the minimum of 16
    assert torch.equal(sr, teacher(padded)[:, :, :18])


def test_lq_is_untouched_by_spandrels_rcan_which_multiplies_its_input_in_place(rcan_opt):
    teacher = build_teacher(rcan_opt, 2)
    lq = torch.rand(1, 3, 6, 6)
    before = lq.clone()
    by_hand = teacher.net(lq.clone())
    torch.testing.assert_close(teacher(lq), by_hand)
    assert torch.equal(lq, before)
    teacher.net(lq)
    assert not torch.equal(lq, before)  # without the teacher's copy it would not be


@pytest.mark.parametrize('trained', [False, True])
def test_spandrels_rcan_and_basicsrs_give_the_same_for_one_official_checkpoint(trained, rcan_opt):
    if trained:
        torch.save(with_trained_color_maps(official_rcan(8, 2, 2, 2)).state_dict(), rcan_opt['weights'])
    network = {'type': 'RCANStudent', 'num_feat': 8, 'num_group': 2, 'num_block': 2, 'squeeze_factor': 4, 'upscale': 2}
    ours = build_teacher({'weights': rcan_opt['weights'], 'network': network}, 2)
    theirs = build_teacher(rcan_opt, 2)
    lq = torch.rand(2, 3, 8, 7)
    torch.testing.assert_close(theirs(lq), ours(lq), rtol=0, atol=2e-6)


def tap(teacher: torch.nn.Module, path: str, lq: Tensor) -> Tensor:
    return Taps(teacher.net, [path], 'teacher').run(teacher, lq)[1][0]


def test_tokens_are_read_as_the_feature_they_come_from(dat_opt):
    teacher = build_teacher(dat_opt, 2)
    lq = torch.rand(2, 3, 16, 24)
    tokens = []
    handle = teacher.net.layers[0].register_forward_hook(lambda _, __, output: tokens.append(output))
    feat = tap(teacher, 'layers.0:tokens', lq)
    handle.remove()
    assert feat.shape == (2, 64, 16, 24)
    assert torch.equal(feat[1, :, 3, 5], tokens[0][1, 3 * 24 + 5])
    # the tokens that enter the first layer are the first convolution's output, before and after normalization
    assert tap(teacher, 'layers.0:input:tokens', lq).shape == (2, 64, 16, 24)
    normed = teacher.net.before_RG[1](teacher.net.before_RG[0](teacher.net.conv_first(lq - teacher.net.mean)))
    torch.testing.assert_close(tap(teacher, 'before_RG:tokens', lq), normed.transpose(1, 2).reshape(2, 64, 16, 24))


def test_tokens_without_the_suffix_and_the_suffix_without_tokens_are_refused(dat_opt):
    teacher = build_teacher(dat_opt, 2)
    lq = torch.rand(1, 3, 16, 16)
    with pytest.raises(UserError, match=r"'layers.0' gives \(1, 256, 64\); .*or tokens .* as 'layers.0:tokens'"):
        tap(teacher, 'layers.0', lq)
    with pytest.raises(UserError, match=r"'conv_first:tokens' gives \(1, 64, 16, 16\); accepted: .* \(N, H \* W, C\)"):
        tap(teacher, 'conv_first:tokens', lq)
    with pytest.raises(UserError, match=r"'layer.0:tokens' is not in DAT; nearest: 'layers.0:tokens'"):
        tap(teacher, 'layer.0:tokens', lq)


def test_tokens_of_another_number_than_pixels_are_refused():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2, stride=2), torch.nn.Flatten(2))
    with pytest.raises(UserError, match=r"'1:tokens' gives 4 tokens for an input of 6 x 6; accepted: one for each"):
        Taps(net, ['1:tokens'], 'teacher').run(net, torch.rand(1, 3, 6, 6))


def test_esrgans_published_keys_which_begin_with_model_are_left_to_spandrel(tmp_path):
    from spandrel.architectures.ESRGAN import ESRGAN

    net = ESRGAN(num_filters=8, num_blocks=1, scale=2)
    assert all(key.startswith('model.') for key in net.state_dict())
    torch.save(net.state_dict(), tmp_path / 'esrgan.pth')
    lq = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(build_teacher({'weights': str(tmp_path / 'esrgan.pth')}, 2)(lq), net.eval()(lq))


def test_what_spandrel_finds_must_be_this_files_scale_and_colors(dat_opt, tmp_path):
    with pytest.raises(UserError, match=r'teacher.weights: .*dat.pth: is a DAT for SR x2; accepted: SR x4'):
        build_teacher(dat_opt, 4)
    with pytest.raises(
        UserError, match=r'teacher.precision: fp16, which DAT does not support; accepted: fp32, tf32, bf16'
    ):
        build_teacher({**dat_opt, 'precision': 'fp16'}, 2)
    assert build_teacher({**dat_opt, 'precision': 'bf16'}, 2)(torch.rand(1, 3, 16, 16)).dtype == torch.float32
    torch.save({'no.such.network': torch.zeros(1)}, tmp_path / 'odd.pth')
    with pytest.raises(UserError, match=r'odd.pth: spandrel does not recognize it \(first key: no.such.network\)'):
        build_teacher({'weights': str(tmp_path / 'odd.pth')}, 2)


def test_a_checkpoint_that_spandrel_mistakes_is_refused_in_one_line(tmp_path):
    state_dict = small_dat().state_dict()
    del state_dict['conv_first.bias']
    torch.save(state_dict, tmp_path / 'cut.pth')
    with pytest.raises(UserError, match=r'teacher.weights: .*cut.pth: spandrel') as error:
        build_teacher({'weights': str(tmp_path / 'cut.pth')}, 2)
    assert '\n' not in str(error.value)


def test_a_transformer_teaches_an_edsr_through_its_tokens(dat_opt, train_opt, tmp_path):
    opt = changed(changed(train_opt, 'teacher', dat_opt), 'datasets.train.gt_size', 32)
    for index, path in enumerate(('layers.0.blocks.0:tokens', 'layers.0:tokens', 'upsample:input')):
        opt['taps'][index]['teacher'] = path
    args = parser().parse_args(['-opt', str(write_yml(opt, tmp_path / 'dat.yml'))])
    train(args, root=tmp_path, console=False)
    (log,) = (tmp_path / 'experiments' / 'tiny').glob('*.log')
    terms = re.findall(r'l_facd: (\S+) alpha: \S+ r_1: (\S+) r_2: (\S+) r_3: (\S+)', log.read_text())
    assert len(terms) == opt['train']['total_iter']
    assert all(float(r) > 0 for line in terms for r in line[1:])
    saved = torch.load(tmp_path / 'experiments' / 'tiny' / 'models' / 'net_g_latest.pth', weights_only=True)
    assert all('layers' not in key for key in saved['params'])


def test_without_spandrel_the_message_says_how_to_get_it(dat_opt, monkeypatch):
    monkeypatch.setattr('facd_basicsr.distill.teacher.INSTALLED', False)
    with pytest.raises(UserError, match=r"spandrel, .* is not installed; .*pip install 'facd_basicsr\[spandrel\]'"):
        build_teacher(dat_opt, 2)


def default_networks() -> Iterator[torch.nn.Module]:
    """Every architecture of spandrel's that builds without arguments."""
    for module in pkgutil.iter_modules(spandrel.architectures.__path__):
        network = getattr(importlib.import_module(f'spandrel.architectures.{module.name}'), module.name, None)
        if inspect.isclass(network):
            with contextlib.suppress(TypeError, RuntimeError):
                yield network()


@pytest.mark.slow
def test_every_sr_architecture_that_builds_by_default_can_teach(tmp_path):
    taught = []
    for net in default_networks():
        try:
            descriptor = spandrel.ModelLoader().load_from_state_dict(dict(net.state_dict()))
        except spandrel.UnsupportedModelError:
            continue
        if descriptor.purpose == 'SR':
            torch.save(net.state_dict(), tmp_path / 'net.pth')
            sr = build_teacher({'weights': str(tmp_path / 'net.pth')}, descriptor.scale)(torch.rand(1, 3, 20, 24))
            assert sr.shape == (1, 3, 20 * descriptor.scale, 24 * descriptor.scale)
            taught.append(type(net).__name__)
    assert len(taught) >= 15, taught


def test_building_a_teacher_by_spandrel_draws_no_random_number(dat_opt):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    build_teacher(dat_opt, 2)
    assert torch.equal(torch.rand(4), expected)
