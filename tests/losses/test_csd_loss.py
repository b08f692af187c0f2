import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import changed, write_yml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from states import images, random_state, save_vgg, summed
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torchvision.models import vgg19

from facd_basicsr.errors import UserError
from facd_basicsr.losses import DistillState, build_loss, vgg
from facd_basicsr.losses.csd_loss import CSDLoss
from facd_basicsr.models.safe_model import build_model
from facd_basicsr.options import load_options, parse_options, parser

WHERE = 'train.distill_opt.vgg_weights: '


def flat(*values: float) -> torch.Tensor:
    """Images of one color that are large enough for two layers: (N, 3, 2, 2)."""
    return images(*values).expand(-1, 3, 2, 2)


def csd(features: Callable[[torch.Tensor], tuple[torch.Tensor, ...]], **options: Any) -> CSDLoss:
    """The loss with ``features`` in the place of its VGG."""
    loss = CSDLoss(**options)
    loss.features = features
    return loss


class TinyFeatures(nn.Module):
    """Two smooth layers in the place of a VGG, float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1).double(), nn.Conv2d(4, 5, 2, stride=2).double()
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        first = torch.tanh(self.first(x))
        return first, torch.tanh(self.second(first))


def literal(state: DistillState, features: nn.Module, weights: tuple[float, ...], negatives: int) -> torch.Tensor:
    """The authors' objective on images in [0, 1] with lambda 200: contrast_loss.py, L1_forward, in plain loops."""
    upsampled = F.interpolate(state.lq[:negatives], scale_factor=2, mode='bicubic')
    student, teacher, negative = (features(x) for x in (state.student, state.teacher.detach(), upsampled))
    contrast = 0
    for w, s, t, neg in zip(weights, student, teacher, negative):
        d_ts = (t - s).abs().mean()
        d_sn = sum((s - one).abs() for one in neg.detach()).mean()  # one (C, H, W) against the whole batch
        contrast = contrast + w * d_ts / (d_sn + 1e-7)
    return (state.student - state.gt).abs().mean() + 200 * contrast


@pytest.fixture(scope='module')
def vgg_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vgg(tmp_path_factory.mktemp('vgg') / 'vgg.pth', depth=2)


@pytest.fixture
def csd_opt(train_opt: dict, vgg_file: Path) -> dict:
    """A complete option dict for training by CSD."""
    distill_opt = {'type': 'CSDLoss', 'vgg_weights': str(vgg_file), 'layer_weights': [0.5, 1.0]}
    return changed(changed(changed(train_opt, 'taps', ...), 'network_r', ...), 'train.distill_opt', distill_opt)


def test_terms_equal_values_worked_by_hand():
    state = DistillState(flat(0.6, 0.9), flat(0.8, 0.6), flat(0.5, 0.5), flat(0.5, 0.1), (), ())
    logs = csd(lambda x: (x, 10 * x), lambda_=3, layer_weights=(1, 0.5), img_range=2)(state)
    # positives 0.2, 0.3; negatives |0.6 - 0.5| + |0.6 - 0.1| = 0.6 and 0.4 + 0.8 = 1.2: the same ratio in both layers
    assert logs['l_csd'].item() == pytest.approx(3 * 1.5 * 0.25 / 0.9)
    assert logs['l_sr'].item() == pytest.approx(2 * 0.25)
    assert logs['r_1'].item() == pytest.approx(0.25 / 0.45)
    assert logs['r_2'].item() == pytest.approx(0.25 / 0.45)


def test_the_vgg_sees_images_in_the_given_range():
    seen = []

    def features(x: torch.Tensor) -> tuple[torch.Tensor]:
        seen.append(x.detach())
        return (x,)

    state = DistillState(flat(0.6, 0.9), flat(0.8, 1.2), flat(0.5, 0.5), flat(-0.5, 0.1), (), ())
    csd(features, layer_weights=[1.0])(state)
    expected = [255 * x for x in (state.teacher, state.lq, state.student)]
    torch.testing.assert_close(seen, expected)  # not clamped either


