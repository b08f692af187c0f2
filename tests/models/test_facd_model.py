import copy
import functools
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from basicsr.utils import set_random_seed
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, MODEL_REGISTRY
from conftest import STUDENT, TEACHER, changed, train_options, with_two_teachers
from torch import nn
from torch.amp import GradScaler
from torch.utils._pytree import tree_leaves

from facd_basicsr.archs.regressor_arch import DeepRegressor
from facd_basicsr.distill.teacher import Teacher
from facd_basicsr.errors import UserError
from facd_basicsr.losses.facd_loss import FACDLoss
from facd_basicsr.losses.loss_sum import LossSum
from facd_basicsr.models import FACDModel
from facd_basicsr.models.micro_batches import Batch
from facd_basicsr.models.safe_model import build_model
from facd_basicsr.models.validation import runs_as_basicsr


@ARCH_REGISTRY.register()
class InPlaceTeacher(ARCH_REGISTRY.get('EDSR')):
    """Works on its input in place, as spandrel's RCAN does."""

    def forward(self, x):
        x *= 2
        return super().forward(x)


@ARCH_REGISTRY.register()
class OwnRegressor(DeepRegressor):
    """Another's, of which nothing is known."""


@LOSS_REGISTRY.register()
class OwnLoss(FACDLoss):
    """Another's, of which nothing is known."""


@ARCH_REGISTRY.register()
class NormalizedStudent(ARCH_REGISTRY.get('EDSRStudent')):
    """With batch normalization, as DAT and SwiftSRGAN's."""

    def __init__(self, num_feat: int, num_block: int, upscale: int) -> None:
        super().__init__(num_feat=num_feat, num_block=num_block, upscale=upscale)
        self.body.append(nn.BatchNorm2d(num_feat))


@pytest.fixture
def build(tmp_path: Path):
    """Builds the model of an option dict as train.py does."""

    def _build(opt: dict) -> FACDModel:
        opt = train_options(opt, tmp_path)
        for key in ('models', 'training_states'):
            Path(opt['path'][key]).mkdir(parents=True, exist_ok=True)
        return build_model(opt)

    return _build


