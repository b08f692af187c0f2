import pytest
import torch
from states import images, random_state
from torch.nn import functional as F  # noqa: N812

from facd_basicsr.losses import DistillState, build_loss
from facd_basicsr.losses.image import image_loss
from facd_basicsr.losses.teacher_supervision_loss import TeacherSupervisionLoss, supervision


def test_it_equals_a_value_worked_by_hand():
    student, teacher, gt = images(0.6, 0.9), images(0.8, 0.6), images(0.5, 0.5)
    # to GT 0.1 and 0.4, to the teacher 0.2 and 0.3: (0.25 + 0.25) / 2
    state = DistillState(student, teacher, gt, gt, (), ())
    assert supervision(state).item() == pytest.approx(0.25)
    assert TeacherSupervisionLoss()(state)['l_sr'].item() == pytest.approx(255 * 0.25)


def test_it_is_fakds_ds_and_ts_with_alpha_one_half_in_value_and_gradient():
    # code/loss.py: (1 - alpha) * L1Loss(student, hr) + alpha * L1Loss(student, teacher)
    state = random_state()
    ours = supervision(state)
    theirs = 0.5 * F.l1_loss(state.student, state.gt) + 0.5 * F.l1_loss(state.student, state.teacher)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, state.student), torch.autograd.grad(theirs, state.student))


def test_it_is_equation_2_with_every_sample_distilled():
    state = random_state()
    every = torch.ones(4, dtype=torch.float64)
    assert torch.equal(supervision(state), image_loss(state.student, state.teacher, state.gt, every))


def test_module_equals_function():
    state = random_state()
    assert build_loss({'type': 'TeacherSupervisionLoss', 'img_range': 1})(state) == {'l_sr': supervision(state)}


def test_features_are_not_read():
    state = random_state()
    loss = TeacherSupervisionLoss()
    assert not loss.reads_features
    loss(state)['l_sr'].backward()
    assert all(feat.grad is None for feat in state.student_feats)
