import math

import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from conftest import STUDENT, TEACHER, with_two_teachers
from torch import nn

from facd_basicsr.evaluation.feature_psnr import feature_psnr, feature_scores, tap_features
from facd_basicsr.evaluation.methods import Method
from facd_basicsr.evaluation.tables import evaluate, feature_table, means
from facd_basicsr.evaluation.test_sets import ImagePair


def method(name: str, network_opt: dict, checkpoint: str = '') -> Method:
    torch.manual_seed(0)
    return Method(name, 2, build_network(network_opt).eval(), 'a.yml', checkpoint)


def test_feature_psnr_equals_a_value_worked_by_hand():
    student, teacher = torch.zeros(1, 2, 1, 2), torch.tensor([3.0, 4.0, 0.0, 5.0]).view(1, 2, 1, 2)
    assert feature_psnr(student, teacher) == pytest.approx(10 * math.log10(255**2 / ((9 + 16 + 25) / 4)))
    assert feature_psnr(teacher, teacher) == math.inf


def test_the_mean_is_over_points_of_psnrs_not_of_errors():
    zero = torch.zeros(1, 1, 1, 1)
    scores = feature_scores([zero, zero], [zero + 255, zero + 25.5])
    assert scores == pytest.approx({'feature_psnr_1': 0, 'feature_psnr_2': 20, 'feature_psnr': 10})


def test_the_features_of_a_network_that_pads_its_input_are_cropped():
    feat = torch.rand(1, 2, 5, 6)
    padded = torch.full((1, 2, 8, 8), 100.0)
    padded[:, :, :5, :6] = feat + 25.5
    low, wide = padded[..., :6] - 25.5, padded[..., :5, :]  # one pads its height, the other its width
    for student, teacher in ((feat, padded), (padded, feat), (low, wide)):
        assert feature_scores([student], [teacher])['feature_psnr'] == pytest.approx(20)


def test_a_students_features_pass_through_the_regressors_beside_its_checkpoint(train_opt, tmp_path):
    student, teacher = method('s', STUDENT, str(tmp_path / 'net_g_4.pth')), method('teacher', TEACHER)
    regressor = {'type': 'DeepRegressor', 'num_in_ch': 4, 'num_out_ch': 6}
    regressors = nn.ModuleList(build_network(regressor) for _ in range(3))
    for parameter in regressors.parameters():
        nn.init.constant_(parameter, 0)
    for net in regressors:
        nn.init.constant_(net[-1].bias, 7)
    torch.save({'params': regressors.state_dict()}, tmp_path / 'net_r_4.pth')
    assert tap_features(train_opt, [teacher], [student]) == []
    _, feats = student.upscale_with_features(torch.zeros(8, 8, 3, dtype=torch.uint8).numpy())
    assert [tuple(feat.shape) for feat in feats] == [(1, 6, 8, 8)] * 3
    assert all((feat == 7).all() for feat in feats)


def test_a_student_is_compared_with_each_of_two_teachers_at_its_own_taps(train_opt, tmp_path):
    """The student is the first teacher's network with the same weights; the second is of other weights."""
    opt = with_two_teachers(train_opt)
    opt['teacher'][1]['network'] = TEACHER
    opt['train']['distill_opt']['regressor'] = 'auto'
    del opt['network_r']
    same, other = method('teacher 1', TEACHER), method('teacher 2', TEACHER)
    with torch.no_grad():
        other.net.conv_first.weight.mul_(2)
    student = method('s', TEACHER, str(tmp_path / 'net_g_4.pth'))
    assert tap_features(opt, [same, other], [student]) == []
    lq = np.full((8, 8, 3), 100, np.uint8)
    image = ImagePair('set', 'image', lq, np.zeros((16, 16, 3), np.uint8))
    methods = [student, same, other]
    record = next(found for found in evaluate(methods, [image]) if found['method'] == 's')
    assert [record[f'feature_psnr_{j}'] for j in (1, 2, 3)] == [math.inf] * 3
    _, feats = student.upscale_with_features(lq)
    _, others = other.upscale_with_features(lq)
    assert [record[f'feature_psnr_{j}'] for j in (4, 5, 6)] == [feature_psnr(s, t) for s, t in zip(feats, others)]
    table = feature_table(methods, means([record, *({**record, 'method': own.name} for own in (same, other))]), 3)
    assert table.header[-4:] == ['teacher 2, point 1', 'teacher 2, point 2', 'teacher 2, point 3', 'mean']


def test_a_students_regressors_of_two_teachers_are_loaded_and_run(train_opt, tmp_path):
    opt = with_two_teachers(train_opt)
    teachers = [method('teacher 1', TEACHER), method('teacher 2', opt['teacher'][1]['network'])]
    student = method('s', STUDENT, str(tmp_path / 'net_g_4.pth'))
    regressor = {'type': 'DeepRegressor', 'num_in_ch': 4}
    regressors = nn.ModuleList(build_network({**regressor, 'num_out_ch': out}) for out in (6, 6, 6, 8, 8, 8))
    torch.save({'params': regressors.state_dict()}, tmp_path / 'net_r_4.pth')
    assert tap_features(opt, teachers, [student]) == []
    _, feats = student.upscale_with_features(np.zeros((8, 8, 3), np.uint8))
    assert [feat.shape[1] for feat in feats] == [6, 6, 6, 8, 8, 8]


def test_a_student_without_regressors_is_compared_as_it_is_where_widths_agree(train_opt, tmp_path):
    student, teacher = method('s', TEACHER, str(tmp_path / 'net_g_4.pth')), method('teacher', TEACHER)
    (note,) = tap_features(train_opt, [teacher], [student])
    assert 's: no net_r_4.pth beside' in note and 'compared as they are' in note
    assert student.taps is not None and student.regressors is None
    train_opt['train']['distill_opt']['regressor'] = 'auto'
    assert tap_features(train_opt, [method('teacher', TEACHER)], [method('s', TEACHER, student.checkpoint)]) == []


def test_a_student_that_cannot_be_compared_says_why_and_is_left_without_taps(train_opt, tmp_path):
    narrow = method('narrow', STUDENT, str(tmp_path / 'net_g_4.pth'))
    other = method('other', {'type': 'RCANStudent', 'num_feat': 16, 'num_group': 1, 'num_block': 1, 'upscale': 2})
    unfit = method('unfit', STUDENT, str(tmp_path / 'net_g_5.pth'))
    torch.save({'params': {'0.0.weight': torch.zeros(1)}}, tmp_path / 'net_r_5.pth')
    notes = tap_features(train_opt, [method('teacher', TEACHER)], [narrow, other, unfit])
    assert 'narrow: no feature PSNR: no net_r_4.pth beside' in notes[0]
    assert "other: no feature PSNR: taps[1].student: 'body.1' is not in RCANStudent" in notes[1]
    assert 'unfit: no feature PSNR: regressors:' in notes[2] and 'does not fit TapRegressors' in notes[2]
    assert narrow.taps is other.taps is unfit.taps is None