def batch(n: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {'lq': torch.rand(n, 3, 8, 8, generator=generator), 'gt': torch.rand(n, 3, 16, 16, generator=generator)}


def step(model: FACDModel, iterations: int = 1) -> None:
    for iteration in range(1, iterations + 1):
        model.update_learning_rate(iteration)
        model.feed_data(batch())
        model.optimize_parameters(iteration)


def test_registered():
    assert MODEL_REGISTRY.get('FACDModel') is FACDModel


def test_gradient_reaches_every_parameter_of_student_and_regressors_and_none_of_the_teacher(build, train_opt):
    train_opt['train']['distill_opt']['adaptive'] = False  # a random teacher may be rejected for every sample
    model = build(train_opt)
    step(model)
    for net in (model.net_g, model.net_r):
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert all(parameter.grad is None for parameter in model.teachers[0].parameters())


def test_training_changes_student_and_regressors_and_leaves_the_teacher_bit_identical_and_in_eval(build, train_opt):
    train_opt['train']['distill_opt']['adaptive'] = False
    model = build(train_opt)
    nets = {'student': model.net_g, 'regressors': model.net_r, 'teacher': model.teachers[0]}
    before = {name: copy.deepcopy(net.state_dict()) for name, net in nets.items()}
    step(model, 3)
    for name, net in nets.items():
        changed = [key for key, value in net.state_dict().items() if not torch.equal(value, before[name][key])]
        assert bool(changed) == (name != 'teacher'), (name, changed)
    assert not any(module.training for module in model.teachers[0].modules())


def test_the_probes_of_a_start_leave_the_averages_of_a_batch_normalization_alone(build, train_opt):
    train_opt['network_g'] = {**STUDENT, 'type': 'NormalizedStudent'}
    model = build(train_opt)
    norm = model.net_g.body[-1]
    assert norm.num_batches_tracked == 0 and not norm.running_mean.any() and (norm.running_var == 1).all()
    step(model)
    assert norm.num_batches_tracked == 1


def test_the_optimizer_holds_exactly_student_and_regressors(build, train_opt):
    model = build(train_opt)
    held = {id(p) for group in model.optimizer_g.param_groups for p in group['params']}
    assert held == {id(p) for net in (model.net_g, model.net_r) for p in net.parameters()}


def test_lq_is_not_changed_even_by_a_teacher_that_works_in_place(build, train_opt):
    train_opt['teacher']['network'] = {**TEACHER, 'type': 'InPlaceTeacher'}
    model = build(train_opt)
    step(model)
    assert torch.equal(model.lq, batch()['lq'])


def test_the_loss_sees_regressed_features_and_a_raw_unclamped_teacher(build, train_opt):
    model = build(train_opt)
    with torch.no_grad():
        model.teachers[0].net.conv_last.bias += 1000  # about 4 in [0, 1]
    state = model.distill_state(Batch(**batch()))
    assert [f.shape[1] for f in state.student_feats] == [4, 4, 4]
    assert [f.shape[1] for f in state.regressed_feats] == [6, 6, 6]
    assert state.teacher.min() > 1
    torch.testing.assert_close(state.teacher, model.teachers[0](batch()['lq']))
    assert not any(t.requires_grad for t in (state.teacher, *state.teacher_feats))
    assert all(f.requires_grad for f in (*state.student_feats, *state.regressed_feats))


def test_logs_hold_every_term_and_monitor(build, train_opt):
    model = build(train_opt)
    step(model)
    assert list(model.get_current_log()) == ['l_sr', 'l_facd', 'alpha', 'r_1', 'r_2', 'r_3']
    assert all(isinstance(value, float) for value in model.get_current_log().values())


def test_only_terms_are_minimised(build, train_opt):
    model = build(train_opt)

    class Terms(LossSum):
        reads = ('student',)

        def forward(self, state):
            return {'l_a': state.student.mean(), 'b': state.student.sum() * 1e6}

    model.criterion = Terms(None)
    step(model)
    expected = model.net_g.conv_last.bias.grad.clone()
    model.optimizer_g.zero_grad()
    model.net_g(model.lq).mean().backward()
    # the step above moved the weights, but the output's gradient to the last bias does not depend on them
    torch.testing.assert_close(expected, model.net_g.conv_last.bias.grad)


def test_regressors_are_not_run_once_lambda_has_faded_and_the_student_is_the_same_to_the_last_bit(
    build, train_opt, monkeypatch
):
    train_opt['train']['distill_opt'] |= {'adaptive': False, 'lambda': {'start': 4, 'end': 0, 'over': 2}}

    def trained() -> tuple[FACDModel, int]:
        """And in how many of the iterations 1, 1, 2 and 3 its regressors have run."""
        model, runs = build(train_opt), []
        model.net_r.register_forward_hook(lambda *_: runs.append(None))
        step(model)
        step(model, 3)
        return model, len(runs)

    model, runs = trained()
    log = model.get_current_log()
    assert runs == 2 and log['l_facd'] == 0 and 'r_1' not in log
    monkeypatch.setattr(FACDLoss, 'weighs_features', True)
    other, runs = trained()
    assert runs == 4 and 'r_1' in other.get_current_log()
    for name, value in other.net_g.state_dict().items():
        assert torch.equal(model.net_g.state_dict()[name], value), name


def test_the_student_starts_from_the_same_weights_as_the_student_alone(build, train_opt):
    model = build(train_opt)
    alone_opt = {key: value for key, value in train_opt.items() if key not in ('teacher', 'taps', 'network_r')}
    alone_opt['model_type'] = 'SRModel'
    alone_opt['train'] = {**train_opt['train'], 'pixel_opt': {'type': 'L1Loss'}}
    del alone_opt['train']['distill_opt']
    alone = build(alone_opt)
    assert all(torch.equal(v, alone.net_g.state_dict()[k]) for k, v in model.net_g.state_dict().items())


def test_checkpoints_hold_student_and_regressors_apart_and_no_teacher(build, train_opt):
    model = build(train_opt)
    step(model)
    model.save(epoch=0, current_iter=1)
    folder = Path(model.opt['path']['models'])
    assert sorted(path.name for path in folder.iterdir()) == ['net_g_1.pth', 'net_r_1.pth']
    student = torch.load(folder / 'net_g_1.pth', weights_only=True)['params']
    regressors = torch.load(folder / 'net_r_1.pth', weights_only=True)['params']
    assert student.keys() == model.net_g.state_dict().keys()
    assert regressors.keys() == model.net_r.state_dict().keys()


def test_resuming_restores_regressors_and_optimizer(build, train_opt, tmp_path):
    model = build(train_opt)
    step(model, 2)
    model.save(epoch=0, current_iter=2)
    state = model.training_state()
    models = model.opt['path']['models']
    train_opt['path'] |= {f'pretrain_network_{n}': f'{models}/net_{n}_2.pth' for n in ('g', 'r')}
    train_opt['manual_seed'] = 99
    resumed = build(train_opt)
    resumed.resume_training(state)
    for net, other in ((model.net_g, resumed.net_g), (model.net_r, resumed.net_r)):
        assert all(torch.equal(value, other.state_dict()[key]) for key, value in net.state_dict().items())
    for ours, theirs in zip(model.optimizer_g.state.values(), resumed.optimizer_g.state.values()):
        assert torch.equal(ours['exp_avg'], theirs['exp_avg'])


def weak_student(opt: dict) -> dict:
    """With features of images in [0, 1], a hundredth of the teacher's and less."""
    return changed(changed(opt, 'network_g.img_range', 1.0), 'train.init_r', 'auto')


def first_layers(model: FACDModel) -> list[torch.Tensor]:
    return [regressor[0].weight.detach().clone() for regressor in model.net_r]


def test_regressors_of_a_student_in_other_units_start_once_on_the_first_batch(build, train_opt):
    model = build(weak_student(train_opt))
    before = first_layers(model)
    student_feats, teacher_feats = model.tapped(batch()['lq'])
    scales = [t.square().mean().sqrt() / s.square().mean().sqrt() for s, t in zip(student_feats, teacher_feats)]
    assert all(scale > 30 for scale in scales)
    model.distill_state(Batch(**batch()))
    for weight, started, scale in zip(before, first_layers(model), scales):
        torch.testing.assert_close(started, scale * weight)
    started = first_layers(model)
    model.distill_state(Batch(**batch()))
    assert all(map(torch.equal, started, first_layers(model)))


def test_loaded_regressors_are_not_started_again(build, train_opt):
    model = build(weak_student(train_opt))
    step(model, 2)
    model.save(epoch=0, current_iter=2)
    train_opt['path']['pretrain_network_r'] = f'{model.opt["path"]["models"]}/net_r_2.pth'
    resumed = build(weak_student(train_opt))
    resumed.distill_state(Batch(**batch()))
    assert all(map(torch.equal, first_layers(model), first_layers(resumed)))


def test_of_networks_in_equal_units_every_bit_is_as_without_starting(build, train_opt):
    models = []
    for init in ('random', 'auto'):
        models.append(build(changed(train_opt, 'train.init_r', init)))
        step(models[-1], 2)
    for ours, theirs in zip(*(model.net_r.state_dict().values() for model in models)):
        assert torch.equal(ours, theirs)


def test_the_average_student_begins_as_the_student_where_regressors_are_started(build, train_opt):
    model = build(changed(weak_student(train_opt), 'train.ema_decay', 0.9))
    model.distill_state(Batch(**batch()))
    assert all(map(torch.equal, model.net_g.state_dict().values(), model.net_g_ema.state_dict().values()))


def test_the_average_student_follows_the_student_and_is_saved(build, train_opt):
    train_opt['train']['ema_decay'] = 0.5
    model = build(train_opt)
    start = model.net_g.conv_first.bias.detach().clone()
    step(model)
    expected = 0.5 * start + 0.5 * model.net_g.conv_first.bias.detach()
    torch.testing.assert_close(model.net_g_ema.conv_first.bias.detach(), expected)
    model.save(epoch=0, current_iter=1)
    saved = torch.load(Path(model.opt['path']['models']) / 'net_g_1.pth', weights_only=True)
    torch.testing.assert_close(saved['params_ema']['conv_first.bias'], expected)


@pytest.mark.parametrize('regressor', ['auto', 'never'])
def test_without_regressors_nothing_is_saved_for_them(build, train_opt, regressor):
    train_opt['network_g'] = {**STUDENT, 'num_feat': TEACHER['num_feat']}
    train_opt['train']['distill_opt']['regressor'] = regressor
    del train_opt['network_r']
    model = build(train_opt)
    step(model)
    model.save(epoch=0, current_iter=1)
    assert model.net_r is None
    assert [path.name for path in Path(model.opt['path']['models']).iterdir()] == ['net_g_1.pth']


def test_the_teacher_is_not_built_for_testing(build, train_opt, tmp_path, monkeypatch):
    model = build(train_opt)
    opt = {**model.opt, 'is_train': False}
    monkeypatch.setattr('facd_basicsr.models.facd_model.build_teacher', lambda *_: pytest.fail('built'))
    assert not hasattr(build_model(opt), 'teacher')


def test_a_batch_of_one_is_refused_before_training(build, train_opt):
    train_opt['datasets']['train']['batch_size_per_gpu'] = 1
    with pytest.raises(UserError, match=r'datasets.train.batch_size_per_gpu: 1; accepted: 2 or more'):
        build(train_opt)


def test_the_in_place_trap_is_refused_before_training(build, train_opt):
    train_opt['taps'][2] = {'student': 'conv_after_body', 'teacher': 'upsample:input'}
    with pytest.raises(UserError, match=r"taps\[2\].student: 'conv_after_body' is changed in place"):
        build(train_opt)


@pytest.mark.parametrize(
    ('location', 'value', 'size'),
    [
        ('datasets.train.gt_size', 40, 8),
        ('datasets.train.gt_size', 12, 6),
        ('teacher.network.type', 'InPlaceTeacher', 20),
        ('network_r.type', 'OwnRegressor', 20),
        ('train.distill_opt.type', 'OwnLoss', 20),
    ],
)
def test_only_parts_known_to_take_any_size_are_tried_on_less_than_a_patch(
    build, train_opt, monkeypatch, location, value, size
):
    tried, forward = set(), Teacher.forward
    monkeypatch.setattr(Teacher, 'forward', lambda self, lq: (tried.add(tuple(lq.shape[2:])), forward(self, lq))[1])
    model = build(changed(changed(train_opt, 'datasets.train.gt_size', 40), location, value))
    assert tried == {(size, size)}
    patch = model.opt['datasets']['train']['gt_size'] // 2
    assert {feat.shape[2:] for feats in model.probe_taps() for feat in feats} == {(patch, patch)}


def test_training_twice_from_one_seed_gives_the_same_weights(build, train_opt):
    weights = []
    for _ in range(2):
        model = build(train_opt)
        set_random_seed(0)
        step(model, 3)
        weights.append(model.net_g.state_dict())
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


# of bfloat16's and float16's losses relative to float32's; the teacher and the losses are float32 in all of them
TOLERANCE = {'bf16': 5e-3, 'fp16': 1e-3}


@pytest.mark.parametrize('precision', TOLERANCE)
def test_lower_precisions_train_close_to_float32_and_keep_its_weights(build, train_opt, precision):
    train_opt['train']['distill_opt']['adaptive'] = False
    reference, model = build(train_opt), build(changed(train_opt, 'train.precision', precision))
    before = copy.deepcopy(model.net_g.state_dict())
    for iteration in range(1, 5):
        for net in (reference, model):
            net.update_learning_rate(iteration)
            net.feed_data(batch())
            net.optimize_parameters(iteration)
        expected, found = reference.get_current_log(), model.get_current_log()
        for term in ('l_sr', 'l_facd'):
            assert found[term] == pytest.approx(expected[term], rel=TOLERANCE[precision]), iteration
    parameters = {**dict(model.net_g.named_parameters()), **dict(model.net_r.named_parameters())}
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in parameters.values())
    assert all(not torch.equal(value, before[key]) for key, value in model.net_g.named_parameters())


