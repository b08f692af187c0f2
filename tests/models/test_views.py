"""Views of a loss in the model: what runs on them, in which batches, the average of the student, and several steps."""

import copy
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from basicsr.utils.registry import LOSS_REGISTRY
from conftest import changed, train_options
from runs import assert_same
from torch import Tensor, nn

from facd_basicsr.errors import UserError
from facd_basicsr.losses import DistillLoss, DistillState
from facd_basicsr.losses.base import Average, View, option
from facd_basicsr.losses.views import generators
from facd_basicsr.losses.vqgan import VQGANEncoder
from facd_basicsr.models import FACDModel
from facd_basicsr.models.micro_batches import Batch
from facd_basicsr.models.safe_model import build_model

N = 4


def noisy(state: DistillState) -> Tensor:
    noise = [torch.rand(state.lq.shape[1:], generator=own) for own in generators(state, 'noise')]
    return state.lq + torch.stack(noise).to(state.lq)


@LOSS_REGISTRY.register()
@dataclass(eq=False)
class ViewedLoss(DistillLoss):
    """Of two inputs of LQ's size, one of another, and one that is made of the teacher's output."""

    reads_features = False

    decay: float = option(0.25, 'of the average')

    def __post_init__(self) -> None:
        super().__post_init__()
        self.average = Average(self.decay, every=2)

    @property
    def reads(self) -> tuple[str, ...]:
        return ('teacher',)

    @property
    def views(self) -> dict[str, View]:
        return {
            'negative': View(('student', 'teacher'), lambda state: 1 - state.lq),
            'noisy': View(('average',), noisy),
            'corner': View(('student',), lambda state: state.lq[..., :4, :6]),
            'taught': View(('student',), lambda state: state.teacher[..., ::2, ::2]),
        }

    def forward(self, state: DistillState) -> dict[str, Tensor]:
        views = state.views
        l_negative = (views['negative']['student'] - views['negative']['teacher']).square().mean()
        l_noisy = (views['taught']['student'] - views['noisy']['average']).square().mean()
        return {'l_negative': l_negative, 'l_noisy': l_noisy + views['corner']['student'].mean()}


@LOSS_REGISTRY.register()
@dataclass(eq=False)
class WithoutAverage(ViewedLoss):
    """A mistake: its view is of an average that it does not have."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.average = None


@LOSS_REGISTRY.register()
@dataclass(eq=False)
class TwoSteps(DistillLoss):
    """Two terms, of which each has an optimizer's step."""

    reads_features = False
    term = 'l_both'

    @property
    def reads(self) -> tuple[str, ...]:
        return ('student',)

    def steps(self) -> tuple[DistillLoss, ...]:
        first, second = copy.copy(self), copy.copy(self)
        first.term, second.term = 'l_first', 'l_second'
        return first, second

    def forward(self, state: DistillState) -> dict[str, Tensor]:
        terms = {'l_first': state.student.mean(), 'l_second': state.student.square().mean()}
        return terms if self.term == 'l_both' else {self.term: terms[self.term]}


@pytest.fixture
def build(tmp_path: Path, train_opt: dict):
    def _build(loss: dict, **train: object) -> FACDModel:
        opt = changed(train_opt, 'train.distill_opt', loss)
        if not any('FACDLoss' in str(value) for value in loss.values()):
            opt = {key: value for key, value in opt.items() if key not in ('taps', 'network_r')}
        opt['datasets']['train']['batch_size_per_gpu'] = N
        opt['train'] |= train
        return build_model(train_options(opt, tmp_path))

    torch.set_default_dtype(torch.float64)
    yield _build
    torch.set_default_dtype(torch.float32)


def batch(seed: int = 0) -> dict[str, object]:
    generator = torch.Generator().manual_seed(seed)
    lq, gt = (torch.rand(N, 3, size, size, generator=generator) for size in (8, 16))
    return {'lq': lq, 'gt': gt, 'seed': [str(100 * seed + number) for number in range(N)]}


def step(model: FACDModel, *iterations: int) -> None:
    for iteration in iterations:
        model.update_learning_rate(iteration)
        model.feed_data(batch(iteration))
        model.optimize_parameters(iteration)


VIEWED = {'type': 'ViewedLoss'}


def forwards(model: FACDModel) -> dict[str, list[tuple[int, ...]]]:
    """The shapes (M, h, w) of what each network runs on from now on."""
    found: dict[str, list[tuple[int, ...]]] = {}
    for name, net in (('student', model.net_g), ('teacher', model.teachers[0].net), ('average', model.net_average)):
        own = found.setdefault(name, [])
        net.register_forward_hook(lambda _, inputs, __, own=own: own.append((len(inputs[0]), *inputs[0].shape[2:])))
    return found


def test_inputs_of_one_shape_are_one_batch_and_no_network_runs_on_what_no_loss_asks_for(build):
    model = build(VIEWED)
    found = forwards(model)
    step(model, 1)
    assert found == {'student': [(2 * N, 8, 8), (N, 4, 6)], 'teacher': [(2 * N, 8, 8)], 'average': [(N, 8, 8)]}


