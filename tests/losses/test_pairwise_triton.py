"""The Triton kernels against cdist: interpreted on the CPU here, and compiled where there is a GPU."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(importlib.util.find_spec('triton') is None, reason='no Triton')

# N, M, D: over tiles, and below them
CASES = [((n, m, size), torch.float32) for n, m, size in ((3, 17, 130), (1, 1, 1), (2, 3, 700), (17, 5, 300))]
CASES += [((3, 17, 130), torch.bfloat16), ((3, 17, 130), torch.float16)]


def features(rows: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    """Fresh random ones, a third of them whole numbers, so that some are equal to others."""
    x = torch.randn(rows, size)
    return torch.where(torch.rand(rows, size) < 0.33, x.round(), x).to(dtype)


def inputs() -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """a, b and the gradient of their distances, in every shape and type."""
    cases = [(features(n, size, dtype), features(m, size, dtype), torch.randn(n, m)) for (n, m, size), dtype in CASES]
    a, b, gradient = cases[0]
    return [*cases, (a, b.bfloat16(), gradient)]


def value_and_gradients(sums, a, b, gradient, which=(True, True)) -> list[torch.Tensor]:
    a, b = (x.detach().clone().requires_grad_(needed) for x, needed in zip((a, b), which))
    d = sums(a, b)
    needed = [x for x in (a, b) if x.requires_grad]
    return [d.detach(), *torch.autograd.grad((d * gradient).sum(), needed)]


def reference(a, b, gradient) -> list[torch.Tensor]:
    return value_and_gradients(lambda a, b: torch.cdist(a.double(), b.double(), p=1), a, b, gradient)


def close(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their.to(our.dtype))


def interpret(folder: Path) -> None:
    """What the kernels give for the inputs in a folder; to be run with TRITON_INTERPRET=1."""
    from facd_basicsr.losses import pairwise_triton
    from facd_basicsr.losses.pairwise import fused_sums

    l1_sums = pairwise_triton.l1_sums
    cases = torch.load(folder / 'inputs.pth')
    results = {'both': [value_and_gradients(l1_sums, *case) for case in cases]}
    results['one'] = [value_and_gradients(l1_sums, *cases[0], which) for which in ((True, False), (False, True))]
    a, b, gradient = cases[0]
    strided = a.T.contiguous().T
    results['strided'] = value_and_gradients(l1_sums, strided, b, gradient.T.contiguous().T)
    bad_a, bad_b = a.clone(), b.clone()
    bad_a[0, 5], bad_b[1, 7] = float('nan'), float('inf')
    results['bad'] = value_and_gradients(l1_sums, bad_a, bad_b, gradient)
    (first,) = torch.autograd.grad(l1_sums(a.requires_grad_(), b).square().sum(), a, create_graph=True)
    try:
        first.sum().backward()
    except RuntimeError as error:
        results['twice'] = str(error)
    results['tried'] = fused_sums(torch.device('cpu'), torch.float32, torch.bfloat16) is l1_sums
    pairwise_triton.PROGRAMS = 4  # for 2 tiles, so that each adds up 3 pieces of 64 elements
    results['long'] = value_and_gradients(l1_sums, *cases[3])
    torch.save(results, folder / 'results.pth')


@pytest.fixture(scope='module')
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> tuple[list, dict]:
    """Inputs, and what a process in which Triton interprets has made of them."""
    folder = tmp_path_factory.mktemp('interpreted')
    torch.save(cases := inputs(), folder / 'inputs.pth')
    environment = {**os.environ, 'TRITON_INTERPRET': '1', 'OMP_NUM_THREADS': '1'}  # read where Triton is imported
    done = subprocess.run([sys.executable, __file__, folder], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if not (folder / 'results.pth').is_file():
        pytest.skip("this Triton's interpreter cannot copy a tensor: 3.0's with numpy 2")
    return cases, torch.load(folder / 'results.pth')


def test_interpreted_kernels_equal_cdist_in_value_and_gradients(interpreted):
    cases, results = interpreted
    for case, result in zip(cases, results['both'], strict=True):
        assert [x.dtype for x in result] == [torch.float32, case[0].dtype, case[1].dtype]
        close(result, reference(*case))


def test_a_gradient_that_is_not_needed_is_left_out(interpreted):
    cases, results = interpreted
    value, of_a, of_b = reference(*cases[0])
    close(results['one'][0], [value, of_a])
    close(results['one'][1], [value, of_b])


def test_samples_of_more_elements_than_programs_are_summed_whole(interpreted):
    cases, results = interpreted
    close(results['long'], reference(*cases[3]))


def test_memory_layouts_do_not_matter(interpreted):
    cases, results = interpreted
    close(results['strided'], reference(*cases[0]))


def test_what_is_not_finite_shows_in_the_values_of_its_samples_alone(interpreted):
    (a, b, _), (value, *gradients) = interpreted[0][0], interpreted[1]['bad']
    assert value[0].isnan().all() and value[1, 1] == float('inf')
    others = [k for k in range(17) if k != 1]
    torch.testing.assert_close(value[1:, others], torch.cdist(a.double(), b.double(), p=1)[1:, others].float())
    assert all(x.isfinite().all() for x in gradients)  # the loss's guard sees the value


def test_a_second_derivative_is_refused(interpreted):
    assert 'differentiate twice' in interpreted[1]['twice']


def test_kernels_that_work_pass_their_trial(interpreted):
    assert interpreted[1]['tried']


@pytest.mark.gpu
def test_compiled_kernels_equal_cdist_in_value_and_gradients_and_are_the_same_each_time():
    from facd_basicsr.losses.pairwise import fused_sums

    for case in [*inputs(), (torch.randn(16, 64 * 48 * 48), torch.randn(33, 64 * 48 * 48), torch.randn(16, 33))]:
        case = [x.cuda() for x in case]
        sums = fused_sums(case[0].device, case[0].dtype, case[1].dtype)
        assert sums is not None
        ours = value_and_gradients(sums, *case)
        close([x.cpu() for x in ours], reference(*(x.cpu() for x in case)))
        for _ in range(5):
            assert all(map(torch.equal, ours, value_and_gradients(sums, *case)))


if __name__ == '__main__':
    import triton
    import triton.language as tl

    @triton.jit
    def copy(x, out):
        at = tl.arange(0, 8)
        tl.store(out + at, tl.load(x + at, mask=at < 5, other=0.0), mask=at < 5)

    copy[(1,)](x := torch.randn(8), out := torch.zeros(8))
    if torch.equal(x[:5], out[:5]):
        interpret(Path(sys.argv[1]))
