import pytest
import torch
from torch import nn

from facd_basicsr.archs import DeepRegressor
from facd_basicsr.distill.regressors import build_regressors, in_other_units, rms, start_regressors
from facd_basicsr.errors import UserError

OPT = {'type': 'DeepRegressor'}


def feats(*widths: int, size: int = 4) -> list[torch.Tensor]:
    return [torch.rand(2, width, size, size) for width in widths]


def kinds(mode: str, student: list[torch.Tensor], teacher: list[torch.Tensor]) -> list[type]:
    return [type(regressor) for regressor in build_regressors(OPT, mode, student, teacher)]


def test_always_gives_every_tap_a_regressor():
    assert kinds('always', feats(4, 6), feats(6, 6)) == [DeepRegressor, DeepRegressor]


def test_auto_leaves_equal_widths_alone():
    assert kinds('auto', feats(4, 6), feats(6, 6)) == [DeepRegressor, nn.Identity]


def test_features_come_out_in_the_teachers_shapes():
    student, teacher = feats(4, 6, 3), feats(6, 6, 8)
    out = build_regressors(OPT, 'auto', student, teacher)(student)
    assert [f.shape for f in out] == [f.shape for f in teacher]
    assert out[1] is student[1]


def test_never_with_equal_widths_needs_no_network():
    assert build_regressors(None, 'never', feats(6, 6), feats(6, 6)) is None


@pytest.mark.parametrize(
    ('opt', 'mode', 'student', 'teacher', 'message'),
    [
        (None, 'always', feats(6), feats(6), r'network_r: missing; accepted: {type: DeepRegressor}'),
        (OPT, 'never', feats(6), feats(6), r'network_r: no tap needs it, for the loss asks for regressors at no tap'),
        (
            {'type': 'EDSR', 'upscale': 2},
            'always',
            feats(4),
            feats(6),
            r'network_r.type: EDSR does not run on features',
        ),
        ({'type': 'EDSR', 'upscale': 2}, 'always', feats(3), feats(3), r'network_r.type: EDSR gives \(2, 3, 8, 8\)'),
        (OPT, 'always', feats(6, 6), [*feats(6), *feats(6, size=8)], r'taps\[1\]: .*\(4, 4\).*\(8, 8\).*equal size'),
    ],
)
def test_taps_that_do_not_fit_are_refused(opt, mode, student, teacher, message):
    with pytest.raises(UserError, match=message):
        build_regressors(opt, mode, student, teacher)


def test_the_rms_of_features_equals_a_value_worked_by_hand():
    student, teacher = torch.tensor([3.0, -4.0]), torch.tensor([1.0, 7.0])
    found = rms([student.view(2, 1, 1, 1)] * 2, [teacher.view(2, 1, 1, 1), student.view(2, 1, 1, 1)])
    assert found.flatten().tolist() == pytest.approx([12.5**0.5, 5, 12.5**0.5, 12.5**0.5])


def test_features_of_half_precision_do_not_overflow():
    assert rms([torch.full((1, 1, 2, 2), 300.0).half()], [torch.ones(1, 1, 2, 2)]).tolist() == [[300, 1]]


@pytest.mark.parametrize(('student', 'teacher', 'differ'), [(1, 29, False), (1, 31, True), (31, 1, True), (0, 1, True)])
def test_units_are_others_when_the_rms_differ_by_more_than_thirty(student, teacher, differ):
    assert in_other_units(student, teacher) == differ


def test_a_regressor_that_is_started_sees_the_students_features_in_the_teachers_units():
    student, (teacher,) = feats(4), feats(6)
    regressors = build_regressors(OPT, 'always', student, [teacher])
    in_equal_units = regressors([student[0] * 250])[0]
    # the teacher's RMS is 250 times the student's
    (line,) = start_regressors(regressors, 'first_batch', student, [250 * teacher * rms(student, [teacher])[0][0] /
        rms(student, [teacher])[0][1]])  # fmt: skip
    torch.testing.assert_close(regressors(student)[0], in_equal_units)
    assert line.startswith('taps[0]: RMS of features ') and 'multiplied by 250 (train.init_r: first_batch)' in line


@pytest.mark.parametrize('last_act', [False, True])
@pytest.mark.parametrize('num_layer', [1, 5])
def test_only_the_first_layers_weight_is_changed_whatever_the_layers(num_layer, last_act):
    opt = {**OPT, 'num_layer': num_layer, 'last_act': last_act}
    student, teacher = feats(4), [feats(6)[0] * 100]
    regressors = build_regressors(opt, 'always', student, teacher)
    before = {key: value.clone() for key, value in regressors.state_dict().items()}
    start_regressors(regressors, 'auto', student, teacher)
    changed = {key for key, value in regressors.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {'0.0.weight'}


@pytest.mark.parametrize('times', [0, 1 / 100, 1 / 20, 1, 20, float('inf'), float('nan')])
def test_by_default_not_a_bit_changes_of_regressors_of_equal_units_larger_students_or_broken_features(times):
    student, teacher = feats(4), [feats(6)[0] * times]
    regressors = build_regressors(OPT, 'always', student, teacher)
    before = {key: value.clone() for key, value in regressors.state_dict().items()}
    assert start_regressors(regressors, 'auto', student, teacher) == []
    assert all(torch.equal(value, before[key]) for key, value in regressors.state_dict().items())


def test_taps_without_regressor_a_dead_student_and_foreign_regressors_are_left_alone():
    student, teacher = [*feats(6), torch.zeros(2, 4, 4, 4)], [feat * 100 for feat in feats(6, 6)]
    regressors = build_regressors(OPT, 'auto', student, teacher)
    assert start_regressors(regressors, 'first_batch', student, teacher) == []
    foreign = nn.ModuleList([nn.Conv2d(4, 6, 1)])
    assert start_regressors(foreign, 'first_batch', feats(4), [feats(6)[0] * 100]) == []
