from dataclasses import replace

import pytest
import torch
from basicsr.utils.registry import LOSS_REGISTRY
from hypothesis import given, settings
from hypothesis import strategies as st
from states import images, random_state, with_student

from facd_basicsr.errors import UserError
from facd_basicsr.losses import DistillState, FACDLoss, build_loss
from facd_basicsr.losses.contrastive import contrastive_loss
from facd_basicsr.losses.image import image_loss, indicator


def equation_3(s: torch.Tensor, t: torch.Tensor, alpha: torch.Tensor, negatives: str) -> torch.Tensor:
    """Equation (3) for one tap, transcribed sum by sum."""
    n = len(s)
    pairs = {
        'upper': [(i, k) for i in range(n) for k in range(i + 1, n)],
        'all': [(i, k) for i in range(n) for k in range(n) if i != k],
    }
    loss = torch.zeros((), dtype=s.dtype)
    for i in range(n):
        used = [(i, k) for k in range(n) if k != i] if negatives == 'per_anchor' else pairs[negatives]
        denominator = sum((s[a] - t[b]).abs().sum() for a, b in used)
        loss = loss + alpha[i] * (s[i] - t[i]).abs().sum() / denominator
    return loss


def test_equation_1_rejects_a_sample_only_where_the_student_is_strictly_closer():
    gt = images(0.5, 0.5, 0.5)
    student = images(0.6, 0.8, 0.7)  # errors 0.1, 0.3, 0.2
    teacher = images(0.7, 0.6, 0.3)  # errors 0.2, 0.1, 0.2: worse, better, tie
    assert indicator(student, teacher, gt).tolist() == [0.0, 1.0, 1.0]


def test_equation_1_sees_outputs_beyond_the_image_range():
    # clamped to [0, 1] both would have no error, a tie, and alpha would be 1
    assert indicator(images(1.1), images(1.3), images(1.0)).tolist() == [0.0]


def test_equation_2_equals_a_value_worked_by_hand():
    student, teacher, gt = images(0.6, 0.9), images(0.8, 0.6), images(0.5, 0.5)
    # sample 1, alpha 0: 2 * |0.1| = 0.2; sample 2, alpha 1: |0.4| + |0.3| = 0.7; (0.2 + 0.7) / (2 * 2) = 0.225
    loss = image_loss(student, teacher, gt, torch.tensor([0.0, 1.0]))
    assert loss.item() == pytest.approx(0.225)


@pytest.mark.parametrize(
    ('l1_gt', 'l1_t', 'loss'),
    [
        # alpha = (0, 1); to GT 0.1 and 0.4, to the teacher 0.2 and 0.3
        (True, False, (0.1 + 0.4) / 2),
        (False, True, (0 * 0.2 + 1 * 0.3) / 2),
    ],
)
def test_equation_2_with_one_distance_equals_a_value_worked_by_hand(l1_gt, l1_t, loss):
    student, teacher, gt = images(0.6, 0.9), images(0.8, 0.6), images(0.5, 0.5)
    found = image_loss(student, teacher, gt, torch.tensor([0.0, 1.0]), l1_gt, l1_t)
    assert found.item() == pytest.approx(loss)


@pytest.mark.parametrize('adaptive', [True, False])
def test_the_two_distances_apart_have_the_mean_of_both_where_every_sample_is_distilled(adaptive):
    student, gt = images(0.6, 0.9), images(0.5, 0.5)
    state = DistillState(student, gt, gt, gt, (images(1, 4),), (images(2, 10),))  # a teacher that is always right
    both, only_gt, only_t = (
        FACDLoss(layer_weights=[1.0], adaptive=adaptive, l1_gt=l1_gt, l1_t=l1_t)(state)
        for l1_gt, l1_t in ((True, True), (True, False), (False, True))
    )
    torch.testing.assert_close(both['l_sr'], (only_gt['l_sr'] + only_t['l_sr']) / 2)
    torch.testing.assert_close(both['l_facd'], only_gt['l_facd'])


@pytest.mark.parametrize('switch', ['l1_gt', 'l1_t'])
def test_gradcheck_without_one_distance(switch):
    state = random_state(n=3)

    def l_sr(student):
        return FACDLoss(**{switch: False})(with_student(state, student, *state.student_feats))['l_sr']

    assert torch.autograd.gradcheck(l_sr, state.student)


