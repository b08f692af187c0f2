"""Batches in parts: gradients, random numbers, averages, forwards and activations; and each term's share."""

import copy
import functools
from pathlib import Path

import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from conftest import STUDENT, changed, train_options, with_two_teachers
from runs import assert_same
from states import LOSSES, method_opt
from steps import N, alone, step
from torch import Tensor, nn

from facd_basicsr.losses import DistillState
from facd_basicsr.models.micro_batches import Batch, gradient_shares, of_student
from facd_basicsr.models.safe_model import SafeSRModel, build_model


@ARCH_REGISTRY.register()
class NoisyStudent(ARCH_REGISTRY.get('EDSRStudent')):
    """With dropout and batch normalization."""

    def __init__(self, num_feat: int, num_block: int, upscale: int) -> None:
        super().__init__(num_feat=num_feat, num_block=num_block, upscale=upscale)
        self.body.append(nn.BatchNorm2d(num_feat))
        self.body.append(nn.Dropout(0.5))


@pytest.fixture
def build(tmp_path: Path):
    """Builds the model of an option dict with a batch of N as train.py does, in float64."""

    def _build(opt: dict, **train: object) -> SafeSRModel:
        opt = copy.deepcopy(opt)
        opt['datasets']['train']['batch_size_per_gpu'] = N
        opt['train'] |= train
        return build_model(train_options(opt, tmp_path))

    torch.set_default_dtype(torch.float64)
    yield _build
    torch.set_default_dtype(torch.float32)


def gradients(model: SafeSRModel) -> list[Tensor]:
    nets = [net for name in ('net_g', 'net_r') if (net := vars(model).get(name)) is not None]
    return [p.grad for net in nets for p in net.parameters()]


@pytest.mark.parametrize('accum_iter', [2, N])
@pytest.mark.parametrize('name', [*LOSSES, 'SRModel'])
def test_parts_have_gradients_values_and_weights_of_the_whole_batch(build, train_opt, tmp_path, name, accum_iter):
    opt = alone(train_opt) if name == 'SRModel' else method_opt(train_opt, name, tmp_path)
    if name == 'IACDLoss':  # compares the student's images with the teacher's, which are float32
        torch.set_default_dtype(torch.float32)
    rtol, atol = (1e-9, 1e-12) if torch.get_default_dtype() == torch.float64 else (1e-3, 1e-5)
    whole, parts = build(opt), build(opt, accum_iter=accum_iter)
    for model in (whole, parts):
        step(model)
    torch.testing.assert_close(gradients(parts), gradients(whole), rtol=rtol, atol=atol)
    assert all(gradient.abs().sum() > 0 for gradient in gradients(whole)) or name == 'TeacherSupervisionLoss'
    assert parts.get_current_log() == pytest.approx(whole.get_current_log(), rel=max(rtol, 1e-6))
    for model in (whole, parts):
        step(model, 2, 3)
    for ours, theirs in zip(parts.net_g.parameters(), whole.net_g.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e3 * atol)


@pytest.mark.parametrize('target', ['mean', 'nearest'])
def test_parts_of_a_batch_with_two_teachers_have_gradients_and_values_of_the_whole(build, train_opt, target):
    opt = with_two_teachers(train_opt)
    whole, parts = (build(opt, accum_iter=count, teacher_target=target, init_r='first_batch') for count in (1, 2))
    for model in (whole, parts):
        step(model)
    torch.testing.assert_close(gradients(parts), gradients(whole), rtol=1e-6, atol=1e-9)
    assert parts.get_current_log() == pytest.approx(whole.get_current_log(), rel=1e-6)
    assert ('teacher_1' in whole.get_current_log()) == (target == 'nearest')


@pytest.mark.parametrize('precision', ['fp16', 'bf16'])
def test_parts_in_lower_precision_have_about_the_gradients_of_the_whole_batch(build, train_opt, precision):
    torch.set_default_dtype(torch.float32)
    whole, parts = (build(train_opt, accum_iter=count, precision=precision) for count in (1, 2))
    for model in (whole, parts):
        step(model)
    for ours, theirs in zip(gradients(parts), gradients(whole)):
        assert (ours - theirs).norm() <= 0.05 * theirs.norm()
    assert parts.scaler.get_scale() == whole.scaler.get_scale()