# channels_last and compile change the order of float32 sums only
SAME_VALUES = {
    'channels_last': {'train.channels_last': True, 'teacher.channels_last': True},
    'student only': {'train.channels_last': True, 'train.channels_last_r': False},
    'regressors only': {'train.channels_last_r': True},
    'tf32 on a CPU': {'train.precision': 'tf32', 'teacher.precision': 'tf32'},
}
NEEDS_COMPILER = pytest.mark.skipif(shutil.which('g++') is None, reason='torch.compile needs a C++ compiler')
COMPILED = {
    'compiled': {'train.compile': {}, 'teacher.compile': {'dynamic': False}},
    'compiled regressors': {'train.compile_r': {'fullgraph': True}},
}


def assert_trains_as(reference: FACDModel, model: FACDModel, iterations: int) -> None:
    """Losses and first gradients agree to float32's rounding; weights to what Adam makes of it."""
    for iteration in range(1, iterations + 1):
        for net in (reference, model):
            net.update_learning_rate(iteration)
            net.feed_data(batch())
            net.optimize_parameters(iteration)
        if iteration == 1:
            for expected, found in zip(parameters(reference), parameters(model)):
                torch.testing.assert_close(found.grad, expected.grad, rtol=1e-3, atol=1e-5)
        assert model.get_current_log() == pytest.approx(reference.get_current_log(), rel=1e-4), iteration


