import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from states import images, random_state

from facd_basicsr.losses import DistillState
from facd_basicsr.losses.fitnet_loss import FitNetLoss, hint_loss
from facd_basicsr.losses.teacher_supervision_loss import supervision


def equation_3(regressed: torch.Tensor, hint: torch.Tensor, distance: str) -> torch.Tensor:
    """Equation (3) of FitNets, 1/2 ||u_h - r(v_g)||^2, or its L1, entry by entry, over their number."""
    entries = [
        abs(s - t) if distance == 'l1' else (s - t) ** 2 / 2 for s, t in zip(regressed.flatten(), hint.flatten())
    ]
    return sum(entries) / len(entries)


@pytest.mark.parametrize(('distance', 'value'), [('l1', (1 + 6) / 2), ('l2', (1 + 36) / 4)])
def test_the_hint_equals_a_value_worked_by_hand(distance, value):
    assert hint_loss(images(1, 4), images(2, 10), distance).item() == value


def test_terms_equal_values_worked_by_hand():
    image = images(0.5, 0.5)
    state = DistillState(
        images(0.7, 0.5), image, image, image, (images(1, 4), images(0, 0)), (images(2, 10), images(1, 2))
    )
    logs = FitNetLoss(lambda_=3, layer_weights=(0.5, 2))(state)
    assert logs['l_fitnet'].item() == 3 * (0.5 * 3.5 + 2 * 1.5)
    assert logs['l_sr'].item() == pytest.approx(255 * 0.1)


@settings(deadline=None, max_examples=20)
@given(distance=st.sampled_from(['l1', 'l2']), n=st.integers(1, 3), c=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_the_hint_equals_its_transcription_in_value_and_gradient(distance, n, c, seed):
    generator = torch.Generator().manual_seed(seed)
    s = torch.randn(n, c, 2, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    t = torch.randn(n, c, 2, 2, generator=generator, dtype=torch.float64)
    ours, theirs = hint_loss(s, t, distance), equation_3(s, t, distance)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, s), torch.autograd.grad(theirs, s))


def test_gradcheck_of_the_original_distance():
    s, t = random_state(n=2).student_feats[0], random_state(n=2).teacher_feats[0]
    assert torch.autograd.gradcheck(lambda s: hint_loss(s, t, 'l2'), s)


def test_squares_of_half_precision_features_do_not_overflow():
    s = torch.full((1, 2, 3, 3), 300.0, dtype=torch.float16)
    assert hint_loss(s, torch.zeros_like(s), 'l2').item() == 300**2 / 2


def test_the_image_loss_is_teacher_supervision():
    state = random_state()
    assert torch.equal(FitNetLoss(img_range=1)(state)['l_sr'], supervision(state))


def test_every_tap_has_a_regressor_by_default():
    assert FitNetLoss().regressor == 'always' and FitNetLoss().compares_channels
