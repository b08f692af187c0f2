import copy
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from basicsr.archs import build_network
from basicsr.models.base_model import BaseModel
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import MODEL_REGISTRY
from conftest import METRICS, STUDENT, train_options
from runs import assert_same
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from facd_basicsr.data.loaders import build_loaders
from facd_basicsr.errors import Stopped, UserError
from facd_basicsr.models import FACDModel
from facd_basicsr.models.safe_model import SafeModel, build_model
from facd_basicsr.options import schema


@pytest.fixture
def build(tmp_path: Path):
    """Builds the model of an option dict as train.py does, with its folders."""

    def _build(opt: dict) -> SafeModel:
        complete = train_options(opt, tmp_path)
        Path(complete['path']['models']).mkdir(parents=True, exist_ok=True)
        return build_model(complete)

    return _build


@pytest.fixture
def alone(train_opt: dict) -> dict:
    """A student alone, which is BasicSR's own model, with its average."""
    for key in ('teacher', 'taps', 'network_r'):
        del train_opt[key]
    train_opt['model_type'] = 'SRModel'
    del train_opt['train']['distill_opt']
    train_opt['train'] |= {'pixel_opt': {'type': 'L1Loss'}, 'ema_decay': 0.9}
    return train_opt


def step(model: SafeModel, first: int, last: int) -> None:
    for iteration in range(first, last + 1):
        generator = torch.Generator().manual_seed(iteration)
        lq, gt = (torch.rand(3, 3, size, size, generator=generator) for size in (8, 16))
        model.update_learning_rate(iteration)
        model.feed_data({'lq': lq, 'gt': gt})
        model.optimize_parameters(iteration)


def stored(model: SafeModel, folder: Path) -> dict:
    """The training state after it was a file."""
    torch.save(model.training_state(), folder / 'state')
    return torch.load(folder / 'state', weights_only=True)


def resumed(build: Callable, opt: dict, model: SafeModel, folder: Path, iteration: int) -> tuple[SafeModel, dict]:
    """Another model of a FACDModel's options that goes on from it, and the state from which it does."""
    model.save(0, iteration)
    state = stored(model, folder)
    for net in 'gr':
        opt['path'][f'pretrain_network_{net}'] = str(Path(model.opt['path']['models'], f'net_{net}_{iteration}.pth'))
    other = build(opt)
    other.resume_training(state)
    return other, state


def test_basicsrs_model_becomes_a_safe_one_of_the_same_name(build, alone):
    model = build(alone)
    assert isinstance(model, SafeModel) and isinstance(model, SRModel)
    assert type(model).__name__ == 'SRModel'


def test_a_model_that_is_safe_stays_what_it_is(build, train_opt):
    assert type(build(train_opt)) is FACDModel


def test_networks_are_saved_with_basicsrs_content(build, alone):
    model = build(alone)
    step(model, 1, 2)
    model.save(0, 2)
    folder = Path(model.opt['path']['models'])
    BaseModel.save_network(model, [model.net_g, model.net_g_ema], 'basicsr', 2, ['params', 'params_ema'])
    found, expected = (torch.load(folder / f'{name}_2.pth', weights_only=True) for name in ('net_g', 'basicsr'))
    assert_same(found, expected)
    assert list(found) == ['params', 'params_ema']
    assert not torch.equal(found['params']['conv_first.weight'], found['params_ema']['conv_first.weight'])
    model.save_network(model.net_g, 'alone', -1)
    assert_same(torch.load(folder / 'alone_latest.pth', weights_only=True), {'params': expected['params']})


def test_basicsrs_state_is_not_written(build, train_opt):
    model = build(train_opt)
    model.save(0, 3)
    found = sorted(path.name for path in Path(model.opt['path']['experiments_root']).rglob('*.*'))
    assert found == ['net_g_3.pth', 'net_r_3.pth']


def test_a_training_state_and_its_networks_are_all_that_training_goes_on_from(build, train_opt, tmp_path):
    train_opt['train']['ema_decay'] = 0.9
    model = build(train_opt)
    step(model, 1, 3)
    model.best_metric_results = {'val': best_of(METRICS)}
    other, state = resumed(build, train_opt, model, tmp_path, 3)
    assert_same(other.training_state(), state)
    for one in (model, other):
        step(one, 4, 5)
    assert_same(other.training_state(), model.training_state())
    for net in ('net_g', 'net_g_ema', 'net_r'):
        assert_same(getattr(other, net).state_dict(), getattr(model, net).state_dict())