def test_without_its_distance_the_teacher_or_gt_has_no_say_in_the_image_loss():
    state = random_state()
    other = random_state(seed=1)
    for switch, other_state in (
        ('l1_t', replace(state, teacher=other.teacher)),
        ('l1_gt', replace(state, gt=other.gt)),
    ):
        first, second = (FACDLoss(adaptive=False, **{switch: False})(s)['l_sr'] for s in (state, other_state))
        assert torch.equal(first, second)


def test_no_distance_at_all_is_refused():
    with pytest.raises(UserError, match=r'train.distill_opt.l1_gt: false, and l1_t too; accepted: at least one'):
        FACDLoss(l1_gt=False, l1_t=False)


@pytest.mark.parametrize(
    ('negatives', 'loss', 'r'),
    [
        # d11 = 1, d22 = 6 (positives); d12 = 9, d21 = 2 (negatives)
        ('upper', (1 + 6) / 9, 3.5 / 9),
        ('all', (1 + 6) / (9 + 2), 3.5 / 5.5),
        ('per_anchor', 1 / 9 + 6 / 2, 3.5 / 5.5),
    ],
)
def test_equation_3_equals_a_value_worked_by_hand(negatives, loss, r):
    found, found_r = contrastive_loss(images(1, 4), images(2, 10), torch.ones(2), negatives)
    assert found.item() == pytest.approx(loss)
    assert found_r.item() == pytest.approx(r)


@pytest.mark.parametrize(
    ('negatives', 'loss', 'r'),
    [
        # students 1, 4, 6 and teachers 2, 10, 7: positives 1, 6, 1; between students 3 (1, 2), 5 (1, 3), 2 (2, 3)
        ('upper', 8 / (3 + 5 + 2), (8 / 3) / (10 / 3)),
        ('all', 8 / (2 * (3 + 5 + 2)), (8 / 3) / (20 / 6)),
        ('per_anchor', 1 / (3 + 5) + 6 / (3 + 2) + 1 / (5 + 2), (8 / 3) / (20 / 6)),
    ],
)
def test_equation_3_with_negatives_between_students_equals_a_value_worked_by_hand(negatives, loss, r):
    found, found_r = contrastive_loss(
        images(1, 4, 6), images(2, 10, 7), torch.ones(3), negatives, negatives_from='student'
    )
    assert found.item() == pytest.approx(loss)
    assert found_r.item() == pytest.approx(r)


@pytest.mark.parametrize('negatives', ['upper', 'all', 'per_anchor'])
def test_gradcheck_with_negatives_between_students(negatives):
    state = random_state(n=6)  # more than share their columns in pairwise_l1_triu
    alpha = torch.tensor([1, 0, 1, 1, 1, 0]).double()

    def loss(student_feat):
        return contrastive_loss(student_feat, state.teacher_feats[0], alpha, negatives, negatives_from='student')[0]

    assert torch.autograd.gradcheck(loss, state.student_feats[0])


def test_a_negative_between_students_pushes_both_apart():
    student = images(1, 4).requires_grad_()
    loss, _ = contrastive_loss(student, images(2, 10), torch.ones(2), negatives_from='student')
    loss.backward()
    # L = ((2 - s_1) + (10 - s_2)) / (s_2 - s_1) = 7 / 3, so dL/ds_1 = -1/3 + 7/9 and dL/ds_2 = -1/3 - 7/9
    expected = [-1 / 3 + 7 / 9, -1 / 3 - 7 / 9]
    assert student.grad.flatten(1).sum(1).tolist() == pytest.approx(expected)
    stopped = images(1, 4).requires_grad_()
    loss, _ = contrastive_loss(stopped, images(2, 10), torch.ones(2), stop_gradient=True, negatives_from='student')
    loss.backward()
    assert stopped.grad.flatten(1).sum(1).tolist() == pytest.approx([-1 / 3, -1 / 3])


def test_equation_3_gates_positives_only():
    # alpha = (0, 1): the positive d11 = 1 is gone, but student 1 against teacher 2, 9, stays the denominator
    assert contrastive_loss(images(1, 4), images(2, 10), torch.tensor([0.0, 1.0]))[0].item() == pytest.approx(6 / 9)


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(2, 6),
    negatives=st.sampled_from(['upper', 'all', 'per_anchor']),
    seed=st.integers(0, 2**31),
)
def test_equation_3_equals_its_transcription_in_value_and_gradient(n, negatives, seed):
    generator = torch.Generator().manual_seed(seed)
    s = torch.rand(n, 2, 3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    t = torch.rand(n, 2, 3, 3, generator=generator, dtype=torch.float64)
    alpha = torch.randint(0, 2, (n,), generator=generator).double()
    ours, _ = contrastive_loss(s, t, alpha, negatives, eps=0)
    theirs = equation_3(s, t, alpha, negatives)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, s), torch.autograd.grad(theirs, s))