def parameters(model: FACDModel) -> list[torch.Tensor]:
    return [*model.net_g.parameters(), *model.net_r.parameters()]


@pytest.mark.parametrize('changes', SAME_VALUES.values(), ids=SAME_VALUES)
def test_another_memory_format_trains_as_the_plain_one(build, train_opt, changes):
    reference = build(train_opt)
    for key, value in changes.items():
        train_opt = changed(train_opt, key, value)
    assert_trains_as(reference, build(train_opt), 4)


@pytest.mark.parametrize('changes', COMPILED.values(), ids=COMPILED)
@pytest.mark.parametrize('backend', ['aot_eager', pytest.param('inductor', marks=[pytest.mark.slow, NEEDS_COMPILER])])
def test_compiled_networks_train_as_the_eager_ones(build, train_opt, changes, backend, monkeypatch):
    if backend != 'inductor':  # captures the graphs but runs them as they are
        monkeypatch.setattr(torch, 'compile', functools.partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    for key in ('student', 'teacher'):
        train_opt = changed(train_opt, f'taps.2.{key}', 'conv_after_body:clone')
    reference = build(train_opt)
    for key, value in changes.items():
        train_opt = changed(train_opt, key, value)
    model = build(train_opt)
    before = torch._dynamo.utils.counters['stats']['unique_graphs']
    assert_trains_as(reference, model, 2)
    compiled = [key for key, value in changes.items() if value is not None]
    if compiled == ['train.compile', 'teacher.compile']:
        compiled.append('train.compile_r')  # as the student
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] - before == len(compiled)
    model.test()  # eager
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] - before == len(compiled)