QUICK = {None: ('Adam', 'SGD'), 'fp16': ('Adam',)}


@pytest.mark.parametrize(
    ('precision', 'optimizer'),
    [
        pytest.param(precision, name, marks=[] if name in QUICK[precision] else pytest.mark.slow)
        for precision in (None, 'fp16')
        for name, cls in schema.optimizers().items()
        if isinstance(cls, type)
    ],
)
def test_every_optimizer_resumes_bit_for_bit_and_a_step_that_is_not_finite_changes_nothing(
    build, train_opt, tmp_path, optimizer, precision
):
    train_opt['train'] |= {'optim_g': {'type': optimizer, 'lr': 1e-3}, 'precision': precision, 'clip_grad_norm': 1.0}
    model = build(train_opt)
    step(model, 1, 2)
    before = copy.deepcopy([model.net_g.state_dict(), model.net_r.state_dict(), model.optimizer_g.state_dict()])
    model.feed_data({'lq': torch.rand(3, 3, 8, 8), 'gt': torch.full((3, 3, 16, 16), float('nan'))})
    model.optimize_parameters(3)
    assert_same([model.net_g.state_dict(), model.net_r.state_dict(), model.optimizer_g.state_dict()], before)
    other, _ = resumed(build, train_opt, model, tmp_path, 2)
    for one in (model, other):
        step(one, 3, 5)
    assert_same(other.training_state(), model.training_state())
    for net in ('net_g', 'net_r'):
        assert_same(getattr(other, net).state_dict(), getattr(model, net).state_dict())
        assert any(
            not torch.equal(*pair)
            for pair in zip(getattr(model, net).state_dict().values(), before[net == 'net_r'].values())
        )


def test_a_run_is_not_resumed_with_another_optimizer(build, alone, tmp_path):
    state = stored(build(alone), tmp_path)
    alone['train']['optim_g'] = {'type': 'AdamW', 'lr': 1e-3}
    model = build(alone)
    model.opt['path']['resume_state'] = '5.state'
    expected = (
        'train.optim_g.type: AdamW, but 5.state is of Adam; accepted: the same, or a new run from '
        'path.pretrain_network_g'
    )
    del state['optimizer_types']  # as BasicSR writes it, which knows Adam alone
    for old in (state, {**state, 'optimizer_types': ['Adam']}):
        with pytest.raises(UserError) as error:
            model.resume_training(old)
        assert str(error.value) == expected


@pytest.mark.parametrize('optimizer', ['Adam', 'SGD', 'Adagrad'])
def test_a_fused_optimizer_whose_first_step_is_skipped_begins_like_one_whose_was_not(build, alone, optimizer):
    alone['train']['optim_g'] = {'type': optimizer, 'lr': 1e-3, 'fused': True}
    if optimizer == 'SGD':
        alone['train']['optim_g']['momentum'] = 0.9
    skipped, other = build(alone), build(alone)
    skipped.feed_data({'lq': torch.rand(3, 3, 8, 8), 'gt': torch.full((3, 3, 16, 16), float('nan'))})
    skipped.optimize_parameters(1)
    for model in (skipped, other):
        step(model, 1, 2)
    assert_same(skipped.net_g.state_dict(), other.net_g.state_dict())


def test_an_optimizer_without_a_fused_kernel_has_none_on_a_gpu(build, alone):
    model = build(alone)
    model.device = torch.device('cuda')
    optimizer = model.get_optimizer('RMSprop', list(model.net_g.parameters()), 1e-3)
    assert 'fused' not in optimizer.param_groups[0]
    optimizer = model.get_optimizer('Adagrad', list(model.net_g.parameters()), 1e-3)
    assert optimizer.param_groups[0]['fused'] is None  # older torch fuses it on CPUs only


@pytest.mark.parametrize('kind', ['alone', 'train_opt'])
def test_training_begins_from_safetensors_as_from_any_checkpoint(build, kind, request, tmp_path):
    opt = request.getfixturevalue(kind)
    opt['train']['ema_decay'] = 0.9
    weights = {key: value + 1 for key, value in build_network(STUDENT).state_dict().items()}
    save_file(weights, tmp_path / 'student.safetensors')
    opt['path']['pretrain_network_g'] = str(tmp_path / 'student.safetensors')
    model = build(opt)
    assert_same(model.net_g.state_dict(), weights)
    assert_same(model.net_g_ema.state_dict(), weights)