def test_a_view_has_the_outputs_of_its_networks_on_it(build):
    model = build(VIEWED)
    state = model.distill_state(Batch(batch()['lq'], batch()['gt'], (3, 4, 5, 6)))
    teacher, lq = model.teachers[0], state.lq
    assert len(state.student) == 0  # not asked for
    torch.testing.assert_close(state.teacher, teacher(lq))
    views = state.views
    assert {name: {*own} for name, own in views.items()} == {
        'negative': {'input', 'student', 'teacher'},
        'noisy': {'input', 'average'},
        'corner': {'input', 'student'},
        'taught': {'input', 'student'},
    }
    torch.testing.assert_close(views['negative']['teacher'], teacher(1 - lq))
    torch.testing.assert_close(views['negative']['student'], model.net_g(1 - lq))
    torch.testing.assert_close(views['corner']['student'], model.net_g(lq[..., :4, :6]))
    torch.testing.assert_close(views['taught']['input'], teacher(lq)[..., ::2, ::2])
    torch.testing.assert_close(views['noisy']['average'], model.net_average(views['noisy']['input']))
    assert not torch.equal(views['noisy']['input'][0] - lq[0], views['noisy']['input'][1] - lq[1])
    requires = {
        name: own[network].requires_grad for name, own in views.items() for network in own if network != 'input'
    }
    assert requires == {'negative': False, 'noisy': False, 'corner': True, 'taught': True}


@dataclass
class Forward:
    autocast: bool
    gradients: bool
    is_channels_last: bool


def test_views_are_run_in_the_precision_and_layout_of_their_networks_and_only_the_student_with_gradients(build):
    torch.set_default_dtype(torch.float32)
    found: dict[str, list[Forward]] = {'student': [], 'teacher': [], 'average': []}
    model = build(VIEWED, precision='bf16', channels_last=True)
    for name, net in (('student', model.net_g), ('teacher', model.teachers[0].net), ('average', model.net_average)):

        def seen(_: nn.Module, inputs: tuple[Tensor], own: list[Forward] = found[name]) -> None:
            is_channels_last = inputs[0].is_contiguous(memory_format=torch.channels_last)
            own.append(Forward(torch.is_autocast_enabled('cpu'), torch.is_grad_enabled(), is_channels_last))

        net.register_forward_pre_hook(seen)
    step(model, 1)
    assert found == {
        'student': [Forward(True, True, True)] * 2,
        'teacher': [Forward(False, False, False)],  # `teacher.precision` and `teacher.channels_last` are its own
        'average': [Forward(True, False, True)],
    }


def test_train_compile_is_for_the_student_and_its_average(build, monkeypatch):
    compiled: list[object] = []

    def compile_(function, **_):
        return lambda *args: compiled.append(args[0]) or function(*args)

    monkeypatch.setattr(torch, 'compile', compile_)
    model = build(VIEWED, compile={})
    step(model, 1)
    assert compiled == [model.net_average, model.net_g, model.net_g]


def test_a_view_of_an_average_that_no_loss_has_is_refused(build):
    with pytest.raises(UserError, match=r'^train\.distill_opt: a view reads the average .*average = Average\(decay'):
        build({'type': 'WithoutAverage'})


@pytest.mark.parametrize('networks', ['teacher', ('students',)])
def test_a_view_of_what_is_no_network_is_refused(networks):
    with pytest.raises(UserError) as caught:
        View(networks, lambda state: state.lq)
    assert str(caught.value) == f'View: networks {networks!r}; accepted: a tuple of student, teacher, average'


def test_dckd_contrasts_in_the_features_of_a_vqgan(build, tmp_path):
    encoder = {f'encoder.{key}': value for key, value in VQGANEncoder(2).state_dict().items()}
    torch.save(encoder, tmp_path / 'vqgan.pth')
    model = build({'type': 'DCKDLoss', 'layer_weights': [0.5, 1], 'vqgan_weights': str(tmp_path / 'vqgan.pth')})
    step(model, 1)
    log = model.get_current_log()
    assert {*log} == {'l_sr', 'l_logits', 'l_consistency', 'l_contrast', 'r_1', 'r_2'}
    ratios = (0.5 * log['r_1'] + log['r_2']) / 5  # r is by the mean over a sample's negatives, the loss by their sum
    assert log['l_contrast'] == pytest.approx(0.1 * ratios, rel=1e-3)


def test_what_a_view_draws_depends_on_the_samples_seed_not_on_its_place_in_the_batch(build):
    model = build(VIEWED)
    lq, gt = batch()['lq'], batch()['gt']
    whole = model.distill_state(Batch(lq, gt, (3, 4, 5, 6))).views['noisy']['input']
    half = model.distill_state(Batch(lq[2:], gt[2:], (5, 6))).views['noisy']['input']
    assert torch.equal(whole[2:], half)