def test_new_regressors_start_on_the_whole_first_batch(build, train_opt):
    whole, parts = (build(train_opt, accum_iter=count, init_r='first_batch') for count in (1, 2))
    for model in (whole, parts):
        step(model)
    for ours, theirs in zip(parts.net_r.parameters(), whole.net_r.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_the_teacher_runs_once_for_each_part_and_the_student_twice(build, train_opt):
    model = build(train_opt, accum_iter=2)
    sizes: dict[str, list[int]] = {'student': [], 'teacher': [], 'regressors': []}
    for key, net in zip(sizes, (model.net_g, model.teachers[0], model.net_r[0])):
        net.register_forward_hook(lambda _, inputs, __, key=key: sizes[key].append(len(inputs[0])))
    step(model)
    assert sizes == {'student': [2] * 4, 'teacher': [2] * 2, 'regressors': [2] * 4}


def test_only_a_part_has_activations_at_a_time(build, train_opt):
    def samples(count: int) -> set[int]:
        model = build(train_opt, accum_iter=count)
        found = []
        width = model.net_g.conv_first.out_channels  # the regressors' and the teacher's is another
        with torch.autograd.graph.saved_tensors_hooks(lambda x: found.append(x.shape) or x, lambda x: x):
            step(model)
        return {shape[0] for shape in found if len(shape) == 4 and shape[1:] == (width, 8, 8)}

    assert samples(1) == {4} and samples(2) == {2} and samples(4) == {1}


def test_random_numbers_and_averages_are_those_of_one_forward_of_each_part(build, train_opt):
    """The second pass has the dropout of the first, and neither the first nor the shares leave a trace."""
    train_opt['network_g'] = {**STUDENT, 'type': 'NoisyStudent'}
    reference = build(train_opt)
    model = build(train_opt, accum_iter=2, log_gradient_share=1)
    torch.manual_seed(5)
    step(model)
    after = torch.rand(3)

    lq, gt = model.lq, model.gt
    torch.manual_seed(5)
    states = [reference.distill_state(part) for part in Batch(lq, gt).parts(2)]
    assert torch.equal(torch.rand(3), after)
    whole = [torch.cat(own) for own in zip(*map(of_student, states))]
    feats = len(states[0].student_feats)
    teacher = torch.cat([state.teacher for state in states])
    teacher_feats = tuple(map(torch.cat, zip(*(state.teacher_feats for state in states))))
    state = DistillState(
        whole[0], teacher, gt, lq, tuple(whole[1 : 1 + feats]), teacher_feats, tuple(whole[1 + feats :]), 1
    )
    reference.criterion(state)
    sum(value for name, value in reference.criterion(state).items() if name.startswith('l_')).backward()
    torch.testing.assert_close(gradients(model), gradients(reference), rtol=1e-9, atol=1e-12)
    for ours, theirs in zip(model.net_g.buffers(), reference.net_g.buffers()):
        torch.testing.assert_close(ours, theirs)


def test_a_term_that_is_not_finite_in_one_part_skips_the_step(build, train_opt):
    model = build(train_opt, accum_iter=2)
    before = copy.deepcopy(model.net_g.state_dict())
    data = {'lq': torch.rand(N, 3, 8, 8), 'gt': torch.rand(N, 3, 16, 16)}
    data['gt'][3, 0, 0, 0] = float('inf')
    model.feed_data(data)
    model.optimize_parameters(1)
    assert_same(model.net_g.state_dict(), before)
    assert model.guard._step.bad_parameters()


def test_shares_are_of_the_last_layer_that_all_terms_reach():
    """Of w2 w1 x with w1 = 2, w2 = 3 and x = 1, l_out = 2 w2 w1 x has 6 at w1, and l_hidden = 4 w1 x has 4, but none at
    w2: so the shares are 0.6 and 0.4. l_free reaches nothing."""
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 1, 1))
    for layer, value in zip(net, (2.0, 3.0, 1.0)):
        nn.init.constant_(layer.weight, value)
    x = torch.ones(2, 1, 1, 1)

    def forward(part: Tensor) -> list[Tensor]:
        hidden = net[0](part)
        return [net[1](hidden), hidden]

    parts = [[own.detach().requires_grad_() for own in forward(half)] for half in x.chunk(2)]
    out, feat = (torch.cat(own) for own in zip(*parts))
    terms = {'l_out': 2 * out.mean(), 'l_hidden': 4 * feat.mean(), 'l_free': torch.zeros(())}
    passes = ((forward(half), part) for half, part in zip(x.chunk(2), parts))
    shares = gradient_shares(net, terms, passes, [leaf for part in parts for leaf in part])
    assert {name: value.item() for name, value in shares.items()} == pytest.approx(
        {'share_out': 0.6, 'share_hidden': 0.4, 'share_free': 0.0}
    )
    assert all(weight.grad is None for weight in net.parameters())


