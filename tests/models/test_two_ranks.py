"""The model under DDP: two ranks with half a batch each have the gradient of one process with the whole of it."""

import copy
import functools
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from basicsr.utils import set_random_seed
from basicsr.utils.dist_util import get_dist_info

from facd_basicsr.engine.launch import exit_now
from facd_basicsr.models import FACDModel
from facd_basicsr.models.safe_model import build_model
from facd_basicsr.options import parse_options, parser

N, RANKS = 6, 2
LOSSES = {
    'FACDLoss': {'type': 'FACDLoss', 'lambda': 4, 'negatives': 'per_anchor'},
    'InfoNCELoss': {'type': 'InfoNCELoss', 'adaptive': True},
}

STARTED = {'init_r': 'first_batch'}


def batch() -> dict[str, torch.Tensor]:
    """Images of different colors, so that now the teacher is closer to one, now the student."""
    generator = torch.Generator().manual_seed(0)
    made = {'generator': generator, 'dtype': torch.float64}

    def images(size: int) -> torch.Tensor:
        colors = torch.rand(N, 3, 1, 1, **made)
        return colors + 0.2 * torch.rand(N, 3, size, size, **made)

    return {'lq': images(12), 'gt': images(24)}


NEAREST = {'teacher_target': 'nearest'}
CLIPPED = {'clip_grad_norm': 0.5}
QUANTIZED = {'quantize': {'decay': 0.5}}
FADED = {'distill_opt': {**LOSSES['FACDLoss'], 'lambda': {'start': 4, 'end': 0, 'over': 2}}}
IN_PARTS = {'accum_iter': 3, 'log_gradient_share': 1, **STARTED}


def step(
    option_file: Path,
    loss: str,
    share: slice,
    execution: dict | None = None,
    train: dict | None = None,
    teachers: int = 1,
    iterations: int = 1,
) -> dict:
    """Iterations on a share of the batch: the last one's gradients and what the log shows, in float64."""
    opt = parse_options(parser().parse_args(['-opt', str(option_file)]), is_train=True, root=option_file.parent)
    opt['rank'], opt['world_size'] = get_dist_info()  # the group exists already, and serves several models
    opt['dist'] = opt['world_size'] > 1
    set_random_seed(opt['manual_seed'] + opt['rank'])
    opt['train'] |= {'distill_opt': copy.deepcopy(LOSSES[loss]), **(execution or {}), **(train or {})}
    opt['teacher'] |= execution or {}
    if teachers == 2:
        opt['teacher'] = [opt['teacher'], copy.deepcopy(opt['teacher'])]
        opt['teacher'][1]['network']['res_scale'] = 0.1
    torch.set_default_dtype(torch.float64)
    try:
        model: FACDModel = build_model(opt)
        model.feed_data({key: images[share] for key, images in batch().items()})
        for iteration in range(1, iterations + 1):
            model.optimize_parameters(iteration)
    finally:
        torch.set_default_dtype(torch.float32)
    nets = {'student': model.net_g, 'regressors': model.net_r}
    gradients = {key: [p.grad for p in model.get_bare_model(net).parameters()] for key, net in nets.items()}
    weights = [p.detach() for p in model.get_bare_model(model.net_r).parameters()]
    ranges = model.quantization and model.quantization.entry()
    return {**gradients, 'weights of regressors': weights, 'log': model.get_current_log(), 'ranges': ranges}


