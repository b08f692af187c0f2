"""GAN and perceptual terms beside any loss: their values, BasicSR's steps, the guard, resuming and stages."""

import copy
import math
import shutil

import pytest
import torch
from basicsr.archs.vgg_arch import VGGFeatureExtractor
from basicsr.losses.basic_loss import PerceptualLoss
from basicsr.utils import get_root_logger
from conftest import changed
from realesrgan import degraded_opt
from runs import assert_same, log_text, result, run, scalars
from states import save_vgg
from torch import Tensor, nn
from torch.nn.functional import softplus

from facd_basicsr.errors import UserError
from facd_basicsr.losses.vgg import least_size, load_perceptual_loss
from facd_basicsr.models.gan import GAN
from facd_basicsr.models.micro_batches import Batch
from facd_basicsr.models.safe_model import build_model
from facd_basicsr.options.option_check import check_options, with_defaults
from facd_basicsr.runtime.execution import Execution

DISCRIMINATOR = {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 4}
GAN_OPT = {'type': 'GANLoss', 'gan_type': 'vanilla', 'loss_weight': 0.5}


def with_gan(opt: dict, **gan_opt: object) -> dict:
    opt = copy.deepcopy(opt)
    opt['network_d'] = dict(DISCRIMINATOR)
    opt['train'] |= {'gan_opt': {**GAN_OPT, **gan_opt}, 'optim_d': {'type': 'Adam', 'lr': 1e-3}}
    return opt


def images_alone(opt: dict) -> dict:
    """The same file without teacher: L1 to ground truth."""
    opt = {key: value for key, value in opt.items() if key not in ('teacher', 'taps', 'network_r')}
    return {**opt, 'train': {**opt['train'], 'distill_opt': {'pix': {'type': 'L1Loss'}}}}


def built(opt: dict, folder: object):
    torch.manual_seed(0)
    runtime = {'is_train': True, 'dist': False, 'rank': 0, 'world_size': 1, 'num_gpu': 0, 'root_path': '.'}
    opt = {**with_defaults(opt, is_train=True), **runtime}
    return build_model({**opt, 'path': {**opt['path'], 'experiments_root': str(folder)}})


