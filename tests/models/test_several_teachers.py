"""Several teachers and none: images, features, gates, and that no network runs which no loss reads."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from basicsr.utils.registry import LOSS_REGISTRY
from conftest import MEAN, changed, train_options, with_two_teachers
from runs import assert_same
from torch import Tensor, nn

from facd_basicsr.distill.taps import Taps
from facd_basicsr.errors import UserError
from facd_basicsr.losses.base import Average, DistillLoss, View
from facd_basicsr.models import FACDModel
from facd_basicsr.models.micro_batches import Batch
from facd_basicsr.models.safe_model import build_model

GATED = {'type': 'L1Loss', 'target': 'gated', 'reduction': 'mean'}
GT = {'type': 'L1Loss', 'target': 'gt'}


@LOSS_REGISTRY.register()
@dataclass(eq=False)
class ToAverageLoss(DistillLoss):
    """To the student's average on LQ, which is a view of the average alone."""

    reads_features = False
    average = Average(0.5, 1)

    @property
    def reads(self) -> tuple[str, ...]:
        return ('student',)

    @property
    def views(self) -> dict[str, View]:
        return {'same': View(('average',), lambda state: state.lq)}

    def forward(self, state):
        return {'l_average': (state.student - state.views['same']['average']).abs().mean() + state.student.mean()}


@pytest.fixture
def build(tmp_path: Path):
    """Builds the model of an option dict as train.py does."""
    return lambda opt: build_model(train_options(opt, tmp_path))


def of_images(opt: dict, loss: dict, **train: object) -> dict:
    opt = {key: value for key, value in copy.deepcopy(opt).items() if key not in ('taps', 'network_r')}
    opt['train'] |= {'distill_opt': loss, **train}
    return opt


def batch(n: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {'lq': torch.rand(n, 3, 8, 8, generator=generator), 'gt': torch.rand(n, 3, 16, 16, generator=generator)}


def step(model: FACDModel, data: dict[str, Tensor] | None = None, iterations: int = 1) -> dict[str, float]:
    for iteration in range(1, iterations + 1):
        model.feed_data(data or batch())
        model.optimize_parameters(iteration)
    return model.get_current_log()


def always_gives(net: nn.Module, gray: float) -> None:
    """Lets an EDSR give one color: what conv_last gives is divided by 255, and then the mean is added."""
    with torch.no_grad():
        net.conv_last.weight.zero_()
        net.conv_last.bias.copy_(255 * (gray - torch.tensor(MEAN)))


@pytest.mark.parametrize(
    ('target', 'l_sr', 'taught'),
    [
        # |S - GT| is 0.4, 0.08, 0.04. The mean, 0.4, is 0.3, 0.18, 0.06 from GT, so alpha is 1, 0, 0
        ('mean', (0.4 + 0.1 + 2 * 0.08 + 2 * 0.04) / 6, {}),
        # The nearest are 0.2, 0.6 and 0.6, by 0.1, 0.02 and 0.14, so alpha is 1, 1, 0
        ('nearest', (0.4 + 0.3 + 0.08 + 0.1 + 2 * 0.04) / 6, {'teacher_1': 1 / 3, 'teacher_2': 2 / 3}),
    ],
)
def test_two_teachers_have_the_value_worked_by_hand(build, train_opt, target, l_sr, taught):
    model = build(of_images(with_two_teachers(train_opt), GATED, teacher_target=target))
    for net, gray in [(model.net_g, 0.5), (model.teachers[0].net, 0.2), (model.teachers[1].net, 0.6)]:
        always_gives(net, gray)
    gt = torch.tensor([0.1, 0.58, 0.46]).view(3, 1, 1, 1).expand(3, 3, 16, 16)
    log = step(model, {'lq': torch.rand(3, 3, 8, 8), 'gt': gt})
    assert log == pytest.approx({'l_sr': l_sr, **taught}, abs=1e-6)


@pytest.mark.parametrize(('target', 'labels'), [('mean', [0.4] * 6), ('nearest', [0.2, 0.2, 0.6, 0.6, 0.6, 0.6])])
def test_a_samples_crops_are_labeled_by_the_teacher_of_the_sample(build, train_opt, target, labels):
    dukd = {'type': 'DUKDLoss', 'crops': 2}
    model = build(of_images(with_two_teachers(train_opt), dukd, teacher_target=target))
    for teacher, gray in zip(model.teachers, (0.2, 0.6)):
        always_gives(teacher.net, gray)
    gt = torch.tensor([0.1, 0.58, 0.46]).view(3, 1, 1, 1).expand(3, 3, 16, 16)
    state = model.distill_state(Batch(torch.rand(3, 3, 8, 8), gt, (1, 2, 3)))
    expected = torch.tensor(labels).view(6, 1, 1, 1).expand(6, 3, 16, 16)
    torch.testing.assert_close(state.views['zoom_in']['teacher'], expected)


def test_features_of_each_teacher_are_of_its_own_taps_and_their_terms_are_averaged(build, train_opt):
    model = build(with_two_teachers(train_opt))
    state = model.distill_state(Batch(**batch()))
    paths = [['body.0', 'body.1', 'upsample:input'], ['body.1', 'body.2', 'upsample:input']]
    expected: list[Tensor] = []
    for teacher, own in zip(model.teachers, paths):
        expected += Taps(teacher.net, own, 'teacher').run(teacher, batch()['lq'])[1]
    assert_same(list(state.teacher_feats), expected)
    assert [feat.shape[1] for feat in state.teacher_feats] == [6, 6, 6, 8, 8, 8]
    assert [feat.shape[1] for feat in state.regressed_feats] == [6, 6, 6, 8, 8, 8]  # of regressors of their own
    found = model.criterion(state)
    model.criterion.teachers = 1
    alone = [
        model.criterion(
            replace(state, teacher_feats=state.teacher_feats[own], regressed_feats=state.regressed_feats[own])
        )
        for own in (slice(3), slice(3, 6))
    ]
    for key in ('l_facd', 'r_1', 'r_2', 'r_3'):
        torch.testing.assert_close(found[key], (alone[0][key] + alone[1][key]) / 2)
    assert alone[0]['l_facd'] != alone[1]['l_facd'] and alone[0]['l_sr'] == alone[1]['l_sr'] == found['l_sr']


def test_gradient_reaches_the_regressors_of_both_teachers_and_no_teacher(build, train_opt):
    train_opt['train']['distill_opt']['adaptive'] = False
    model = build(with_two_teachers(train_opt))
    step(model)
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.net_r.parameters())
    assert not any(parameter.requires_grad for teacher in model.teachers for parameter in teacher.parameters())