def test_sum_form_is_n_over_k_times_r():
    state = random_state(n=5)
    loss, r = contrastive_loss(state.student_feats[0], state.teacher_feats[0], torch.ones(5).double())
    assert loss.item() == pytest.approx((5 / 10) * r.item())


@settings(deadline=None, max_examples=20)
@given(scale=st.floats(1e-2, 1e3))
def test_equation_3_does_not_depend_on_the_features_range(scale):
    state = random_state()
    s, t = state.student_feats[0], state.teacher_feats[0]
    one, _ = contrastive_loss(s, t, torch.ones(4).double())
    other, _ = contrastive_loss(scale * s, scale * t, torch.ones(4).double())
    torch.testing.assert_close(one, other, rtol=1e-4, atol=0)


def test_equation_4_equals_a_value_worked_by_hand():
    state = DistillState(
        student=images(0.6, 0.9),
        teacher=images(0.8, 0.6),
        gt=images(0.5, 0.5),
        lq=images(0.5, 0.5),
        student_feats=(images(1, 4), images(0, 0)),
        teacher_feats=(images(2, 10), images(1, 2)),
    )
    # alpha = (0, 1), L_SR = 0.225 as above, times 255.
    # tap 1: 6 / 9; tap 2: d22 = 2, d12 = 2, so 2 / 2; L_FACD = 0.6 * 2 / 3 + 0.4 * 1 = 0.8, times lambda = 3.
    logs = FACDLoss(lambda_=3, layer_weights=(0.6, 0.4))(state)
    assert logs['l_sr'].item() == pytest.approx(255 * 0.225)
    assert logs['l_facd'].item() == pytest.approx(3 * 0.8)
    assert logs['alpha'].item() == 0.5
    assert logs['r_1'].item() == pytest.approx(3.5 / 9)
    assert logs['r_2'].item() == pytest.approx(1.5 / 2)


def test_without_adaption_every_sample_is_distilled():
    state = random_state()
    logs = FACDLoss(adaptive=False)(state)
    l1 = torch.nn.functional.l1_loss
    fcd = 255 * (l1(state.student, state.gt) + l1(state.student, state.teacher)) / 2
    torch.testing.assert_close(logs['l_sr'], fcd)
    assert logs['alpha'].item() == 1


def test_the_defaults_are_the_papers_values():
    loss = FACDLoss()
    assert (loss.lambda_, loss.layer_weights, loss.img_range) == (4.0, (0.5, 0.3, 0.2), 255.0)
    assert (loss.adaptive, loss.negatives, loss.stop_gradient, loss.regressor) == (True, 'upper', False, 'always')
    assert loss.negatives_from == 'teacher'


def test_contrastive_term_is_a_few_percent_of_the_image_term_in_the_papers_setting():
    # Section 4.1's setting at the distances of a trained network: L1 of 4 levels, r = 0.4, N = 16
    generator = torch.Generator().manual_seed(0)
    t = torch.randn(16, 8, 6, 6, generator=generator)
    s = t + 0.4 * torch.randn(16, 8, 6, 6, generator=generator)
    gt = torch.rand(16, 3, 8, 8, generator=generator)
    state = DistillState(gt + 4 / 255, gt + 3 / 255, gt, gt[..., ::2, ::2], (s, s, s), (t, t, t))
    logs = FACDLoss()(state)
    assert 0.01 < (logs['l_facd'] / logs['l_sr']).item() < 0.2


def test_stop_gradient_leaves_the_value_and_removes_the_push_from_negatives():
    state = random_state()
    s, t, alpha = state.student_feats[0], state.teacher_feats[0], torch.ones(4).double()
    full, stopped = contrastive_loss(s, t, alpha)[0], contrastive_loss(s, t, alpha, stop_gradient=True)[0]
    assert full.item() == stopped.item()
    (full_grad,), (stopped_grad,) = torch.autograd.grad(full, s), torch.autograd.grad(stopped, s)
    denominator = sum((s[i] - t[k]).abs().mean() for i in range(4) for k in range(i + 1, 4)).detach()
    positives = sum((s[i] - t[i]).abs().mean() for i in range(4)) / denominator
    torch.testing.assert_close(stopped_grad, torch.autograd.grad(positives, s)[0])
    assert not torch.allclose(full_grad, stopped_grad)