def batch(seed: int = 0, size: int = 24) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {'lq': torch.rand(3, 3, size // 2, size // 2, generator=generator), 'gt': torch.rand(3, 3, size, size)}


def steps(model, count: int) -> list[dict[str, float]]:
    logs = []
    for iteration in range(1, count + 1):
        torch.manual_seed(iteration)
        model.feed_data(batch(iteration))
        model.optimize_parameters(iteration)
        logs.append(dict(model.get_current_log()))
    return logs


class Mean(nn.Module):
    """D(x) = w mean(x)."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.w * x.flatten(1).mean(1)


def gan(**gan_opt: object) -> tuple[GAN, Mean]:
    net_d = Mean()
    options = {'type': 'GANLoss', 'gan_type': 'vanilla', 'relativistic': False, **gan_opt}
    return GAN(options, net_d, Execution(), torch.device('cpu')), net_d


FAKE = torch.stack([torch.full((3, 4, 4), value) for value in (0.0, 1.0)])  # D: 0 and 2
REAL = torch.stack([torch.full((3, 4, 4), value) for value in (1.0, 2.0)])  # D: 2 and 4


def mean_of(*values: float) -> float:
    return float(softplus(torch.tensor(values)).mean())


def test_the_terms_have_the_values_that_are_worked_by_hand():
    own, net_d = gan(loss_weight=0.5)
    fake = FAKE.clone().requires_grad_()
    term = own.student_term(fake, REAL)
    assert term.item() == pytest.approx(0.5 * mean_of(-0.0, -2.0))  # -log sigmoid(x) = softplus(-x)
    term.backward()
    assert fake.grad is not None and fake.grad.abs().sum() > 0
    assert net_d.w.grad is None and net_d.w.requires_grad
    logs = own.discriminator_terms(FAKE, REAL, backward=lambda loss: loss.backward())
    expected = {'l_d_real': mean_of(-2.0, -4.0), 'l_d_fake': mean_of(0.0, 2.0), 'out_d_real': 3.0, 'out_d_fake': 1.0}
    assert {name: value.item() for name, value in logs.items()} == pytest.approx(expected)
    assert net_d.w.grad is not None


def test_the_relativistic_terms_have_the_values_that_are_worked_by_hand():
    own, _ = gan(relativistic=True)
    # of real against the fakes' mean of 1: 1, 3; of fake against the reals' mean of 3: -3, -1
    of_student = (mean_of(1.0, 3.0) + mean_of(3.0, 1.0)) / 2
    assert own.student_term(FAKE, REAL).item() == pytest.approx(of_student)
    logs = own.discriminator_terms(FAKE, REAL, backward=lambda loss: None)
    assert logs['l_d_real'].item() == pytest.approx(mean_of(-1.0, -3.0) / 2)
    assert logs['l_d_fake'].item() == pytest.approx(mean_of(-3.0, -1.0) / 2)


@pytest.mark.parametrize(('model_type', 'relativistic'), [('SRGANModel', False), ('ESRGANModel', True)])
def test_a_run_has_the_bits_of_basicsrs_model(train_opt, tmp_path, model_type, relativistic):
    ours = with_gan(images_alone(train_opt), relativistic=relativistic)
    ours['train'] |= {'ema_decay': 0.9, 'net_d_iters': 2, 'net_d_init_iters': 1}
    theirs = copy.deepcopy(ours) | {'model_type': model_type}
    theirs['train']['pixel_opt'] = theirs['train'].pop('distill_opt')['pix']
    del theirs['train']['gan_opt']['relativistic']
    models = [built(opt, tmp_path) for opt in (ours, theirs)]
    logs = [steps(model, 5) for model in models]
    for net in ('net_g', 'net_d', 'net_g_ema'):
        assert_same(*(getattr(model, net).state_dict() for model in models))
    assert [log.keys() for log in logs[0]] == [
        {'l_pix', 'l_g_gan', 'l_d_real', 'l_d_fake', 'out_d_real', 'out_d_fake'}
        if iteration in (2, 4)
        else {'l_d_real', 'l_d_fake', 'out_d_real', 'out_d_fake'}
        for iteration in range(1, 6)
    ]
    for own, other in zip(*logs):
        assert own == pytest.approx({name.replace('l_g_pix', 'l_pix'): value for name, value in other.items()})


def test_distillation_and_gan_terms_add_up_and_a_batch_in_parts_has_the_gradient_of_the_whole(train_opt, tmp_path):
    models = [built(changed(with_gan(train_opt), 'train.accum_iter', parts), tmp_path) for parts in (1, 3)]
    for model in models:
        (log,) = steps(model, 1)
        assert {'l_sr', 'l_facd', 'l_g_gan', 'l_d_fake'} <= log.keys()
    for net in ('net_g', 'net_r', 'net_d'):
        whole, parts = ([p.grad for p in getattr(model, net).parameters()] for model in models)
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


def test_shares_of_the_gradient_have_the_gans_and_leave_the_run_as_it_is(train_opt, tmp_path):
    models = [built(changed(with_gan(train_opt), 'train.log_gradient_share', every), tmp_path) for every in (None, 1)]
    logs = [steps(model, 2) for model in models]
    for net in ('net_g', 'net_d'):
        assert_same(*(getattr(model, net).state_dict() for model in models))
    shares = {name: value for name, value in logs[1][1].items() if name.startswith('share_')}
    assert shares.keys() == {'share_sr', 'share_facd', 'share_g_gan'} and sum(shares.values()) == pytest.approx(1)


def test_steps_of_a_discriminator_that_is_not_finite_are_skipped_and_reported(train_opt, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(get_root_logger(), 'propagate', True)
    model = built(with_gan(images_alone(train_opt)), tmp_path)
    with torch.no_grad():
        model.net_d.conv9.bias.fill_(math.inf)
    before = copy.deepcopy(model.net_d.state_dict()), copy.deepcopy(model.net_g.state_dict())
    data = {**batch(), 'gt_path': ['a'], 'lq_path': ['b']}
    model.feed_data(data)
    model.optimize_parameters(1)
    model.guard.after_step(data, 1)
    assert_same(model.net_g.state_dict(), before[1])
    weights = [key for key, _ in model.net_d.named_parameters()]
    found = model.net_d.state_dict()
    assert_same({key: found[key] for key in weights}, {key: before[0][key] for key in weights})
    assert 'l_g_gan, l_d_real, l_d_fake, out_d_real, out_d_fake not finite; step skipped, 1 in a row' in caplog.text


def test_each_optimizer_clips_its_own_networks(train_opt, tmp_path):
    model = built(changed(with_gan(train_opt), 'train.clip_grad_norm', 1e-3), tmp_path)
    steps(model, 1)
    norms = [
        torch.stack([p.grad.norm() for p in net.parameters()]).norm().item()
        for net in (model.net_g, model.net_r, model.net_d)
    ]
    assert norms == pytest.approx([1e-3] * 3, rel=1e-2)


def test_a_stopped_run_resumes_with_its_discriminator_to_equal_weights(train_opt, tmp_path):
    opt = changed(with_gan(train_opt, relativistic=True), 'train.ema_decay', 0.9)
    opt['logger']['save_checkpoint_freq'] = 1
    run(opt, tmp_path / 'whole', 4)
    run(opt, tmp_path / 'parts', 2)
    run(opt, tmp_path / 'parts', 4, '--auto_resume')
    whole, parts = (result(tmp_path / name, 4) for name in ('whole', 'parts'))
    assert {'net_d_4.pth', 'net_g_4.pth', 'net_r_4.pth'} == whole['networks'].keys()
    assert_same(parts, whole)
    assert {'losses/l_g_gan', 'losses/l_d_real', 'out_d_fake'} <= scalars(tmp_path / 'whole').keys()


def test_a_stage_may_be_the_first_with_a_discriminator(train_opt, tmp_path):
    opt = with_gan(train_opt)
    gan_opt = opt['train'].pop('gan_opt')
    opt['train'] |= {'total_iter': 4, 'stages': [{'iterations': 2}, {'iterations': 2, 'gan_opt': gan_opt}]}
    run(opt, tmp_path / 'whole', 4)
    assert result(tmp_path / 'whole', 2)['networks'].keys() == {'net_g_2.pth', 'net_r_2.pth'}
    assert 'net_d_4.pth' in result(tmp_path / 'whole', 4)['networks']
    shutil.copytree(tmp_path / 'whole', tmp_path / 'resumed')
    (tmp_path / 'resumed/experiments/tiny/training_states/4.state').unlink()
    run(opt, tmp_path / 'resumed', 4, '--auto_resume')
    assert_same(result(tmp_path / 'resumed', 4), result(tmp_path / 'whole', 4))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'network_d': ...}, 'network_d: missing, and there is a train.gan_opt; accepted: e.g. {type: UNetDiscr'),
        ({'train.optim_d': ...}, 'train.optim_d: missing, and there is a train.gan_opt; accepted: e.g. {type: Adam'),
        ({'train.gan_opt': ...}, 'network_d: given, but there is no train.gan_opt; accepted: no network_d, or a gan_'),
        ({'train.gan_opt.gan_type': 'wasserstein'}, "train.gan_opt.gan_type: 'wasserstein'; accepted: vanilla, lsgan"),
        ({'train.gan_opt': {'type': 'L1Loss'}}, "train.gan_opt.type: 'L1Loss'; accepted: GANLoss, MultiScaleGANLoss"),
        ({'train.precision_d': 'int8'}, "train.precision_d: 'int8'; accepted: null, fp32, tf32, bf16, fp16"),
    ],
)
def test_what_does_not_fit_a_discriminator_is_refused(train_opt, changes, message):
    opt = with_gan(train_opt)
    for location, value in changes.items():
        opt = changed(opt, location, value)
    with pytest.raises(UserError) as error:
        check_options(opt, is_train=True)
    assert str(error.value).startswith(message)


def test_a_discriminator_of_other_patches_is_refused_before_training(train_opt, tmp_path):
    opt = with_gan(train_opt)
    opt['network_d'] = {'type': 'VGGStyleDiscriminator', 'num_in_ch': 3, 'num_feat': 4}
    message = r'network_d: VGGStyleDiscriminator does not take patches of 24 x 24 with 3 channels \(Input size must'
    with pytest.raises(UserError, match=message):
        built(opt, tmp_path)


def perceptual(path: object, **keys: object) -> dict:
    return {
        'type': 'PerceptualLoss',
        'layer_weights': {'conv1_1': 0.5, 'relu1_2': 1.0},
        'vgg_weights': str(path),
        **keys,
    }


def test_a_perceptual_loss_is_basicsrs_with_the_weights_of_a_path(tmp_path):
    opt = perceptual(save_vgg(tmp_path / 'vgg.pth', 2), style_weight=2.0)
    found = load_perceptual_loss(opt)
    assert isinstance(found, PerceptualLoss) and isinstance(found.vgg, VGGFeatureExtractor)
    assert not any(p.requires_grad for p in found.parameters())
    weights = torch.load(tmp_path / 'vgg.pth', weights_only=True)
    x, gt = torch.rand(2, 3, 8, 8, requires_grad=True), torch.rand(2, 3, 8, 8)

    def features(images: Tensor) -> tuple[Tensor, Tensor]:
        images = (images - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
            [0.229, 0.224, 0.225]
        ).view(3, 1, 1)
        conv = nn.functional.conv2d(images, weights['features.0.weight'], weights['features.0.bias'], padding=1)
        last = nn.functional.conv2d(
            conv.relu(), weights['features.2.weight'], weights['features.2.bias'], padding=1
        ).relu()
        return conv, last

    def gram(feat: Tensor) -> Tensor:
        flat = feat.flatten(2)
        return flat @ flat.transpose(1, 2) / feat[0].numel()

    pairs = list(zip((0.5, 1.0), features(x), features(gt)))
    l_percep, l_style = found(x, gt)
    torch.testing.assert_close(l_percep, sum(w * (a - b).abs().mean() for w, a, b in pairs))
    torch.testing.assert_close(l_style, 2 * sum(w * (gram(a) - gram(b)).abs().mean() for w, a, b in pairs))


def test_the_deepest_layer_decides_the_smallest_image():
    assert least_size('vgg19', ['conv1_2']) == 1
    assert least_size('vgg19', ['conv1_2', 'conv5_4']) == 16
    assert least_size('vgg16_bn', ['pool5']) == 32


def test_a_perceptual_term_stands_beside_distillation_and_gan(train_opt, tmp_path):
    opt = with_gan(train_opt)
    opt['train']['perceptual_opt'] = perceptual(save_vgg(tmp_path / 'vgg.pth', 2), style_weight=1.0)
    model = built(opt, tmp_path)
    (log,) = steps(model, 1)
    assert {'l_sr', 'l_facd', 'l_percep', 'l_style', 'l_g_gan', 'l_d_real'} <= log.keys()
    state = model.distill_state(Batch(model.lq, model.gt, percep_gt=model.gt.flip(0)))
    flipped = model.criterion.losses[-1].perceptual_loss(state.student, model.gt.flip(0))
    terms = model.criterion(state)
    torch.testing.assert_close((terms['l_percep'], terms['l_style']), flipped)


@pytest.mark.parametrize(
    ('keys', 'message'),
    [
        ({'vgg_weights': 'nowhere.pth'}, 'train.perceptual_opt.vgg_weights: '),
        (
            {'layer_weights': {'conv5_1': 1}},
            'datasets.train.gt_size: 8; accepted: 16 or more, for train.per',
        ),
    ],
)
def test_a_perceptual_term_that_cannot_be_is_one_line(train_opt, tmp_path, keys, message):
    depth = 5 if 'layer_weights' in keys else 2
    opt = changed(train_opt, 'datasets.train.gt_size', 8)
    opt['train']['perceptual_opt'] = perceptual(save_vgg(tmp_path / 'vgg.pth', depth), **keys)
    with pytest.raises(UserError) as error:
        built(opt, tmp_path)
    assert str(error.value).startswith(message)
    assert 'vgg_weights' not in keys or 'bring https://download.pytorch.org/models/vgg19-dcbb9e9d.pth' in str(
        error.value
    )


@pytest.mark.parametrize(
    'loss',
    [
        {'type': 'TeacherSupervisionLoss'},
        {'type': 'FACDLoss', 'lambda': 4},
        {'type': 'DUKDLoss', 'crops': 2},
        {'type': 'ECOLoss', 'alpha': 0.5},
        {'pix': {'type': 'L1Loss'}},
    ],
    ids=lambda loss: loss.get('type', 'pixel'),
)
def test_without_ground_truth_the_teachers_output_is_in_its_place(train_opt, tmp_path, loss):
    opt = changed(train_opt, 'train.ground_truth', False)
    opt['train']['distill_opt'] = loss
    if loss.get('type') != 'FACDLoss':
        del opt['taps'], opt['network_r']
    model, other = built(opt, tmp_path), built(changed(opt, 'train.ground_truth', True), tmp_path)
    data = batch()
    model.feed_data({'lq': data['lq']})  # no gt
    with torch.no_grad():
        taught = other.teachers[0](data['lq'])
    other.feed_data({'lq': data['lq'], 'gt': taught})
    for own in (model, other):
        own.optimize_parameters(1)
    assert_same(model.net_g.state_dict(), other.net_g.state_dict())
    logs = model.get_current_log()
    assert logs.get('alpha', 1) == 1


def test_without_ground_truth_a_batch_may_go_in_parts_and_its_shares_be_found(train_opt, tmp_path):
    opt = changed(train_opt, 'train.ground_truth', False)
    opt['train'] |= {'log_gradient_share': 1}
    whole, in_parts = built(opt, tmp_path), built(changed(opt, 'train.accum_iter', 3), tmp_path)
    for own in (whole, in_parts):
        own.feed_data({'lq': batch()['lq']})
        own.optimize_parameters(1)
        assert own.get_current_log()['share_sr'] > 0
    torch.testing.assert_close(dict(in_parts.net_g.state_dict()), dict(whole.net_g.state_dict()), rtol=1e-4, atol=1e-5)


def test_a_run_on_lq_alone_learns_from_the_teacher_and_says_so_once(train_opt, data, tmp_path):
    train_set = train_opt['datasets']['train']
    del train_set['dataroot_gt']
    train_set |= {'type': 'SingleImageDataset', 'dataroot_lq': str(data / 'LQ'), 'io_backend': {'type': 'disk'}}
    opt = changed(train_opt, 'train.ground_truth', False)
    opt['datasets']['train']['batch_size_per_gpu'] = 2
    run(opt, tmp_path, 4)
    assert log_text(tmp_path).count("the teacher's output is in its place, so alpha of equation (1) is 1.") == 1
    assert set(scalars(tmp_path)['alpha'].values()) == {1}
    assert scalars(tmp_path)['metrics/val/psnr_y'].keys() == {4}


@pytest.mark.parametrize(
    ('location', 'value', 'message'),
    [
        ('teacher', ..., 'train.ground_truth: false, but there is no teacher; accepted: true, or a teacher'),
        ('train.teacher_target', 'nearest', 'train.teacher_target: nearest; accepted with train.ground_truth: false'),
    ],
)
def test_what_needs_ground_truth_is_refused_without(train_opt, location, value, message):
    opt = changed(changed(train_opt, 'train.ground_truth', False), location, value)
    with pytest.raises(UserError, match=message):
        check_options(opt, is_train=True)


def test_gan_and_no_ground_truth_take_the_teachers_output_for_real(train_opt, tmp_path):
    opt = with_gan(changed(train_opt, 'train.ground_truth', False))
    model = built(opt, tmp_path)
    model.feed_data({'lq': batch()['lq']})
    model.optimize_parameters(1)
    assert 'l_d_real' in model.get_current_log()


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_a_discriminator_runs_in_the_students_precision_or_its_own(train_opt, tmp_path, precision):
    opt = changed(with_gan(train_opt), 'train.precision', precision)
    models = [built(opt, tmp_path), built(changed(opt, 'train.precision_d', 'fp32'), tmp_path)]
    logs = [steps(model, 3)[-1] for model in models]
    *_, exact = steps(built(with_gan(train_opt), tmp_path), 3)
    for log in logs:
        assert log.keys() == exact.keys() and log == pytest.approx(exact, rel=0.1, abs=0.02)
    assert logs[0]['l_d_fake'] != logs[1]['l_d_fake']
    assert models[0].scaler.is_enabled() == (precision == 'fp16')


def test_degraded_images_train_without_their_ground_truth(train_opt, tmp_path):
    opt = degraded_opt(changed(train_opt, 'train.ground_truth', False), tmp_path / 'photographs', gt_usm=None)
    run(with_gan(opt), tmp_path / 'run', 2)
    assert set(scalars(tmp_path / 'run')['alpha'].values()) == {1}
    assert 'losses/l_d_real' in scalars(tmp_path / 'run')