def test_each_loss_of_a_sum_sees_its_own_views_and_features_are_of_lq_alone(build, train_opt):
    facd = train_opt['train']['distill_opt']
    alone, both = build({'facd': facd}), build({'facd': facd, 'viewed': VIEWED})
    both.net_g.load_state_dict(alone.net_g.state_dict())
    both.net_r.load_state_dict(alone.net_r.state_dict())
    found = forwards(both)
    states = [model.distill_state(Batch(batch()['lq'], batch()['gt'], (1, 2, 3, 4))) for model in (alone, both)]
    assert {*states[1].views} == {'viewed.negative', 'viewed.noisy', 'viewed.corner', 'viewed.taught'}
    assert found['student'] == [(3 * N, 8, 8), (N, 4, 6)]
    for name in ('student', 'student_feats', 'teacher_feats', 'regressed_feats'):
        torch.testing.assert_close(getattr(states[1], name), getattr(states[0], name))
    terms = both.criterion(states[1])
    assert {'l_facd_sr', 'l_facd_facd', 'l_viewed_negative', 'l_viewed_noisy'} <= {*terms}
    torch.testing.assert_close(terms['l_facd_facd'], alone.criterion(states[0])['l_facd_facd'])


@pytest.mark.parametrize('accum_iter', [2, N])
def test_parts_have_the_gradients_and_values_of_the_whole_batch(build, accum_iter):
    whole, parts = build(VIEWED), build(VIEWED, accum_iter=accum_iter)
    for model in (whole, parts):
        step(model, 1)
    for ours, theirs in zip(parts.net_g.parameters(), whole.net_g.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-9)  # the teacher's images are float32
    assert parts.get_current_log() == pytest.approx(whole.get_current_log())


@pytest.mark.parametrize('ema_decay', [0, 0.5])
def test_the_average_begins_as_the_student_and_moves_in_every_second_iteration(build, ema_decay):
    model = build(VIEWED, ema_decay=ema_decay)
    student = model.net_g_ema if ema_decay else model.net_g
    before = [weight.detach().clone() for weight in student.parameters()]
    assert all(map(torch.equal, model.net_average.parameters(), before))
    step(model, 1)
    assert all(map(torch.equal, model.net_average.parameters(), before))
    assert not any(weight.requires_grad for weight in model.net_average.parameters())
    step(model, 2)
    for average, old, new in zip(model.net_average.parameters(), before, student.parameters()):
        torch.testing.assert_close(average.detach(), 0.25 * old + 0.75 * new.detach())


def test_the_average_is_resumed(build):
    model, resumed = build(VIEWED), build(VIEWED)
    step(model, 1, 2)
    state = copy.deepcopy(model.training_state())
    resumed.net_g.load_state_dict(model.net_g.state_dict())
    resumed.resume_training(state)
    assert_same(resumed.net_average.state_dict(), model.net_average.state_dict())
    for own in (model, resumed):
        step(own, 3, 4)
    assert_same(resumed.net_g.state_dict(), model.net_g.state_dict())
    assert_same(resumed.net_average.state_dict(), model.net_average.state_dict())


def test_losses_that_ask_for_two_averages_are_refused(build):
    with pytest.raises(
        UserError, match=r'^\S+/opt\.yml: train\.distill_opt: averages of the student: every 2 .*; accepted: one for'
    ):
        build({'a': VIEWED, 'b': {**VIEWED, 'decay': 0.5}})


@pytest.mark.parametrize('accum_iter', [1, 2])
def test_a_second_step_begins_from_the_first_ones_gradients_and_weights(build, accum_iter):
    """By SGD: w1 = w0 - lr g1(w0), w2 = w1 - lr (g1(w0) + g2(w1))."""
    model = build({'type': 'TwoSteps'}, optim_g={'type': 'SGD', 'lr': 0.1}, accum_iter=accum_iter)
    reference = copy.deepcopy(model.net_g)

    def gradients(net: nn.Module, term: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(term, list(net.parameters())))

    first = gradients(reference, reference(batch(1)['lq']).mean())
    with torch.no_grad():
        for weight, gradient in zip(reference.parameters(), first):
            weight -= 0.1 * gradient
    second = gradients(reference, reference(batch(1)['lq']).square().mean())
    step(model, 1)
    for weight, at_first, g1, g2 in zip(model.net_g.parameters(), reference.parameters(), first, second):
        torch.testing.assert_close(weight.detach(), at_first.detach() - 0.1 * (g1 + g2), rtol=1e-6, atol=1e-9)
    assert {*model.get_current_log()} == {'l_first', 'l_second'}
    step(model, 2)  # from cleared gradients
    after = [weight.grad.clone() for weight in model.net_g.parameters()]
    assert all(not torch.equal(gradient, old) for gradient, old in zip(after, second))


def test_several_steps_are_refused_in_float16(build):
    torch.set_default_dtype(torch.float32)
    with pytest.raises(UserError, match=r'^train\.precision: fp16; accepted with several optimizer steps'):
        build({'type': 'TwoSteps'}, precision='fp16')
    with pytest.raises(UserError, match=r'^train\.precision_r: fp16; accepted with several optimizer steps'):
        losses = {'two': {'type': 'TwoSteps'}, 'facd': {'type': 'FACDLoss', 'lambda': 4}}
        build(losses, precision='bf16', precision_r='fp16')