@pytest.fixture
def graphs(monkeypatch):
    """torch.compile with the memory of CUDA graphs: what a call gave is overwritten by the next one if no backward is
    to come."""
    given: list[weakref.ref] = []
    awaited: set[int] = set()

    def compile_(function, **_):
        def run(*args):
            if not awaited:
                for output in (own() for own in given):
                    if output is not None:
                        output.detach().fill_(torch.nan)
                given.clear()
            outputs = function(*args)
            for output in tree_leaves(outputs):
                given.append(weakref.ref(output))
                if output.requires_grad:
                    awaited.add(id(output))
                    output.register_hook(lambda _: awaited.clear())
            return outputs

        return run

    monkeypatch.setattr(torch, 'compile', compile_)


GRAPHS = {'mode': 'reduce-overhead'}
DUKD_AND_GAN = {
    'train.distill_opt': {'type': 'DUKDLoss', 'two_steps': True, 'zoom_out': True},
    'network_d': {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 4},
    'train.gan_opt': {'type': 'GANLoss', 'gan_type': 'vanilla'},
    'train.optim_d': {'type': 'Adam', 'lr': 1e-4},
}


@pytest.mark.parametrize('changes', [{}, {'train.accum_iter': 3}, DUKD_AND_GAN], ids=['FACD', 'in parts', 'DUKD, GAN'])
@pytest.mark.parametrize('teachers', [1, 2])
def test_cuda_graphs_overwrite_nothing_that_a_step_still_reads(build, train_opt, changes, teachers, graphs):
    if teachers == 2:
        train_opt = with_two_teachers(train_opt)
    for key, value in changes.items():
        train_opt = changed(train_opt, key, value)
    if 'network_d' in changes:
        train_opt = {key: value for key, value in train_opt.items() if key not in ('taps', 'network_r')}
    eager = build(train_opt)
    compiled = changed(train_opt, 'train.compile', GRAPHS)
    for number in range(teachers):
        compiled = changed(compiled, f'teacher.{number}.compile' if teachers == 2 else 'teacher.compile', GRAPHS)
    model = build(compiled)
    for net in (eager, model):
        net.feed_data(batch())
        net.optimize_parameters(1)
    assert model.get_current_log() == pytest.approx(eager.get_current_log())