@pytest.mark.parametrize('accum_iter', [1, 2])
def test_shares_are_those_of_gradients_taken_one_by_one_and_sum_to_one(build, train_opt, accum_iter):
    train_opt['taps'] = [{'student': 'body.0', 'teacher': 'body.0'}, {'student': 'body.1', 'teacher': 'body.1'}]
    train_opt['train']['distill_opt'] |= {'layer_weights': [1, 1], 'adaptive': False}
    model = build(train_opt, log_gradient_share=2, accum_iter=accum_iter)
    step(model)
    assert not [name for name in model.get_current_log() if name.startswith('share_')]
    last = build(train_opt)
    for name in ('net_g', 'net_r'):
        getattr(last, name).load_state_dict(getattr(model, name).state_dict())
    step(model, 2, 2)
    found = {name: value for name, value in model.get_current_log().items() if name.startswith('share_')}
    terms = last.criterion(last.distill_state(Batch(model.lq, model.gt), 2))
    weights = list(last.net_g.body[1].conv2.parameters())  # body.2 and later are not reached by the features' term
    norms = {
        name: torch.cat([g.flatten() for g in torch.autograd.grad(terms[name], weights, retain_graph=True)]).norm()
        for name in ('l_sr', 'l_facd')
    }
    expected = {f'share_{name[2:]}': (norm / sum(norms.values())).item() for name, norm in norms.items()}
    assert found == pytest.approx(expected, rel=1e-6)
    assert sum(found.values()) == pytest.approx(1) and min(found.values()) > 0


@pytest.mark.parametrize(
    'changes',
    [
        {},
        pytest.param({'compile': {}}, marks=pytest.mark.slow),
        {'precision': 'fp16'},
        {'accum_iter': 2},
        {'init_r': 'first_batch'},
    ],
)
def test_a_run_is_bit_equal_with_and_without_shares(build, train_opt, changes, monkeypatch):
    torch.set_default_dtype(torch.float32)
    monkeypatch.setattr(torch, 'compile', functools.partial(torch.compile, backend='aot_eager'))
    torch._dynamo.reset()
    train_opt['network_g'] = {**STUDENT, 'type': 'NoisyStudent'}
    states = []
    for every in (None, 1):
        model = build(train_opt, log_gradient_share=every, **changes)
        torch.manual_seed(3)
        step(model, 1, 3)
        assert bool([name for name in model.get_current_log() if name.startswith('share_')]) == bool(every)
        states.append([model.net_g.state_dict(), model.net_r.state_dict(), model.training_state(), torch.rand(3)])
    assert_same(*states)


def test_of_a_student_alone_there_is_one_share(build, train_opt):
    model = build(changed(alone(train_opt), 'train.log_gradient_share', 1))
    step(model)
    assert model.get_current_log()['share_pix'] == 1