def test_an_average_that_does_not_fit_is_refused_in_a_line(build, alone, tmp_path):
    own, other = (build_network({**STUDENT, 'num_block': num_block}).state_dict() for num_block in (3, 2))
    torch.save({'params': own, 'params_ema': other}, tmp_path / 'student.pth')
    alone['path']['pretrain_network_g'] = str(tmp_path / 'student.pth')
    with pytest.raises(
        UserError, match=r'^path.pretrain_network_g: .*student.pth does not fit EDSRStudent: keys 4 miss'
    ):
        build(alone)


@pytest.mark.parametrize('kind', ['alone', 'train_opt'])
def test_a_part_of_a_checkpoint_is_loaded_into_the_student_and_its_average_alike_and_said_once(
    build, kind, request, tmp_path
):
    opt = request.getfixturevalue(kind)
    opt['train'] |= {'ema_decay': 0.9, 'accum_iter': 3, 'clip_grad_norm': 1.0, 'optim_g': {'type': 'AdamW', 'lr': 1e-3}}
    weights = {key: value + 1 for key, value in build_network({**STUDENT, 'upscale': 4}).state_dict().items()}
    del weights['upsample.0.weight'], weights['upsample.0.bias']
    torch.save({'params': weights}, tmp_path / 'x4.pth')
    opt['path'] |= {'pretrain_network_g': str(tmp_path / 'x4.pth'), 'strict_load_g': False}
    model = build(opt)
    student = model.net_g.state_dict()
    assert_same(student['body.0.conv1.weight'], weights['body.0.conv1.weight'])
    assert_same(model.net_g_ema.state_dict(), student)
    (line,) = model.partly_loaded
    assert line.startswith(f'path.pretrain_network_g: {tmp_path / "x4.pth"}: ')
    assert line.endswith('; not in the file: upsample; only in the file: upsample')
    before = copy.deepcopy(student)
    step(model, 1, 2)
    for key, average in model.net_g_ema.state_dict().items():
        assert average.isfinite().all() and not torch.equal(average, before[key])


def test_an_average_of_another_scale_is_loaded_from_its_own_entry(build, alone, tmp_path):
    own = build_network({**STUDENT, 'upscale': 4}).state_dict()
    average = {key: value + 1 for key, value in own.items()}
    torch.save({'params': own, 'params_ema': average}, tmp_path / 'x4.pth')
    alone['path'] |= {'pretrain_network_g': str(tmp_path / 'x4.pth'), 'strict_load_g': False}
    model = build(alone)
    assert_same(model.net_g.state_dict(), {key: own[key] for key in model.net_g.state_dict()})
    assert_same(model.net_g_ema.state_dict(), {key: average[key] for key in model.net_g.state_dict()})


def test_regressors_of_which_nothing_fits_are_refused_without_strict_load_too(build, train_opt, tmp_path):
    torch.save({'params': {'other.weight': torch.zeros(2, 2)}}, tmp_path / 'r.pth')
    train_opt['path'] |= {'pretrain_network_r': str(tmp_path / 'r.pth'), 'strict_load_r': False}
    with pytest.raises(UserError, match=r'^path.pretrain_network_r: .*r.pth has no weight that fits .*strict_load_r'):
        build(train_opt)


@pytest.mark.parametrize(
    ('before', 'after'),
    [
        ({'type': 'MultiStepLR', 'milestones': [3], 'gamma': 0.5}, {'milestones': [3, 6, 8]}),
        ({'type': 'MultiStepLR', 'milestones': [3, 6], 'gamma': 0.5}, {'milestones': [3]}),
        ({'type': 'CosineAnnealingRestartLR', 'periods': [5], 'restart_weights': [1]}, {'periods': [10]}),
    ],
)
def test_after_a_resume_the_schedule_is_the_option_files_and_not_the_states(build, alone, tmp_path, before, after):
    def rates(model: SafeModel) -> list[float]:
        found = []
        for iteration in range(6, 10):
            step(model, iteration, iteration)
            found += model.get_current_learning_rate()
        return found

    alone['train']['scheduler'] = before
    model = build(alone)
    step(model, 1, 5)
    state = stored(model, tmp_path)
    alone['train']['scheduler'] = {**before, **after}
    resumed, never_stopped = build(alone), build(alone)
    resumed.resume_training(state)
    step(never_stopped, 1, 5)
    assert rates(resumed) == rates(never_stopped)


