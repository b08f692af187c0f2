import pytest
import torch
from torch import nn

from facd_basicsr.archs import DeepRegressor
from facd_basicsr.distill.regressors import build_regressors
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
        (None, 'never', feats(4), feats(6), r'regressor: never, but taps\[0\] has 4 channels in the student and 6'),
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
