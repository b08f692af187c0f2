from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from states import random_state

from facd_basicsr.losses import DistillState
from facd_basicsr.losses.fitnet_loss import hint_loss
from facd_basicsr.losses.lfd_loss import LFDLoss
from facd_basicsr.losses.lsfd_loss import LSFDLoss, attention
from facd_basicsr.losses.teacher_supervision_loss import supervision


def literal(state: DistillState, scale: int) -> torch.Tensor:
    """The term of all taps, each of LQ's size, with lambda and weights 1, position by position."""
    n, _, height, width = state.lq.shape
    total = 0
    for s, t in zip(state.student_feats, state.teacher_feats):
        for i in range(n):
            weight = torch.zeros(height, width, dtype=s.dtype)
            for y in range(scale * height):
                for x in range(scale * width):
                    pixel = state.student[i, :, y, x] - state.teacher[i, :, y, x]
                    weight[y // scale, x // scale] += pixel.detach().abs().sum()
            weight = weight / (weight.sum() / (height * width))
            distance = sum(
                weight[y, x] * (s[i, c, y, x] - t[i, c, y, x]).abs()
                for c in range(s.shape[1])
                for y in range(height)
                for x in range(width)
            )
            total = total + distance / s[0].numel() / n
    return total


def on_lq_grid(state: DistillState) -> DistillState:
    """Features as large as LQ, 2 x 2."""
    return replace(
        state,
        student_feats=tuple(feat[..., :2, :2] for feat in state.student_feats),
        teacher_feats=tuple(feat[..., :2, :2] for feat in state.teacher_feats),
    )


def test_attention_equals_a_value_worked_by_hand():
    teacher = torch.zeros(1, 1, 2, 4)
    student = torch.tensor([[[[0.3, 0.1, 0.0, 0.2], [-0.1, 0.1, 0.0, 0.0]]]])
    # x2: two positions, whose pixels differ by 0.15 and 0.05 on average; their mean is 0.1
    torch.testing.assert_close(attention(student, teacher, (1, 2)), torch.tensor([[[[1.5, 0.5]]]]))


def test_terms_equal_values_worked_by_hand():
    teacher = torch.zeros(1, 1, 2, 4)
    student = torch.tensor([[[[0.3, 0.1, 0.0, 0.2], [-0.1, 0.1, 0.0, 0.0]]]])
    feats = torch.tensor([[[[1.0, 4.0]]]]), torch.tensor([[[[2.0, 10.0]]]])
    logs = LSFDLoss(3, [0.5])(DistillState(student, teacher, teacher, teacher[..., :1, :2], *((f,) for f in feats)))
    assert logs['l_lsfd'].item() == pytest.approx(3 * 0.5 * (1.5 * 1 + 0.5 * 6) / 2)
    assert logs['l_sr'].item() == pytest.approx(255 * 0.1)


@settings(deadline=None, max_examples=10)
@given(n=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_it_equals_its_transcription_in_value_and_gradient(n, seed):
    state = on_lq_grid(random_state(n=n, taps=2, seed=seed))
    ours, theirs = LSFDLoss(layer_weights=(1, 1))(state)['l_lsfd'], literal(state, scale=2)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(ours, state.student_feats),
        torch.autograd.grad(theirs, state.student_feats),
        rtol=1e-6,
        atol=1e-12,
    )


@pytest.mark.parametrize('size', [(2, 2), (4, 4), (3, 3), (8, 8)])
def test_attention_has_mean_one_in_each_sample_whatever_the_features_size(size):
    state = random_state()
    weight = attention(state.student, state.teacher, size)
    assert weight.shape == (4, 1, *size) and not weight.requires_grad and (weight >= 0).all()
    torch.testing.assert_close(weight.mean((1, 2, 3)), torch.ones(4, dtype=torch.float64))


def test_where_student_and_teacher_agree_everywhere_it_is_lfd():
    state = random_state()
    agreeing = replace(state, student=state.teacher.clone().requires_grad_())
    assert torch.equal(attention(agreeing.student, agreeing.teacher, (3, 3)), torch.ones(4, 1, 3, 3).double())
    torch.testing.assert_close(LSFDLoss()(agreeing)['l_lsfd'], LFDLoss()(agreeing)['l_lfd'])


def test_attention_gives_the_students_output_no_gradient():
    state = random_state()
    assert torch.autograd.grad(LSFDLoss()(state)['l_lsfd'], state.student, allow_unused=True) == (None,)


def test_gradcheck():
    state = random_state(n=2)
    weight = attention(state.student, state.teacher, (3, 3))
    s, t = state.student_feats[0], state.teacher_feats[0]
    assert torch.autograd.gradcheck(lambda s: hint_loss(s, t, weight=weight), s)


def test_the_image_loss_is_teacher_supervision_and_regressors_are_where_widths_differ():
    state = random_state()
    assert torch.equal(LSFDLoss(img_range=1)(state)['l_sr'], supervision(state))
    assert LSFDLoss().regressor == 'auto'