def test_a_network_that_can_not_be_compiled_is_named_in_a_line(build, train_opt, monkeypatch):
    monkeypatch.setenv('CXX', '/no/such/compiler')
    monkeypatch.setattr(torch._inductor.config.cpp, 'cxx', ('/no/such/compiler',))
    monkeypatch.setattr(torch._inductor.config, 'force_disable_caches', True)
    model = build(changed(train_opt, 'teacher.compile', {}))
    model.feed_data(batch())
    with pytest.raises(UserError, match=r'^teacher.compile: torch.compile failed') as error:
        model.optimize_parameters(1)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('student', [False, True])
@pytest.mark.parametrize('regressors', [False, True])
@pytest.mark.parametrize('teacher', [False, True])
def test_each_network_has_its_own_memory_format_and_activations_follow(build, train_opt, student, regressors, teacher):
    train_opt['train'] |= {'channels_last': student, 'channels_last_r': regressors}
    train_opt['teacher']['channels_last'] = teacher
    model = build(train_opt)
    seen = []
    for module in (model.net_g.body[0].conv2, model.teachers[0].net.body[0].conv2, model.net_r[0][2]):
        module.register_forward_hook(lambda _, __, output: seen.append(is_channels_last(output)))
    model.distill_state(Batch(**batch()))
    assert seen == [teacher, student, regressors]