@settings(deadline=None, max_examples=20)
@given(n=st.integers(2, 5), negatives=st.integers(1, 6), seed=st.integers(0, 2**31))
def test_it_equals_its_transcription_in_value_and_gradient(n, negatives, seed):
    state, features = random_state(n=n, seed=seed), TinyFeatures()
    logs = csd(features, layer_weights=(0.3, 0.7), img_range=1, num_negatives=negatives)(state)
    ours, theirs = logs['l_sr'] + logs['l_csd'], literal(state, features, (0.3, 0.7), negatives)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, state.student), torch.autograd.grad(theirs, state.student))


def test_gradcheck():
    state, features = random_state(n=2), TinyFeatures()

    def total(student):
        return summed(csd(features, layer_weights=(0.3, 0.7), img_range=1)(replace(state, student=student)))

    assert torch.autograd.gradcheck(total, state.student)


def test_the_defaults_are_the_authors_values():
    loss = CSDLoss()
    assert (loss.lambda_, loss.img_range, loss.num_negatives, loss.eps) == (200.0, 255.0, 10, 1e-7)
    assert loss.layer_weights == (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1)
    assert not loss.reads_features


def test_the_features_are_those_of_torchvisions_vgg_19(tmp_path):
    path = save_vgg(tmp_path / 'vgg.pth', depth=5)
    found = vgg.load_vgg(str(path))
    with torch.device('meta'):
        whole = vgg19(weights=None).features[:30]
    state_dict = {key.removeprefix('features.'): value for key, value in torch.load(path, weights_only=True).items()}
    whole.load_state_dict({key: state_dict[key] for key in whole.state_dict()}, assign=True)
    batch = torch.rand(2, 3, 16, 16)
    feat, expected = batch, []
    with torch.no_grad():
        for layer in whole:
            feat = layer(feat.clone())
            expected.append(feat)
    relus = [i for i, layer in enumerate(whole) if isinstance(layer, nn.ReLU)]
    first_of_each_block = [relus[i] for i in (0, 2, 4, 8, 12)]  # 2, 2, 4, 4 and 4 convolutions to a block
    torch.testing.assert_close(found(batch), tuple(expected[i] for i in first_of_each_block))
    state = replace(
        random_state(n=2, dtype=torch.float32),
        **{name: torch.rand(2, 3, 16, 16) for name in ('student', 'teacher', 'gt')},
        lq=torch.rand(2, 3, 8, 8),
    )
    student = state.student.requires_grad_()
    logs = CSDLoss(vgg_weights=str(path)).prepare()(state)
    assert torch.isfinite(logs['l_csd'])
    assert torch.autograd.grad(logs['l_csd'], student)[0].abs().sum() > 0


def test_the_vgg_may_be_in_the_home_folder(vgg_file, monkeypatch):
    monkeypatch.setenv('HOME', str(vgg_file.parent))
    loss = CSDLoss(layer_weights=[1.0, 1.0], vgg_weights=f'~/{vgg_file.name}').prepare()
    assert len(loss.features(torch.rand(1, 3, 8, 8))) == 2


def test_the_vgg_is_frozen_in_eval_and_goes_where_the_loss_goes(vgg_file):
    loss = CSDLoss(layer_weights=[1.0, 1.0], vgg_weights=str(vgg_file)).prepare().train()
    assert not any(module.training for module in loss.features.modules())
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    assert {parameter.device.type for parameter in loss.to('meta').parameters()} == {'meta'}


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        (None, 'No such file'),
        ({'conv.weight': torch.zeros(1)}, 'does not fit Sequential: keys 6 missing (first: 0.bias)'),
        ({'features.0.weight': torch.zeros(1)}, '1 of another shape (first: 0.weight (1,) for (64, 3, 3, 3))'),
        ({'model': vgg19}, 'it holds more than tensors'),
    ],
)
def test_weights_that_cannot_be_had_are_refused_in_one_line_that_says_what_to_do(tmp_path, content, reason):
    path = tmp_path / 'vgg.pth'
    if content is not None:
        torch.save(content, path)
    with pytest.raises(UserError) as caught:
        CSDLoss(layer_weights=[1, 1], vgg_weights=str(path)).prepare()
    message = str(caught.value)
    assert message.startswith(f'{WHERE}{path}') and reason in message and '\n' not in message
    assert message.endswith(f'without a network, bring {vgg.VGG19_WEIGHTS} here and name its path')