@pytest.mark.parametrize(
    ('given', 'device', 'fused'),
    [
        ({}, 'cuda', True),
        ({'fused': None, 'foreach': None}, 'cuda', True),
        ({'foreach': True}, 'cuda', None),
        ({'fused': False}, 'cuda', False),
        ({}, 'cpu', None),
        ({'fused': True}, 'cpu', True),
    ],
)
def test_an_optimizer_is_fused_on_a_gpu_unless_the_option_file_chooses(build, alone, given, device, fused):
    model = build(alone)
    model.device = torch.device(device)  # of its parameters, which do not matter here
    optimizer = model.get_optimizer('Adam', list(model.net_g.parameters()), 1e-3, **given)
    assert [group['fused'] for group in optimizer.param_groups] == [fused]


@pytest.mark.parametrize(('before', 'after'), [(True, None), (None, True)])
def test_a_resumed_optimizer_works_as_this_option_file_says_in_float16_too(
    build, train_opt, tmp_path, monkeypatch, before, after
):
    train_opt['train']['precision'] = 'fp16'
    train_opt['train']['optim_g']['fused'] = before
    model = build(train_opt)
    step(model, 1, 3)
    state = stored(model, tmp_path)
    train_opt['train']['optim_g']['fused'] = after
    resumed = build(train_opt)
    monkeypatch.setattr('facd_basicsr.models.safe_model.get_root_logger', lambda: pytest.fail('a warning'))
    resumed.resume_training(state)
    assert [group['fused'] for group in resumed.optimizer_g.param_groups] == [after]
    resumed.net_g.load_state_dict(model.net_g.state_dict())
    resumed.net_r.load_state_dict(model.net_r.state_dict())
    for one in (model, resumed):
        step(one, 4, 5)
    ours, theirs = (one.optimizer_g.state_dict()['state'] for one in (resumed, model))
    for index, values in theirs.items():
        assert values['step'] == 5
        torch.testing.assert_close(ours[index], values)


def test_a_step_of_a_model_of_basicsr_that_is_not_finite_changes_nothing(build, alone, monkeypatch):
    lines: list[str] = []
    logger = SimpleNamespace(warning=lines.append)
    monkeypatch.setattr('facd_basicsr.models.nonfinite.get_root_logger', lambda: logger)
    alone |= {'model_type': 'SRGANModel', 'network_d': {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 4}}
    alone['train'] |= {'gan_opt': {'type': 'GANLoss', 'gan_type': 'vanilla'}, 'optim_d': {'type': 'Adam', 'lr': 1e-3}}
    model = build(alone)
    step(model, 1, 1)
    model.guard.after_step({}, 1)
    nets = model.net_g, model.net_d
    before = [parameter.clone() for net in nets for parameter in net.parameters()]
    data = {'lq': torch.rand(3, 3, 8, 8), 'gt': torch.full((3, 3, 16, 16), float('inf'))}  # |s - inf| has a gradient
    model.feed_data(data)
    model.optimize_parameters(2)
    model.guard.after_step(data, 2)
    assert_same([parameter.detach() for net in nets for parameter in net.parameters()], before)
    assert lines[0].startswith('Iteration 2: l_g_pix, l_d_real, out_d_real, gt not finite; step skipped, 1 in a row')
    model.net_d.conv0.weight.register_hook(lambda gradient: gradient * float('nan'))
    step(model, 3, 3)
    model.guard.after_step({}, 3)
    assert lines[1].startswith('Iteration 3: gradient of net_d.conv0.weight not finite; step skipped, 2 in a row')


def best_of(metrics: Iterable[str]) -> dict:
    return {metric: {'better': 'higher', 'val': 30.5, 'iter': 2} for metric in metrics}


def test_best_figures_of_other_metrics_than_the_option_files_begin_anew(build, alone):
    model = build(alone)
    state = model.training_state()
    model.resume_training({**state, 'best_metric_results': {'val': best_of(['psnr_y'])}})
    assert model.training_state()['best_metric_results'] == {}
    reordered = {'val': best_of(reversed(METRICS))}
    model.resume_training({**state, 'best_metric_results': reordered})
    assert list(model.best_metric_results['val']) == list(METRICS)  # the first one is keep_best's