def is_channels_last(x: torch.Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def test_validation_of_a_distillation_works_in_tiles_as_that_of_its_student(build, train_opt):
    train_opt['val']['tile'] = 16
    model = build(train_opt)
    assert runs_as_basicsr(model)
    assert model.reach == 10  # 2 for each of 3 blocks; 4 convolutions around them


@pytest.mark.parametrize('before', [False, True])
def test_a_fused_optimizer_goes_on_in_another_memory_format(build, train_opt, before):
    train_opt['train']['optim_g']['fused'] = True
    first = build(changed(train_opt, 'train.channels_last', before))
    step(first, 2)
    followers = [build(changed(train_opt, 'train.channels_last', layout)) for layout in (before, not before)]
    for model in followers:
        for own, trained in ((model.net_g, first.net_g), (model.net_r, first.net_r)):
            own.load_state_dict(trained.state_dict())
        model.resume_training(copy.deepcopy({**first.training_state(), 'epoch': 0, 'iter': 2}))
        step(model)
    for same, other in zip(*map(parameters, followers)):
        torch.testing.assert_close(other, same, rtol=1e-4, atol=1e-6)


@ARCH_REGISTRY.register()
class ViewingTeacher(ARCH_REGISTRY.get('EDSR')):
    """Needs its activations in the plain memory format."""

    def forward(self, x):
        self.conv_first(x).view(len(x), -1)
        return super().forward(x)


def test_a_network_that_does_not_take_channels_last_is_refused_in_a_line(build, train_opt):
    train_opt['teacher'] |= {'network': {**TEACHER, 'type': 'ViewingTeacher'}, 'channels_last': True}
    with pytest.raises(UserError, match=r'^teacher.channels_last: true, which this network does not take') as error:
        build(train_opt)
    assert '\n' not in str(error.value)


def flags() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.fixture(autouse=True)
def torchs_own_flags():
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, True


def test_tf32_is_set_for_the_process_and_for_the_teachers_forward(build, train_opt):
    build(train_opt)
    assert flags() == (False, True)
    build(changed(train_opt, 'train.precision', 'fp32'))
    assert flags() == (False, False)
    model = build(changed(changed(train_opt, 'train.precision', 'fp32'), 'teacher.precision', 'tf32'))
    seen = []
    model.teachers[0].net.conv_last.register_forward_hook(lambda *_: seen.append(flags()))
    model.net_g.conv_last.register_forward_hook(lambda *_: seen.append(flags()))
    model.distill_state(Batch(**batch()))
    assert seen == [(True, True), (False, False)] and flags() == (False, False)
    build(changed(train_opt, 'train.precision', 'tf32'))
    assert flags() == (True, True)


@pytest.mark.parametrize(('precision', 'dtype'), [('fp32', None), ('bf16', torch.bfloat16), ('fp16', torch.float16)])
def test_only_student_and_regressors_run_in_the_precision_and_the_loss_sees_float32(build, train_opt, precision, dtype):
    model = build(changed(train_opt, 'train.precision', precision))
    if dtype is not None:  # EDSR adds its float32 mean last; most networks' outputs are of the precision
        model.net_g.register_forward_hook(lambda _, __, output: output.to(dtype))
    seen = []
    for module in (model.net_g.conv_last, model.net_r, model.teachers[0].net.conv_last):
        module.register_forward_hook(
            lambda _, __, output: seen.append((output[0] if isinstance(output, tuple) else output).dtype)
        )
    states = []
    next(iter(model.criterion)).register_forward_pre_hook(lambda _, args: states.append(args[0]))
    model.criterion(model.distill_state(Batch(**batch())))
    assert seen == [torch.float32, dtype or torch.float32, dtype or torch.float32]
    (state,) = states
    tensors = (state.student, state.teacher, state.gt, state.lq, *state.student_feats, *state.teacher_feats)
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    model.feed_data(batch())
    model.test()
    with torch.no_grad():
        assert torch.equal(model.output, model.net_g(batch()['lq']))
    assert seen[3:] == [torch.float32] * 2  # validation


class Copied:
    """A tensor that tells how it was copied."""

    def to(self, device, non_blocking=False):
        return device, non_blocking


def test_a_batch_is_copied_without_waiting_for_it(build, train_opt):
    model = build(train_opt)
    model.feed_data({'lq': Copied(), 'gt': Copied()})
    assert model.lq == model.gt == (model.device, True)
    model.feed_data({'lq': Copied()})  # as where there is no ground truth


@pytest.mark.parametrize(('precision', 'enabled'), [('fp32', False), ('bf16', False), ('fp16', True)])
def test_a_scaler_is_there_in_every_precision_and_has_a_state_in_float16_only(build, train_opt, precision, enabled):
    model = build(changed(train_opt, 'train.precision', precision))
    step(model)
    assert model.scaler.is_enabled() == bool(model.scaler.state_dict()) == enabled


def test_an_overflow_in_float16_halves_the_scale_and_leaves_the_weights(build, train_opt):
    train_opt['train']['nonfinite'] = {'action': 'fatal', 'limit': 3}
    model = build(changed(train_opt, 'train.precision', 'fp16'))
    model.scaler = GradScaler('cpu', init_scale=2.0**40)
    before = copy.deepcopy(model.net_g.state_dict())
    step(model)
    model.guard.after_step(batch(), 1)
    assert model.scaler.get_scale() == 2.0**39
    assert all(torch.equal(value, before[key]) for key, value in model.net_g.state_dict().items())
    assert not Path(model.opt['path']['experiments_root'], 'nonfinite').exists()
    step(model)
    model.guard.after_step(batch(), 2)
    step(model)
    with pytest.raises(UserError, match=r'train.nonfinite.limit: 3, .* at loss scales down to 1.37439e\+11; accepted'):
        model.guard.after_step(batch(), 3)


def test_the_first_scale_of_float16_loses_no_step(build, train_opt, tmp_path):
    model = build(changed(train_opt, 'train.precision', 'fp16'))
    scale = model.scaler.get_scale()
    step(model, 3)
    assert model.scaler.get_scale() == scale
    assert all(values['step'] == 3 for values in model.optimizer_g.state.values())


class Poisoned(LossSum):
    """A loss whose term is infinite while its gradient is -1 / (C * H * W) everywhere."""

    reads = ('student',)

    def forward(self, state):
        return {'l_sr': (state.student - float('inf')).abs().mean(), 'alpha': state.student.mean().detach()}


@pytest.mark.parametrize('precision', ['fp32', 'fp16'])
def test_an_infinite_term_is_caught_though_its_gradient_is_finite(build, train_opt, precision):
    train_opt['train'] |= {'ema_decay': 0.5, 'nonfinite': {'action': 'fatal'}}
    model = build(changed(train_opt, 'train.precision', precision))
    facd = model.criterion
    step(model)
    model.criterion = Poisoned(None)
    state = model.distill_state(Batch(**batch()))
    gradients = torch.autograd.grad(model.criterion(state)['l_sr'], list(model.net_g.parameters()))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)

    nets = (model.net_g, model.net_r)
    before = copy.deepcopy([net.state_dict() for net in nets] + [model.optimizer_g.state_dict()['state']])
    step(model)
    with pytest.raises(UserError, match=r'train.nonfinite.action: fatal, and in iteration 1 l_sr not finite'):
        model.guard.after_step({**batch(), 'lq_path': ['a', 'b', 'c']}, 1)
    for net, values in zip(nets, before):
        assert all(torch.equal(value, values[key]) for key, value in net.state_dict().items())
    for index, values in model.optimizer_g.state_dict()['state'].items():
        assert all(torch.equal(value, before[2][index][key]) for key, value in values.items())

    model.criterion = facd
    step(model)
    model.guard.after_step(batch(), 2)
    assert model.guard.state_dict() == {'in_a_row': 0, 'skipped': 1}
    assert all(torch.isfinite(value).all() for value in model.net_g_ema.state_dict().values())