@pytest.mark.parametrize('target', ['mean', 'nearest'])
def test_one_teacher_in_a_list_gives_the_bits_of_one_as_a_block(build, train_opt, target):
    opt = copy.deepcopy(train_opt)
    opt['teacher'] = [opt['teacher']]
    for tap in opt['taps']:
        tap['teacher'] = [tap['teacher']]
    opt['train']['teacher_target'] = target
    one, listed = build(train_opt), build(opt)
    logs = [step(model, iterations=2) for model in (one, listed)]
    assert logs[0] == logs[1]
    for name in ('net_g', 'net_r'):
        assert_same(getattr(listed, name).state_dict(), getattr(one, name).state_dict())


@pytest.mark.parametrize(
    ('loss', 'expected'),
    [
        (GT, {'student': 1, 'teacher 1': 0, 'teacher 2': 0}),
        ({'type': 'TeacherSupervisionLoss'}, {'student': 1, 'teacher 1': 1, 'teacher 2': 1}),
        ({'type': 'FACDLoss'}, {'student': 1, 'teacher 1': 1, 'teacher 2': 1}),
        ({'type': 'ToAverageLoss'}, {'student': 1, 'teacher 1': 0, 'teacher 2': 0, 'average': 1}),
    ],
)
def test_no_network_runs_that_no_loss_reads(build, train_opt, loss, expected):
    opt = with_two_teachers(train_opt)
    opt['train']['distill_opt'] = loss
    model = build(opt if loss['type'] == 'FACDLoss' else of_images(opt, loss))
    nets = {'student': model.net_g, 'teacher 1': model.teachers[0], 'teacher 2': model.teachers[1]}
    nets |= {'average': model.net_average} if 'average' in expected else {}
    found = dict.fromkeys(expected, 0)

    def count(name: str) -> None:
        found[name] += 1

    for name, net in nets.items():
        net.register_forward_hook(lambda *_, name=name: count(name))
    step(model)
    assert found == expected
    assert ('net_average' in dir(model)) == ('average' in expected)  # nor built


def test_a_loss_that_reads_no_teacher_trains_without_one(build, train_opt):
    opt = of_images(train_opt, GT)
    del opt['teacher']
    model = build(opt)
    before = copy.deepcopy(model.net_g.state_dict())
    assert model.teachers == [] and step(model).keys() == {'l_sr'}
    assert any(not torch.equal(value, before[key]) for key, value in model.net_g.state_dict().items())


@pytest.mark.parametrize(
    ('place', 'value', 'message'),
    [
        ('teacher.1.network', {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'upscale': 2},
         r'^teacher\[1\]\.weights: \S+wide\.pth does not fit EDSR'),
        ('taps.0.teacher.1', 'body.7',
         r"^taps\[0\]\.teacher\[1\]: 'body\.7' is not in EDSR; .* facd check --modules teacher$"),
        ('taps.2.teacher', ['upsample:input', 'upsample'],
         r"^taps\[2\] of teacher\[1\]: the student's feature is \(8, 8\) and the teacher's \(16, 16\)"),
        ('train.distill_opt', {'type': 'FACDLoss', 'regressor': 'never'},
         r'^train\.distill_opt\.regressor: never, but taps\[0\] of teacher\[0\] has 4 channels in the student and 6'),
    ],
)  # fmt: skip
def test_what_is_wrong_with_one_of_two_teachers_is_said_of_that_one(build, train_opt, place, value, message):
    opt = changed(with_two_teachers(train_opt), place, value)
    if place.endswith('distill_opt'):
        del opt['network_r']
    with pytest.raises(UserError, match=message):
        build(opt)
