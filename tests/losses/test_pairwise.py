import sys
from types import SimpleNamespace

import pytest
import torch
from basicsr.utils import get_root_logger
from hypothesis import given, settings
from hypothesis import strategies as st
from states import LargestTensor

from facd_basicsr.losses.pairwise import cdist_by_column, fused_sums, pairwise_l1, pairwise_l1_triu, sample_l1


def literal(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The definition, with every difference in memory."""
    return (a[:, None] - b[None]).abs().flatten(2).mean(2)


def test_pairwise_l1_equals_a_value_worked_by_hand():
    a = torch.tensor([[[[1.0, 2.0]]], [[[0.0, -4.0]]]])  # (2, 1, 1, 2)
    b = torch.tensor([[[[3.0, 2.0]]], [[[1.0, 1.0]]], [[[0.0, 0.0]]]])  # (3, 1, 1, 2)
    # |1-3|+|2-2| = 2, |1-1|+|2-1| = 1, |1|+|2| = 3; |0-3|+|-4-2| = 9, 1+5 = 6, 4; each over 2 elements
    assert torch.equal(pairwise_l1(a, b), torch.tensor([[1.0, 0.5, 1.5], [4.5, 3.0, 2.0]]))


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 11), before=st.integers(0, 5), after=st.integers(0, 5), seed=st.integers(0, 2**31))
def test_distances_to_own_and_later_samples_and_their_gradients_are_the_pairwise_ones(n, before, after, seed):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, 2, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    b = torch.randn(before + n + after, 2, 3, 4, generator=generator, dtype=torch.float64)
    needed = torch.ones(n, len(b)).triu(before)  # (i, k) with k >= before + i
    weight = needed * torch.randn(n, len(b), generator=generator, dtype=torch.float64)
    found, expected = pairwise_l1_triu(a, b, before), pairwise_l1(a, b)
    torch.testing.assert_close(found * needed, expected * needed)
    gradients = [torch.autograd.grad((weight * d).sum(), a)[0] for d in (found, expected)]
    torch.testing.assert_close(*gradients)


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 5), m=st.integers(1, 5), c=st.integers(1, 4), h=st.integers(1, 5), w=st.integers(1, 5),
    seed=st.integers(0, 2**31),
)  # fmt: skip
def test_pairwise_l1_equals_its_definition_in_value_and_gradient(n, m, c, h, w, seed):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, c, h, w, generator=generator, dtype=torch.float64, requires_grad=True)
    b = torch.randn(m, c, h, w, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(n, m, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(pairwise_l1(a, b), literal(a, b))
    ours = torch.autograd.grad((weight * pairwise_l1(a, b)).sum(), (a, b))
    theirs = torch.autograd.grad((weight * literal(a, b)).sum(), (a, b))
    torch.testing.assert_close(ours, theirs)


def test_by_column_equals_cdist_in_value_and_gradient():
    a = torch.randn(4, 30, dtype=torch.float64, requires_grad=True)
    b = torch.randn(5, 30, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 5, dtype=torch.float64)
    ours, theirs = cdist_by_column(a, b), torch.cdist(a, b, p=1)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad((weight * ours).sum(), (a, b)), torch.autograd.grad((weight * theirs).sum(), (a, b))
    )


def test_pairwise_l1_passes_gradcheck():
    a, b = torch.randn(2, 3, 2, 2, dtype=torch.float64), torch.randn(3, 3, 2, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(pairwise_l1, (a.requires_grad_(), b.requires_grad_()))


def test_diagonal_of_pairwise_l1_is_sample_l1():
    a, b = torch.rand(4, 3, 5, 5), torch.rand(4, 3, 5, 5)
    torch.testing.assert_close(pairwise_l1(a, b).diagonal(), sample_l1(a, b))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_summed_in_float32(dtype):
    a = torch.full((2, 64, 48, 48), 200.0, dtype=dtype)  # the sum, 3e7, overflows float16
    d = pairwise_l1(a, torch.zeros_like(a))
    assert d.dtype == torch.float32
    assert torch.equal(d, torch.full((2, 2), 200.0))


def test_no_tensor_as_large_as_all_differences_is_made():
    n, size = 8, 3 * 32 * 32
    a, b = torch.rand(n, size, requires_grad=True), torch.rand(n, size)
    with LargestTensor() as largest:
        pairwise_l1(a, b).sum().backward()
    assert largest.numel <= n * size < n * n * size


def test_channels_last_features_are_compared_without_a_copy_and_to_the_same_distances():
    a, b = torch.randn(3, 4, 5, 6, requires_grad=True), torch.randn(2, 4, 5, 6)
    last = [x.detach().to(memory_format=torch.channels_last).requires_grad_() for x in (a, b)]
    copies = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            copies.extend([func] if func in (torch.ops.aten.clone.default, torch.ops.aten.copy_.default) else [])
            return func(*args, **(kwargs or {}))

    with Watch():
        d = pairwise_l1(*last)
    assert copies == []
    torch.testing.assert_close(d, pairwise_l1(a, b))
    ours, theirs = torch.autograd.grad(d.sum(), last[0])[0], torch.autograd.grad(pairwise_l1(a, b).sum(), a)[0]
    torch.testing.assert_close(ours, theirs)
    assert ours.is_contiguous(memory_format=torch.channels_last)


def without_compiler(a, b):
    raise RuntimeError('Failed to find C compiler')


@pytest.mark.parametrize(
    ('sums', 'reason'),
    [
        (lambda a, b: torch.cdist(a.float(), b.float(), p=1), None),
        (lambda a, b: torch.cdist(a.float(), b.float(), p=2), 'ValueError: wrong by '),
        (lambda a, b: torch.cdist(a.detach(), b.float(), p=1), 'RuntimeError: '),
        (without_compiler, 'RuntimeError: Failed to find C compiler'),
    ],
)
def test_a_fused_kernel_is_used_only_if_it_gives_what_cdist_gives(sums, reason, monkeypatch):
    lines = []
    monkeypatch.setattr(get_root_logger(), 'warning', lines.append)
    monkeypatch.setitem(sys.modules, 'facd_basicsr.losses.pairwise_triton', SimpleNamespace(l1_sums=sums))
    before = torch.get_rng_state()
    with torch.no_grad():  # as where a loss is tried before training
        found = fused_sums.__wrapped__(torch.device('cpu'), torch.float32, torch.bfloat16)
    assert torch.equal(torch.get_rng_state(), before)
    assert found is (sums if reason is None else None)
    assert [reason in line for line in lines] == ([] if reason is None else [True])