@pytest.mark.parametrize('execution', [{}, {'precision': 'bf16'}, {'channels_last': True}, {'precision': 'fp16'}])
def test_srmodel_alone_is_run_as_its_options_say_and_otherwise_as_basicsrs(build, train_opt, execution):
    for key in ('teacher', 'taps', 'network_r'):
        del train_opt[key]
    del train_opt['train']['distill_opt']
    train_opt['train'] |= {'pixel_opt': {'type': 'L1Loss'}, **execution}
    set_random_seed(0)
    model = build(changed(train_opt, 'model_type', 'SRModel'))
    opt = copy.deepcopy(model.opt)  # BasicSR's has taken the types out of it
    opt['train']['optim_g']['type'], opt['train']['scheduler']['type'] = 'Adam', 'MultiStepLR'
    basicsrs = MODEL_REGISTRY.get('SRModel')(opt)
    basicsrs.net_g.load_state_dict(model.net_g.state_dict())
    seen = []
    model.net_g.body[0].conv2.register_forward_hook(lambda _, __, output: seen.append(output))
    step(model, 2)
    step(basicsrs, 2)
    dtype = {'bf16': torch.bfloat16, 'fp16': torch.float16}.get(execution.get('precision'), torch.float32)
    assert {output.dtype for output in seen} == {dtype}
    assert all(is_channels_last(output) == execution.get('channels_last', False) for output in seen)
    for key, value in basicsrs.net_g.state_dict().items():
        if execution:
            assert (model.net_g.state_dict()[key] - value).abs().max() <= 4.1e-3, key  # of Adam's two steps of 1e-3
        else:
            assert torch.equal(model.net_g.state_dict()[key], value), key
