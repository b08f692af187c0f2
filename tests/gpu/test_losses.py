"""Every loss, and the kernel of distances, on a GPU in float32 against the CPU in float64."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from basicsr.utils import get_root_logger
from states import LOSSES, changed_tensors, save_vgg, seen, summed, widened, with_views
from torch import Tensor

from facd_basicsr.losses import DistillLoss, DistillState, build_loss
from facd_basicsr.losses.pairwise import fused_sums, pairwise_l1, pairwise_l1_triu
from facd_basicsr.runtime.execution import tf32_of

pytestmark = pytest.mark.gpu

DEVICE = 'cuda'
CHOICES = {
    'FACDLoss': [{'negatives': kind} for kind in ('upper', 'all', 'per_anchor')],
    'IACDLoss': [{'negatives': kind} for kind in ('upper', 'all', 'per_anchor')],
    'FitNetLoss': [{'distance': kind} for kind in ('l1', 'l2')],
    'InfoNCELoss': [{'adaptive': adaptive} for adaptive in (False, True)],
}
OF_VGG = ('CSDLoss', 'DCKDLoss')
CASES = [(name, options) for name in sorted(LOSSES) for options in CHOICES.get(name, [{}])]


@pytest.fixture(autouse=True)
def full_float32() -> Iterator[None]:
    with tf32_of('fp32'):
        yield


@pytest.fixture(scope='module')
def vgg(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_vgg(tmp_path_factory.mktemp('vgg') / 'vgg.pth', depth=5))


@pytest.fixture(params=CASES, ids=lambda case: ' '.join([case[0], *map(str, case[1].values())]))
def losses(request: pytest.FixtureRequest, vgg: str) -> tuple[DistillLoss, DistillLoss]:
    """The same loss twice: float64 on the CPU, float32 on the GPU."""
    name, options = request.param
    needed = {'vgg_weights': vgg} if name in OF_VGG else {'alpha': 0.4} if name == 'ECOLoss' else {}
    block = {'type': name, **options, **needed}
    return build_loss(block).prepare().double(), build_loss(block).prepare().to(DEVICE)


def large_state(losses: tuple[DistillLoss, DistillLoss], dtype: torch.dtype = torch.float32) -> DistillState:
    """x2, five samples, features of 6 x 37 x 29: no size is a multiple of a kernel's tile. Features have a dtype."""
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    gt = rand(5, 3, 74, 58)
    student, teacher = (gt + 0.2 * rand(5, 3, 74, 58) - 0.1 for _ in range(2))
    feats = [tuple(rand(5, 6, 37, 29).to(dtype) for _ in range(3)) for _ in range(2)]
    return with_views(losses[0], DistillState(student, teacher, gt, rand(5, 3, 37, 29), *feats))


def moved(state: DistillState, change: Callable[[Tensor], Tensor]) -> DistillState:
    """The state with every tensor changed, and leaves that need gradients where the student's were."""
    of_student = {id(own) for own in (state.student, *state.student_feats)}
    of_student |= {id(own) for view in state.views.values() for name, own in view.items() if name == 'student'}
    return changed_tensors(state, lambda x: change(x.detach()).detach().requires_grad_(id(x) in of_student))


def results(loss: DistillLoss, state: DistillState) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    """What it says, and the gradients of what is minimized."""
    logs = loss(state)
    return logs, torch.autograd.grad(summed(logs), seen(loss, state))


def compare(losses: tuple[DistillLoss, DistillLoss], state: DistillState, rtol: float = 1e-4) -> None:
    """Gradients by their length: where |a - b| or what goes into a ReLU is near 0, an element may have another sign."""
    expected, expected_gradients = results(losses[0], widened(moved(state, lambda x: x.cpu())))
    found, gradients = results(losses[1], state)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.device.type == DEVICE and value.dtype == torch.float32, name
        torch.testing.assert_close(value.cpu().double(), expected[name], rtol=rtol, atol=1e-6, msg=name)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        error = (ours.cpu().double() - theirs).norm() / theirs.norm()
        assert error < (0.05 if type(losses[0]).__name__ in OF_VGG else 1e-3 if ours.dtype == torch.float32 else 0.01)


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_terms_and_gradients_are_those_of_the_cpu_in_float64(losses, memory_format):
    compare(losses, moved(large_state(losses), lambda x: x.to(DEVICE).contiguous(memory_format=memory_format)))


def test_a_student_of_channels_last_and_a_teacher_that_is_not_make_no_difference(losses):
    state = moved(large_state(losses), lambda x: x.to(DEVICE))
    last = moved(state, lambda x: x.contiguous(memory_format=torch.channels_last))
    compare(losses, replace(state, student=last.student, student_feats=last.student_feats))


@pytest.mark.parametrize('of_teacher', [True, False])
def test_images_in_float32_go_with_features_in_bfloat16(losses, of_teacher):
    state = moved(large_state(losses, torch.bfloat16), lambda x: x.to(DEVICE))
    if not of_teacher:  # a teacher in float32 beside a student under autocast
        state = replace(state, teacher_feats=tuple(feat.float() for feat in state.teacher_feats))
    compare(losses, state)


def test_autocast_does_not_round_distances(losses):
    state = moved(large_state(losses), lambda x: x.to(DEVICE))
    expected = losses[1](state)
    with torch.autocast(DEVICE, torch.bfloat16):
        logs = losses[1](state)
    assert {value.dtype for value in logs.values()} == {torch.float32}
    rtol = 0.02 if type(losses[1]).__name__ in OF_VGG else 1e-6  # its VGG is a network as others are
    torch.testing.assert_close(logs, expected, rtol=rtol, atol=1e-6)