def worker(option_file: Path) -> None:
    """One rank's share of the work; it is started from this file."""
    dist.init_process_group('gloo')
    rank = dist.get_rank()
    share = slice(rank * N // RANKS, (rank + 1) * N // RANKS)
    found = {loss: step(option_file, loss, share) for loss in LOSSES}
    found['clipped'] = step(option_file, 'FACDLoss', share, train=CLIPPED)
    found['in parts'] = step(option_file, 'FACDLoss', share, train=IN_PARTS)
    found['quantized'] = step(option_file, 'FACDLoss', share, train=QUANTIZED, iterations=3)
    found['faded'] = step(option_file, 'FACDLoss', share, train=FADED, iterations=3)
    found['two teachers'] = step(option_file, 'FACDLoss', share, train=NEAREST, teachers=2)
    found['started'] = step(option_file, 'FACDLoss', share, STARTED)
    torch.compile = functools.partial(torch.compile, backend='aot_eager')  # captures graphs, needs no compiler
    found['compiled'] = step(option_file, 'FACDLoss', share, {'compile': {}, 'channels_last': True})
    torch.save(found, option_file.parent / f'{rank}.pth')
    exit_now(0)


@pytest.fixture(scope='module')
def option_file(data: Path, teacher_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from conftest import tiny_train_opt, write_yml  # not at the top: the workers have no pytest's path

    opt = tiny_train_opt(data, teacher_weights)
    opt['datasets']['train']['batch_size_per_gpu'] = N // RANKS
    opt['taps'][2] = {'student': 'conv_after_body:clone', 'teacher': 'upsample:input'}
    return write_yml(opt, tmp_path_factory.mktemp('ranks') / 'opt.yml')


@pytest.fixture(scope='module')
def ranks(option_file: Path) -> list[dict]:
    from processes import run_ranks

    done = run_ranks(__file__, option_file, cwd=option_file.parent, size=RANKS)
    assert done.returncode == 0, done.stderr
    return [torch.load(option_file.parent / f'{rank}.pth', weights_only=True) for rank in range(RANKS)]


def test_regressors_start_with_the_same_bits_on_both_ranks_and_the_values_of_one_process(ranks, option_file):
    expected = step(option_file, 'FACDLoss', slice(None), STARTED)
    for rank in ranks:
        torch.testing.assert_close(rank['started']['regressors'], expected['regressors'], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(
            rank['started']['weights of regressors'], expected['weights of regressors'], rtol=1e-6, atol=0
        )
    assert all(map(torch.equal, *(rank['started']['weights of regressors'] for rank in ranks)))
    as_built = step(option_file, 'FACDLoss', slice(None))['weights of regressors']
    assert not torch.allclose(as_built[0], expected['weights of regressors'][0])


def test_the_students_gradient_once_lambda_has_faded_is_that_of_one_process_and_regressors_have_none(
    ranks, option_file
):
    expected = step(option_file, 'FACDLoss', slice(None), train=FADED, iterations=3)
    for rank in ranks:
        torch.testing.assert_close(rank['faded']['student'], expected['student'], rtol=1e-9, atol=1e-12)
        assert {*rank['faded']['regressors'], *expected['regressors']} == {None}


@pytest.mark.parametrize('case', [*LOSSES, 'compiled', 'two teachers'])
def test_student_and_regressors_of_two_ranks_have_the_gradient_of_one_process(ranks, option_file, case):
    two = {'train': NEAREST, 'teachers': 2} if case == 'two teachers' else {}
    expected = step(option_file, case if case in LOSSES else 'FACDLoss', slice(None), **two)
    assert not two or 0 < expected['log']['teacher_1'] < 1
    assert 0 < expected['log']['alpha'] < 1  # the gate lets some samples through, and some not
    for rank in ranks:
        for net in ('student', 'regressors'):
            assert all(gradient.dtype == torch.float64 and gradient.abs().sum() > 0 for gradient in expected[net])
            torch.testing.assert_close(rank[case][net], expected[net], rtol=1e-9, atol=1e-12)
    assert ranks[0][case]['log'] == pytest.approx(expected['log'], rel=1e-9)


def test_two_ranks_clip_as_one_process_each_network_by_its_norm(ranks, option_file):
    expected = step(option_file, 'FACDLoss', slice(None), train=CLIPPED)
    plain = step(option_file, 'FACDLoss', slice(None))
    for net in ('student', 'regressors'):
        norms = [torch.stack([gradient.norm() for gradient in found[net]]).norm() for found in (plain, expected)]
        assert norms == [pytest.approx(norms[0].item()), pytest.approx(min(0.5, norms[0].item()), rel=1e-5)]
        for rank in ranks:
            torch.testing.assert_close(rank['clipped'][net], expected[net], rtol=1e-9, atol=1e-12)


def test_two_ranks_with_batches_in_parts_have_gradients_terms_and_shares_of_one_process_with_one_batch(
    ranks, option_file
):
    expected = step(option_file, 'FACDLoss', slice(None), train={**IN_PARTS, 'accum_iter': 1})
    for rank in ranks:
        for net in ('student', 'regressors'):
            torch.testing.assert_close(rank['in parts'][net], expected[net], rtol=1e-6, atol=1e-9)
    assert {'share_sr', 'share_facd'} < expected['log'].keys()
    assert ranks[0]['in parts']['log'] == pytest.approx(expected['log'], rel=1e-6)


def test_two_ranks_have_the_ranges_and_the_gradient_of_one_quantized_process(ranks, option_file):
    expected = step(option_file, 'FACDLoss', slice(None), train=QUANTIZED, iterations=3)
    for rank in ranks:
        torch.testing.assert_close(rank['quantized']['ranges'], expected['ranges'], rtol=1e-6, atol=1e-9)
        for net in ('student', 'regressors'):
            torch.testing.assert_close(rank['quantized'][net], expected[net], rtol=1e-6, atol=1e-9)
    assert torch.equal(*(torch.stack([*rank['quantized']['ranges']['ranges'].values()]) for rank in ranks))


if __name__ == '__main__':
    worker(Path(sys.argv[1]))
