import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from states import images, random_state

from facd_basicsr.losses import DistillState, FACDLoss
from facd_basicsr.losses.iacd_loss import IACDLoss
from facd_basicsr.losses.image import indicator


def equation_4_on_images(state: DistillState) -> torch.Tensor:
    """L_SR + 4 L_IACD, sum by sum, on images in [0, 255] of which each norm is a mean."""
    s, t, gt = (255 * x.flatten(1) for x in (state.student, state.teacher, state.gt))
    n = len(s)
    alpha = [0.0 if (s[i] - gt[i]).abs().sum() < (t[i] - gt[i]).abs().sum() else 1.0 for i in range(n)]
    l_sr = sum((2 - alpha[i]) * (s[i] - gt[i]).abs().mean() + alpha[i] * (s[i] - t[i]).abs().mean() for i in range(n))
    d_pos = sum(alpha[i] * (s[i] - t[i]).abs().mean() for i in range(n))
    d_neg = sum((s[i] - t[k]).abs().mean() for i in range(n) for k in range(i + 1, n))
    return l_sr / (2 * n) + 4 * d_pos / d_neg


@pytest.mark.parametrize(
    ('gt', 'alpha', 'l_sr', 'l_iacd'),
    [
        # student 1 and 4, teacher 2 and 10: d11 = 1, d22 = 6, d12 = 9
        ((3, 10), 1.0, ((2 + 1) + (6 + 6)) / 4, (1 + 6) / 9),  # the teacher is closer to GT in both
        ((1, 10), 0.5, ((2 * 0 + 0) + (6 + 6)) / 4, 6 / 9),  # the student is right in the first
    ],
)
def test_it_equals_a_value_worked_by_hand(gt, alpha, l_sr, l_iacd):
    state = DistillState(images(1, 4), images(2, 10), images(*gt), images(0, 0), (), ())
    logs = IACDLoss(lambda_=3, img_range=2)(state)
    assert logs['alpha'].item() == alpha
    assert logs['l_sr'].item() == pytest.approx(2 * l_sr)
    assert logs['l_iacd'].item() == pytest.approx(3 * l_iacd)
    assert logs['r'].item() == pytest.approx(3.5 / 9)


@settings(deadline=None, max_examples=20)
@given(n=st.integers(2, 5), seed=st.integers(0, 2**31))
def test_it_equals_its_transcription_in_value_and_gradient(n, seed):
    state = random_state(n=n, seed=seed)
    logs = IACDLoss()(state)
    ours, theirs = logs['l_sr'] + logs['l_iacd'], equation_4_on_images(state)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, state.student), torch.autograd.grad(theirs, state.student))


@pytest.mark.parametrize('negatives', ['upper', 'all', 'per_anchor'])
def test_it_is_facd_with_images_for_features(negatives):
    state = random_state()
    as_feature = DistillState(state.student, state.teacher, state.gt, state.lq, (state.student,), (state.teacher,))
    image, feature = IACDLoss(negatives=negatives)(state), FACDLoss(4, [1.0], negatives=negatives)(as_feature)
    torch.testing.assert_close([*image.values()], [feature[name] for name in ('l_sr', 'l_facd', 'alpha', 'r_1')])


def test_without_adaption_every_sample_is_distilled():
    state = random_state(seed=3)
    assert indicator(state.student, state.teacher, state.gt).mean() < 1
    assert IACDLoss(adaptive=False)(state)['alpha'] == 1
    assert IACDLoss(adaptive=False)(state)['l_iacd'] > IACDLoss()(state)['l_iacd']


def test_stop_gradient_leaves_the_value_and_changes_the_gradient():
    state = random_state()
    full, stopped = (IACDLoss(stop_gradient=stop)(state)['l_iacd'] for stop in (False, True))
    assert full.item() == stopped.item()
    (full_grad,), (stopped_grad,) = (torch.autograd.grad(value, state.student) for value in (full, stopped))
    assert not torch.allclose(full_grad, stopped_grad)


def test_it_takes_images_alone():
    assert not IACDLoss.reads_features and IACDLoss.min_batch == 2