def test_monitored_values_carry_no_gradient_and_terms_do():
    logs = FACDLoss()(random_state())
    assert {name for name, value in logs.items() if value.requires_grad} == {'l_sr', 'l_facd'}
    assert list(logs) == ['l_sr', 'l_facd', 'alpha', 'r_1', 'r_2', 'r_3']


def test_flat_batch_gives_a_finite_loss_and_gradient():
    flat = torch.ones(3, 2, 4, 4, requires_grad=True)
    loss, r = contrastive_loss(flat, torch.ones(3, 2, 4, 4), torch.ones(3))
    loss.backward()
    assert loss.item() == 0 and r.item() == 0
    assert torch.isfinite(flat.grad).all()


NEGATIVES = st.sampled_from(['upper', 'all', 'per_anchor'])


@st.composite
def states(draw, smallest: int = 2) -> DistillState:
    """A state of random sizes, in float64: 1 to 3 taps, each of its own width, height and extent."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    n, channels, height, width = (draw(st.integers(least, 4)) for least in (smallest, 1, 1, 1))

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(n, *shape, generator=generator, dtype=torch.float64)

    shapes = draw(st.lists(st.tuples(*[st.integers(1, 4)] * 3), min_size=1, max_size=3))
    student_feats, teacher_feats = (tuple(randn(*shape).requires_grad_() for shape in shapes) for _ in range(2))
    student, teacher = (randn(channels, height, width).requires_grad_() for _ in range(2))
    return DistillState(
        student, teacher, randn(channels, height, width), randn(channels, 1, 1), student_feats, teacher_feats
    )


def weights_of(state: DistillState) -> list[float]:
    return [0.5, 0.3, 0.2][: len(state.student_feats)]


def literally(
    state: DistillState, lambda_: float, adaptive: bool, negatives: str, negatives_from: str
) -> dict[str, torch.Tensor]:
    """Equations (1) to (4) by broadcasting, every difference of two samples written out."""

    def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().mean((1, 2, 3))  # (N,)

    to_gt, teachers = distance(state.student, state.gt), distance(state.teacher, state.gt)
    alpha = (to_gt >= teachers).double() if adaptive else torch.ones_like(to_gt)
    l_sr = ((2 - alpha) * to_gt + alpha * distance(state.student, state.teacher)).sum() / (2 * len(alpha))
    l_facd = torch.zeros((), dtype=torch.float64)
    for w_j, s, t in zip(weights_of(state), state.student_feats, state.teacher_feats):
        d = (s[:, None] - t[None]).abs().mean((2, 3, 4))  # (N, 1, C, H, W) - (1, N, C, H, W) -> (N, N)
        of_others = {'teacher': d, 'student': (s[:, None] - s[None]).abs().mean((2, 3, 4))}[negatives_from]
        d_neg = of_others.triu(1) if negatives == 'upper' else of_others - of_others.diag().diag()
        denominator = d_neg.sum(1) if negatives == 'per_anchor' else d_neg.sum()
        l_facd = l_facd + w_j * (alpha * d.diag() / denominator).sum()
    return {'l_sr': 255 * l_sr, 'l_facd': lambda_ * l_facd}


@settings(deadline=None, max_examples=50)
@given(
    state=states(), lambda_=st.floats(0, 100, exclude_min=True), adaptive=st.booleans(), negatives=NEGATIVES,
    negatives_from=st.sampled_from(['teacher', 'student']),
)  # fmt: skip
def test_terms_and_gradients_are_those_of_the_equations_written_out(
    state, lambda_, adaptive, negatives, negatives_from
):
    options = {'adaptive': adaptive, 'negatives': negatives, 'negatives_from': negatives_from}
    ours = FACDLoss(lambda_, weights_of(state), eps=0, **options)(state)
    theirs = literally(state, lambda_, **options)
    leaves = [state.student, *state.student_feats]
    for term in ('l_sr', 'l_facd'):
        torch.testing.assert_close(ours[term], theirs[term])
    total, expected = (logs['l_sr'] + logs['l_facd'] for logs in (ours, theirs))
    torch.testing.assert_close(torch.autograd.grad(total, leaves), torch.autograd.grad(expected, leaves))


@settings(deadline=None, max_examples=30)
@given(state=states(), adaptive=st.booleans(), negatives=NEGATIVES, stop_gradient=st.booleans())
def test_no_term_is_negative_and_none_has_a_gradient_to_the_teacher(state, adaptive, negatives, stop_gradient):
    logs = FACDLoss(4, weights_of(state), 255, adaptive, negatives, stop_gradient)(state)
    assert all(value >= 0 and torch.isfinite(value) for value in logs.values())
    assert 0 <= logs['alpha'] <= 1
    of_the_teacher = [state.teacher, *state.teacher_feats]
    gradients = torch.autograd.grad(logs['l_sr'] + logs['l_facd'], of_the_teacher, allow_unused=True)
    assert gradients == (None,) * len(of_the_teacher)


@settings(deadline=None, max_examples=30)
@given(state=states(), adaptive=st.booleans(), negatives=st.sampled_from(['all', 'per_anchor']), data=st.data())
def test_the_order_of_the_samples_does_not_matter_where_all_are_negatives(state, adaptive, negatives, data):
    order = data.draw(st.permutations(range(len(state.gt))))
    other = DistillState(
        *(image[order] for image in (state.student, state.teacher, state.gt, state.lq)),
        *(tuple(feat[order] for feat in feats) for feats in (state.student_feats, state.teacher_feats)),
    )
    one, two = (
        FACDLoss(layer_weights=weights_of(s), adaptive=adaptive, negatives=negatives)(s) for s in (state, other)
    )
    torch.testing.assert_close(one, two)


@settings(deadline=None, max_examples=30)
@given(state=states(), factor=st.floats(0.01, 100), negatives=NEGATIVES)
def test_lambda_and_the_image_range_scale_their_terms_and_the_range_of_features_scales_none(state, factor, negatives):
    more = replace(
        state,
        student_feats=tuple(factor * feat for feat in state.student_feats),
        teacher_feats=tuple(factor * feat for feat in state.teacher_feats),
    )
    one = FACDLoss(1, weights_of(state), 1, negatives=negatives, eps=0)(state)
    two = FACDLoss(factor, weights_of(state), factor**2, negatives=negatives, eps=0)(more)
    torch.testing.assert_close(two['l_facd'], factor * one['l_facd'])
    torch.testing.assert_close(two['l_sr'], factor**2 * one['l_sr'])


@settings(deadline=None, max_examples=20)
@given(n=st.integers(2, 4), level=st.floats(-1e3, 1e3), negatives=NEGATIVES, dtype=st.sampled_from(['half', 'float']))
def test_flat_patches_of_any_level_have_finite_terms_and_gradients(n, level, negatives, dtype):
    flat = [torch.full((n, 2, 3, 3), level).to(getattr(torch, {'half': 'float16', 'float': 'float32'}[dtype]))] * 4
    student, feat = (flat[0].clone().requires_grad_() for _ in range(2))
    logs = FACDLoss(layer_weights=[1], negatives=negatives)(DistillState(student, *flat[:3], (feat,), (flat[3],)))
    gradients = torch.autograd.grad(logs['l_sr'] + logs['l_facd'], [student, feat])
    assert all(torch.isfinite(value).all() for value in [*logs.values(), *gradients])
    assert logs['l_sr'] == logs['l_facd'] == 0


def test_with_lambda_0_features_are_not_compared_and_the_image_term_is_the_same():
    state = random_state()
    weighted, unweighted = FACDLoss()(state), FACDLoss(lambda_=0)(state)
    assert torch.equal(weighted['l_sr'], unweighted['l_sr'])
    assert weighted.keys() - unweighted.keys() == {'r_1', 'r_2', 'r_3'}
    assert unweighted['l_facd'] == 0 and unweighted['l_facd'].requires_grad


@pytest.mark.parametrize(
    ('options', 'key'),
    [({'lambda_': -1}, 'lambda'), ({'layer_weights': [1, -1]}, 'layer_weights'), ({'img_range': 0}, 'img_range')],
)
def test_values_that_make_no_sense_are_refused(options, key):
    with pytest.raises(UserError, match=rf'train.distill_opt.{key}: .*; accepted: '):
        FACDLoss(**options)


def test_registered_and_built_from_an_option_block_that_says_lambda():
    assert LOSS_REGISTRY.get('FACDLoss') is FACDLoss
    assert build_loss({'type': 'FACDLoss', 'lambda': 0.5}).lambda_ == 0.5