def test_a_step_repeated_is_the_same_to_the_last_bit(losses):
    if type(losses[1]).__name__ in OF_VGG:
        pytest.skip("cuDNN's gradients of its VGG need not be")
    state = moved(large_state(losses), lambda x: x.to(DEVICE))
    (logs, gradients), (again, same) = (results(losses[1], state) for _ in range(2))
    assert all(torch.equal(logs[name], again[name]) for name in logs) and all(map(torch.equal, gradients, same))


SHAPES = [(1, 1, 1), (1, 3, 7), (2, 3, 700), (5, 17, 6 * 37 * 29), (17, 33, 1000), (40, 1, 513), (16, 16, 100_003)]
HALVES = (torch.float32, torch.bfloat16), (torch.bfloat16, torch.float16), (torch.float16, torch.float16)


def features(rows: int, size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """A third of them whole numbers, so that some are equal to others."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, size, generator=generator)
    return torch.where(torch.rand(rows, size, generator=generator) < 0.33, x.round(), x).to(dtype)


def with_gradients(distances: Callable, a: Tensor, b: Tensor, weight: Tensor) -> list[Tensor]:
    a, b = (x.detach().requires_grad_() for x in (a, b))
    d = distances(a, b)
    return [d.detach(), *torch.autograd.grad((d * weight).sum(), (a, b))]


def check_pair(a: Tensor, b: Tensor) -> None:
    """The kernel's distances and both gradients against float64 on the CPU; twice the same."""
    a, b = a.to(DEVICE), b.to(DEVICE)
    weight = torch.randn(len(a), len(b), generator=torch.Generator().manual_seed(2))
    sums = fused_sums(torch.device(DEVICE, 0), a.dtype, b.dtype)
    assert sums is not None
    ours, again = (with_gradients(sums, a, b, weight.to(DEVICE)) for _ in range(2))
    assert all(map(torch.equal, ours, again))
    theirs = with_gradients(lambda a, b: torch.cdist(a, b, p=1), a.cpu().double(), b.cpu().double(), weight.double())
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our.cpu(), their.to(our.dtype))


@pytest.mark.parametrize(('n', 'm', 'size'), SHAPES)
def test_the_compiled_kernel_equals_cdist_for_odd_shapes(n, m, size):
    check_pair(features(n, size), features(m, size, seed=1))


@pytest.mark.parametrize('dtypes', [*HALVES, *(pair[::-1] for pair in HALVES)])
def test_the_compiled_kernel_equals_cdist_for_mixed_types(dtypes):
    check_pair(features(5, 6447, dtypes[0]), features(18, 6447, dtypes[1], seed=1))


def test_rows_that_are_not_contiguous_or_not_aligned_are_read_right():
    a, b = features(6, 3001).to(DEVICE), features(18, 3001, seed=1).to(DEVICE)
    check_pair(a.T.contiguous().T[::2], b[1::2])
    check_pair(a[:, 1:], b[:, :-1])
    check_pair(a[1:], b[3:])  # which begin between multiples of 16 bytes


def test_equal_elements_have_no_gradient():
    a = features(3, 1000).to(DEVICE)
    value, of_a, of_b = with_gradients(pairwise_l1, a[:1], a[:1].clone(), torch.ones(1, 1, device=DEVICE))
    assert value.item() == 0 and not of_a.any() and not of_b.any()


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(('n', 'first', 'later'), [(5, 0, 0), (5, 3, 2), (5, 7, 0), (1, 0, 0), (1, 4, 0), (18, 18, 2)])
def test_distances_to_own_and_later_samples_are_the_cpus(n, first, later, memory_format):
    """``first`` is 0 on the first of several ranks only, and after the last rank's samples there are no later ones."""
    m = first + n + later
    a, b = features(n, 6 * 7 * 5).view(n, 6, 7, 5), features(m, 6 * 7 * 5, seed=1).view(m, 6, 7, 5)
    needed = torch.ones(n, m).triu(first)
    expected = with_gradients(lambda a, b: pairwise_l1_triu(a, b, first), a.double(), b.double(), needed.double())
    a, b = (x.to(DEVICE).contiguous(memory_format=memory_format) for x in (a, b))
    found = with_gradients(lambda a, b: pairwise_l1_triu(a, b, first), a, b, needed.to(DEVICE))
    torch.testing.assert_close(found[0].cpu() * needed, expected[0].float() * needed)
    torch.testing.assert_close([x.cpu() for x in found[1:]], [x.float() for x in expected[1:]])


def test_the_kernel_is_taken_without_a_warning_and_random_numbers_stay_as_they_were(monkeypatch):
    lines, before = [], (torch.get_rng_state(), torch.cuda.get_rng_state())
    monkeypatch.setattr(get_root_logger(), 'warning', lines.append)
    for pair in [(torch.float32,) * 2, *HALVES]:
        assert fused_sums.__wrapped__(torch.device(DEVICE, 0), *pair) is not None
    assert lines == [] and all(map(torch.equal, before, (torch.get_rng_state(), torch.cuda.get_rng_state())))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_memory_is_that_of_a_gradient_and_not_of_all_differences(dtype):
    n, shape = 16, (64, 96, 96)
    a, b = (torch.rand(n, *shape, device=DEVICE).to(dtype) for _ in range(2))
    a.requires_grad_()
    pairwise_l1(a, b).sum().backward()  # compiled, and a.grad is there
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    pairwise_l1(a, b).sum().backward()
    extra = torch.cuda.max_memory_allocated() - before
    assert extra < 1.5 * a.nbytes + 2**22 < n * a.nbytes / 8  # (N, N, C, H, W) would be 16 of them