def test_without_a_network_the_address_that_was_tried_is_named(monkeypatch, tmp_path):
    def offline(url: str, path: Path, where: str, sha256: str | None = None) -> None:
        assert sha256 == 'dcbb9e9d'
        raise UserError(f'{where}: {url}: no connection')

    monkeypatch.setattr('facd_basicsr.files.download.download', offline)
    with pytest.raises(UserError, match=re.escape(f'{WHERE}{vgg.VGG19_WEIGHTS}: no connection; accepted: ')):
        CSDLoss().prepare()


def test_other_formats_and_types_of_weights_are_read(tmp_path, vgg_file):
    half = {key: value.half() for key, value in torch.load(vgg_file, weights_only=True).items()}
    save_file(half, tmp_path / 'vgg.safetensors')
    found = vgg.load_vgg(str(tmp_path / 'vgg.safetensors'), depth=2)
    assert {parameter.dtype for parameter in found.parameters()} == {torch.float32}


def test_an_option_file_is_checked_without_the_vgg(csd_opt, tmp_path, monkeypatch):
    monkeypatch.setattr('facd_basicsr.losses.vgg.load_vgg', None)
    opt = changed(csd_opt, 'train.distill_opt.vgg_weights', str(tmp_path / 'none.pth'))
    load_options(str(write_yml(opt, tmp_path / 'opt.yml')), [], is_train=True)


def test_a_model_trains_by_it_and_keeps_the_vgg_out_of_optimizer_and_checkpoints(csd_opt, tmp_path):
    args = parser().parse_args(['-opt', str(write_yml(csd_opt, tmp_path / 'opt.yml'))])
    opt = parse_options(args, is_train=True, root=tmp_path)
    for key in ('models', 'training_states'):
        Path(opt['path'][key]).mkdir(parents=True, exist_ok=True)
    model = build_model(opt)
    before = [parameter.clone() for parameter in model.criterion.parameters()]
    model.feed_data({'lq': torch.rand(3, 3, 8, 8), 'gt': torch.rand(3, 3, 16, 16)})
    model.optimize_parameters(1)
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.net_g.parameters())
    assert all(parameter.grad is None for parameter in model.criterion.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model.criterion.parameters()))
    held = {id(p) for group in model.optimizer_g.param_groups for p in group['params']}
    assert held == {id(p) for p in model.net_g.parameters()}
    model.save(0, 1)
    assert [path.name for path in Path(opt['path']['models']).iterdir()] == ['net_g_1.pth']


def test_prepare_comes_before_the_first_forward():
    with pytest.raises(RuntimeError, match=r'prepare\(\)'):
        CSDLoss()(random_state())


@pytest.mark.parametrize(
    ('shape', 'message'),
    [
        ((2, 1, 8, 8), 'network_g: gives 1 channels; accepted: 3'),
        ((2, 3, 8, 1), 'datasets.train.gt_size: 1; accepted: 2 or more'),
    ],
)
def test_images_that_are_none_for_a_vgg_are_refused(vgg_file, shape, message):
    image = torch.rand(shape)
    loss = CSDLoss(layer_weights=[1, 1], vgg_weights=str(vgg_file)).prepare()
    with pytest.raises(UserError, match=message):
        loss(DistillState(image, image, image, image, (), ()))


@pytest.mark.parametrize('layer_weights', [[], [1.0] * 6])
def test_layers_that_are_none_of_the_vgg_are_refused(layer_weights):
    with pytest.raises(UserError, match=rf'layer_weights: {len(layer_weights)} weights; accepted: 1 to 5'):
        build_loss({'type': 'CSDLoss', 'layer_weights': layer_weights})