def test_an_optimizer_that_goes_on_with_other_settings_than_the_option_files_says_so(build, alone, monkeypatch):
    state = build(alone).training_state()
    lines: list[str] = []
    logger = SimpleNamespace(warning=lines.append, info=lambda line: None)
    monkeypatch.setattr('facd_basicsr.models.safe_model.get_root_logger', lambda: logger)
    build(alone).resume_training(state)
    assert lines == []
    alone['train']['optim_g'] |= {'lr': 1e-5, 'betas': [0.5, 0.999]}
    build(alone).resume_training(state)
    assert lines == [
        'train.optim_g.lr: 1e-05 in the option file, but the resumed optimizer continues with 0.001.',
        'train.optim_g.betas: [0.5, 0.999] in the option file, but the resumed optimizer continues with [0.9, 0.999].',
    ]


def test_a_model_with_a_validation_of_its_own_keeps_it_until_it_is_stopped():
    seen: list = []
    own = type('OwnValidation', (SRModel,), {'nondist_validation': lambda self, loader, *_: seen.extend(loader)})
    MODEL_REGISTRY._obj_map['OwnValidation'] = own
    try:
        opt = {
            'model_type': 'OwnValidation',
            'scale': 2,
            'num_gpu': 0,
            'is_train': False,
            'dist': False,
            'path': {},
            'val': None,
        }
        model = build_model({**opt, 'network_g': STUDENT})
    finally:
        del MODEL_REGISTRY._obj_map['OwnValidation']
    assert isinstance(model, SafeModel)
    model.validation(DataLoader(range(3)), 1, None)
    assert len(seen) == 3
    with pytest.raises(Stopped):
        model.validation(DataLoader(range(3)), 1, None, stop=lambda: len(seen) == 5)
    assert len(seen) == 5


def gathered_with(theirs: list | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other rank of two, which gives these values."""

    monkeypatch.setattr('facd_basicsr.models.validation.Ranks.gather', lambda self, own: [own, theirs])


@pytest.mark.parametrize(('stopped_here', 'theirs'), [(True, []), (False, None)])
def test_validation_by_several_ranks_ends_on_all_when_one_is_stopped(build, alone, monkeypatch, stopped_here, theirs):
    model = build(alone)
    model.opt |= {'dist': True, 'rank': 0, 'world_size': 2}
    gathered_with(theirs, monkeypatch)
    loader, network = build_loaders(model.opt).val['val'], model.net_g
    with pytest.raises(Stopped):
        model.validation(loader, 1, None, stop=lambda: stopped_here)
    assert model.net_g is network and not hasattr(model, 'metric_results')


def test_a_state_of_another_optimizer_is_refused_in_one_line(build, alone):
    model = build(alone)
    model.opt['path']['resume_state'] = '5.state'
    state = model.training_state()
    for wrong in ({**state, 'schedulers': []}, {**state, 'optimizers': [{'state': {}, 'param_groups': []}]}):
        with pytest.raises(UserError, match=r'^path.resume_state: 5.state does not fit the networks .*; accepted: a'):
            model.resume_training(wrong)


@pytest.mark.parametrize('dist', [False, True])
def test_a_models_own_validation_is_interrupted_in_one_process_only(build, alone, monkeypatch, dist):
    """Of several ranks one may validate alone, while the others are in the next iteration."""
    model, seen = build(alone), []
    monkeypatch.setattr(type(model), 'dist_validation', lambda self, loader, *_: seen.extend(loader))
    monkeypatch.setattr(type(model), 'nondist_validation', lambda self, loader, *_: seen.extend(loader))
    model.opt['dist'] = dist
    loader = DataLoader([1, 2])
    with nullcontext() if dist else pytest.raises(Stopped):
        model.validation(loader, 1, None, stop=lambda: True)
    assert len(seen) == 2 * dist


def test_a_network_is_run_once_with_a_patch_that_it_takes(build, alone):
    """Before it is compiled for a GPU."""
    alone['network_g'] = {
        'type': 'SwinIR', 'upscale': 2, 'img_size': 12, 'window_size': 6, 'embed_dim': 12, 'depths': [2],
        'num_heads': [2], 'upsampler': 'pixelshuffledirect',
    }  # fmt: skip
    build(alone)._run_once()
