import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from states import LargestTensor, random_state

import facd_basicsr.losses.fakd_loss as module
from facd_basicsr.evaluation.complexity import saved_activations
from facd_basicsr.losses.fakd_loss import AffinityL1, FAKDLoss, affinity_loss
from facd_basicsr.losses.teacher_supervision_loss import supervision


def literal(student_feat: torch.Tensor, teacher_feat: torch.Tensor) -> torch.Tensor:
    """L1 of the similarities of feature_transformation.py, spatial_similarity: every HW x HW matrix in memory."""

    def similarity(feat: torch.Tensor) -> torch.Tensor:
        n, c, h, w = feat.shape
        columns = feat.reshape(n, c, h * w)
        unit = columns / ((columns**2).sum(1, keepdim=True).sqrt() + 1e-8)
        return torch.einsum('ncp,ncq->npq', unit, unit)

    return (similarity(student_feat) - similarity(teacher_feat)).abs().mean()


def features(n: int = 4, c: int = 16, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """A student's feature with gradient, and a teacher's; float32."""
    generator = torch.Generator().manual_seed(0)
    s = torch.randn(n, c, size, size, generator=generator)
    return s.requires_grad_(), torch.randn(n, c, size, size, generator=generator)


def test_affinity_equals_a_value_worked_by_hand():
    # Student: columns (3, 4) and (0, 2), so (0.6, 0.8) and (0, 1), whose product is 0.8. Teacher: (1, 0) and (0, 5), so
    # 0. A column's product with itself is 1 in both. Two of the four entries differ, by 0.8.
    s = torch.tensor([[3.0, 0.0], [4.0, 2.0]], dtype=torch.float64).reshape(1, 2, 1, 2)
    t = torch.tensor([[1.0, 0.0], [0.0, 5.0]], dtype=torch.float64).reshape(1, 2, 1, 2)
    assert affinity_loss(s, t).item() == pytest.approx(2 * 0.8 / 4)
    # with a second sample that has no difference, half of it
    assert affinity_loss(torch.cat([s, t]), torch.cat([t, t])).item() == pytest.approx(0.2)


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 3), channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    h=st.integers(1, 4), w=st.integers(1, 4), entries=st.integers(1, 200), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_affinity_equals_its_transcription_in_value_and_gradient(n, channels, h, w, entries, seed):
    generator = torch.Generator().manual_seed(seed)
    s = torch.randn(n, channels[0], h, w, generator=generator, dtype=torch.float64, requires_grad=True)
    t = torch.randn(n, channels[1], h, w, generator=generator, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, 'AFFINITY_ENTRIES', entries)
        ours = affinity_loss(s, t)
    theirs = literal(s, t)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, s), torch.autograd.grad(theirs, s), rtol=1e-6, atol=1e-10)


def test_terms_equal_the_authors_formula_in_value_and_gradient():
    state = random_state(channels=(2, 5))
    logs = FAKDLoss()(state)
    l1 = torch.nn.functional.l1_loss
    theirs = 255 * (0.5 * l1(state.student, state.gt) + 0.5 * l1(state.student, state.teacher)) + 10 * sum(
        literal(s, t) for s, t in zip(state.student_feats, state.teacher_feats)
    )
    ours = logs['l_sr'] + logs['l_fakd']
    torch.testing.assert_close(ours, theirs)
    seen = (state.student, *state.student_feats)
    torch.testing.assert_close(torch.autograd.grad(ours, seen), torch.autograd.grad(theirs, seen))


@pytest.mark.parametrize('rows', [1, 2, 5, 9, 100])
def test_value_and_gradient_do_not_depend_on_the_size_of_blocks(rows):
    s = torch.randn(2, 3, 9, dtype=torch.float64, requires_grad=True)
    t = torch.randn(2, 4, 9, dtype=torch.float64)
    one, other = AffinityL1.apply(s, t, 9), AffinityL1.apply(s, t, rows)
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(torch.autograd.grad(one, s), torch.autograd.grad(other, s))


def test_columns_without_unit_length_have_the_right_gradient_too():
    s = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    t = torch.randn(2, 2, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: 3 * AffinityL1.apply(s, t, 2), s)


def test_no_tensor_of_all_affinities_is_made(monkeypatch):
    s, t = features()
    monkeypatch.setattr(module, 'AFFINITY_ENTRIES', s.numel() // 2)
    with LargestTensor() as largest:
        affinity_loss(s, t).backward()
    assert s.grad is not None and 0 < largest.numel <= s.numel() < 4 * 1024 * 1024


def test_autograd_keeps_a_tensor_of_the_features_size_and_no_affinities():
    s, t = features()
    with saved_activations([s]) as kept:
        affinity_loss(s, t)
    size = s.numel() * s.element_size()
    assert size <= sum(kept.values()) < 1.25 * size  # and a few numbers for each of 1024 columns


def test_without_gradient_nothing_is_kept():
    s, t = features(n=1, size=4)
    with torch.no_grad(), saved_activations([]) as kept:
        quiet = affinity_loss(s, t)
    assert not kept and not quiet.requires_grad
    torch.testing.assert_close(quiet, affinity_loss(s, t).detach())


def test_the_length_of_columns_does_not_matter():
    s, t = (feat.detach().double() for feat in features(n=2, c=3, size=4))
    lengths = torch.rand(2, 1, 4, 4, dtype=torch.float64) + 0.5
    torch.testing.assert_close(affinity_loss(lengths * s, 100 * t), affinity_loss(s, t), rtol=1e-5, atol=0)


def test_what_is_added_to_a_columns_length_is_the_authors_1e_8():
    # columns as long as that, and 1: of length 1/2 and 1, so products 1/4, 1/2, 1/2, 1 where the teacher's are all 1
    s = torch.tensor([[1e-8, 1.0]], dtype=torch.float64).reshape(1, 1, 1, 2)
    t = torch.ones(1, 1, 1, 2, dtype=torch.float64)
    assert affinity_loss(s, t).item() == pytest.approx((0.75 + 0.5 + 0.5) / 4, rel=1e-6)


def test_it_needs_no_regressor_whatever_the_widths():
    loss = FAKDLoss()
    assert loss.regressor == 'never' and not loss.compares_channels
    assert loss(random_state(channels=(2, 5)))['l_fakd'] > 0


def test_the_defaults_are_the_authors_script():
    loss = FAKDLoss()
    assert (loss.lambda_, loss.layer_weights, loss.img_range) == (10.0, (1.0, 1.0, 1.0), 255.0)


def test_the_image_loss_is_teacher_supervision():
    state = random_state()
    assert torch.equal(FAKDLoss(img_range=1)(state)['l_sr'], supervision(state))
