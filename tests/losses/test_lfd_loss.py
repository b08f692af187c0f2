import pytest
import torch
from states import images, random_state

from facd_basicsr.losses import DistillState
from facd_basicsr.losses.fitnet_loss import FitNetLoss
from facd_basicsr.losses.lfd_loss import LFDLoss
from facd_basicsr.losses.teacher_supervision_loss import supervision


def images_of(state: DistillState) -> tuple[torch.Tensor, ...]:
    return state.student, state.teacher, state.gt, state.lq


def test_terms_equal_values_worked_by_hand():
    image = images(0.5, 0.5)
    state = DistillState(
        images(0.7, 0.5), image, image, image, (images(1, 4), images(0, 0)), (images(2, 10), images(1, 2))
    )
    logs = LFDLoss(lambda_=3, layer_weights=(0.5, 2))(state)
    assert logs['l_lfd'].item() == 3 * (0.5 * (1 + 6) / 2 + 2 * (1 + 2) / 2)
    assert logs['l_sr'].item() == pytest.approx(255 * 0.1)


def test_a_position_answers_for_the_same_position_of_the_teacher_alone():
    state = random_state()
    feat = state.student_feats[0]
    moved = state.teacher_feats[0].clone()
    moved[:, :, 1, 2] += 10
    before, after = (
        torch.autograd.grad(LFDLoss(1, [1.0])(DistillState(*images_of(state), (feat,), (t,)))['l_lfd'], feat)[0]
        for t in (state.teacher_feats[0], moved)
    )
    changed = (before != after).any(1).any(0)  # (H, W)
    assert changed.nonzero().tolist() == [[1, 2]]


def test_it_equals_its_transcription_in_value_and_gradient():
    state = random_state()
    ours = LFDLoss(layer_weights=(0.5, 1, 2))(state)['l_lfd']
    l1 = torch.nn.functional.l1_loss
    theirs = sum(w * l1(s, t) for w, s, t in zip((0.5, 1, 2), state.student_feats, state.teacher_feats))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours, state.student_feats), torch.autograd.grad(theirs, state.student_feats)
    )


def test_it_is_fitnet_by_l1_but_for_the_regressors():
    state = random_state()
    torch.testing.assert_close([*LFDLoss()(state).values()], [*FitNetLoss()(state).values()])
    assert LFDLoss().regressor == 'auto'


def test_the_image_loss_is_teacher_supervision():
    state = random_state()
    assert torch.equal(LFDLoss(img_range=1)(state)['l_sr'], supervision(state))
