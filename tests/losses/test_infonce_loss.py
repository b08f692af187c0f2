import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from states import images, random_state

from facd_basicsr.losses import DistillState
from facd_basicsr.losses.image import indicator
from facd_basicsr.losses.infonce_loss import InfoNCELoss, infonce
from facd_basicsr.losses.teacher_supervision_loss import supervision


def literal(s: torch.Tensor, t: torch.Tensor, alpha: torch.Tensor, temperature: float) -> torch.Tensor:
    """mean_i -alpha_i log(exp(s_ii) / sum_k exp(s_ik)), one sample and one exponential at a time."""

    def similarity(i: int, k: int) -> torch.Tensor:
        return (s[i] * t[k]).sum() / ((s[i] ** 2).sum().sqrt() * (t[k] ** 2).sum().sqrt()) / temperature

    n = len(s)
    terms = [
        -alpha[i] * (similarity(i, i).exp() / sum(similarity(i, k).exp() for k in range(n))).log() for i in range(n)
    ]
    return sum(terms) / n


def pairs(*vectors: tuple[float, float]) -> torch.Tensor:
    """Features of one channel and two positions: (N, 1, 1, 2)."""
    return torch.tensor(vectors, dtype=torch.float64)[:, None, None]


@pytest.mark.parametrize(
    ('alpha', 'temperature', 'value'),
    [
        # cos(s_1, t_1) = cos(s_2, t_2) = 1, the others 0: -log(e / (e + 1)) each
        ((1, 1), 1.0, math.log(1 + math.exp(-1))),
        ((0, 1), 1.0, math.log(1 + math.exp(-1)) / 2),
        ((1, 1), 0.5, math.log(1 + math.exp(-2))),
    ],
)
def test_it_equals_a_value_worked_by_hand(alpha, temperature, value):
    s, t = pairs((3, 0), (0, 1)), pairs((1, 0), (0, 5))
    assert infonce(s, t, torch.tensor(alpha), temperature).item() == pytest.approx(value)


def test_it_is_the_log_of_the_number_of_samples_where_nothing_is_told_apart():
    s, t = random_state(n=5).student_feats[0], torch.ones(5, 2, 3, 3, dtype=torch.float64)
    assert infonce(s, t, torch.ones(5)).item() == pytest.approx(math.log(5))


@settings(deadline=None, max_examples=30)
@given(n=st.integers(2, 5), temperature=st.floats(0.05, 2), seed=st.integers(0, 2**31))
def test_it_equals_its_transcription_in_value_and_gradient(n, temperature, seed):
    generator = torch.Generator().manual_seed(seed)
    s = torch.randn(n, 2, 2, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    t = torch.randn(n, 2, 2, 2, generator=generator, dtype=torch.float64)
    alpha = torch.randint(0, 2, (n,), generator=generator).double()
    ours, theirs = infonce(s, t, alpha, temperature), literal(s, t, alpha, temperature)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(torch.autograd.grad(ours, s), torch.autograd.grad(theirs, s), rtol=1e-5, atol=1e-9)


def test_the_length_of_features_does_not_matter():
    state = random_state()
    s, t, alpha = state.student_feats[0], state.teacher_feats[0], torch.ones(4)
    torch.testing.assert_close(infonce(200 * s, 0.1 * t, alpha), infonce(s, t, alpha))


def test_a_small_temperature_does_not_overflow():
    state = random_state(dtype=torch.float32)
    value = infonce(state.student_feats[0], state.teacher_feats[0], torch.ones(4), temperature=1e-4)
    assert torch.isfinite(value) and torch.isfinite(torch.autograd.grad(value, state.student_feats[0])[0]).all()


def test_terms_equal_values_worked_by_hand():
    image = images(0.5, 0.5).double()
    s, t = pairs((3, 0), (0, 1)), pairs((1, 0), (0, 5))
    state = DistillState(images(0.7, 0.5).double(), image, image, image, (s, s), (t, t.flip(0)))
    logs = InfoNCELoss(lambda_=3, layer_weights=(0.6, 0.4), temperature=1.0)(state)
    # in the second tap each sample is like the other's teacher: -log(1 / (1 + e))
    expected = 0.6 * math.log(1 + math.exp(-1)) + 0.4 * math.log(1 + math.e)
    assert logs['l_infonce'].item() == pytest.approx(3 * expected)
    assert logs['l_sr'].item() == pytest.approx(255 * 0.1)
    assert logs['alpha'].item() == 1


def test_table_6_compares_without_adaption_which_can_be_had():
    state = random_state(seed=3)
    alpha = indicator(state.student, state.teacher, state.gt)
    assert not InfoNCELoss().adaptive
    assert torch.equal(InfoNCELoss(img_range=1)(state)['l_sr'], supervision(state))
    adaptive = InfoNCELoss(1, (1.0, 0.0, 0.0), adaptive=True)(state)
    assert adaptive['alpha'] == alpha.mean() < 1
    torch.testing.assert_close(
        adaptive['l_infonce'], infonce(state.student_feats[0], state.teacher_feats[0], alpha, 0.07)
    )


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ValueError, match=r'train.distill_opt.temperature: 0; accepted: more than 0'):
        InfoNCELoss(temperature=0)
