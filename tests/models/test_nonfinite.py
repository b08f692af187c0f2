"""Steps whose loss or gradient is not finite, in models as BasicSR writes them and in those that call the guard."""

import copy
import logging
import sys
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import facd_basicsr  # noqa: F401  before basicsr, in the workers too

# isort: split
from basicsr.models.base_model import BaseModel
from basicsr.utils import get_root_logger

from facd_basicsr.errors import UserError
from facd_basicsr.models import nonfinite
from facd_basicsr.models.nonfinite import NonFiniteGuard, tie_gradient
from facd_basicsr.models.safe_model import SafeSRModel
from facd_basicsr.runtime.execution import Execution

NAN, INF = float('nan'), float('inf')


class Plain(BaseModel):
    """Two convolutions, trained as BasicSR's SRModel trains."""

    def __init__(self, fused: bool | None = None) -> None:
        rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        super().__init__(
            {'num_gpu': 0, 'is_train': True, 'dist': world_size > 1, 'rank': rank, 'world_size': world_size}
        )
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
        self.net_g = DistributedDataParallel(net) if self.opt['dist'] else net
        self.cri_pix = nn.L1Loss()
        self.optimizers = [torch.optim.Adam(self.net_g.parameters(), 0.01, fused=fused)]

    def feed_data(self, data: dict) -> None:
        self.lq, self.gt = data['lq'], data['gt']

    def optimize_parameters(self, current_iter: int) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.terms = OrderedDict(l_pix=self.cri_pix(self.net_g(self.lq), self.gt))
        self.terms['l_percep'] = self.terms['l_pix'].detach() * 0 + 1  # this rank's, and finite only if l_pix is
        self.terms['l_style'] = self.terms['l_pix'].new_ones(())
        self.terms['l_pix'].backward()
        for optimizer in self.optimizers:
            optimizer.step()
        self.log_dict = self.reduce_loss_dict(self.terms)


class Calling(Plain):
    """The same, with the step of SRModel and FACDModel, which calls the guard."""

    _minimize = SafeSRModel._minimize
    _execution_g = Execution.of({})
    ema_decay = 0

    def __init__(self, fused: bool | None = None, scale: float | None = None) -> None:
        super().__init__(fused)
        self.optimizer_g = self.optimizers[0]
        self.scaler = torch.amp.GradScaler('cpu', init_scale=scale or 1.0, enabled=scale is not None)

    def optimize_parameters(self, current_iter: int) -> None:
        l_pix = self.cri_pix(self.net_g(self.lq), self.gt)
        self._minimize({'l_pix': l_pix, 'l_percep': l_pix.detach() * 0 + 1, 'l_style': l_pix.new_ones(())})


Build = Callable[[], Plain]


@pytest.fixture(params=[Plain, Calling, partial(Calling, True)], ids=['hooks', 'calling', 'late'])
def build(request: pytest.FixtureRequest) -> Build:
    return request.param


both_kernels = pytest.mark.parametrize('fused', [None, True])


def watch(model: Plain, *args: object, **options: object) -> NonFiniteGuard:
    """The model's guard, as on a GPU: late where it can be."""
    networks = {'net_g': model.get_bare_model(model.net_g)}
    model.guard = NonFiniteGuard(networks, *args, **options, late=True)
    if not isinstance(model, Calling):
        model.guard.attach_hooks(model.optimizers, [model.cri_pix], model.get_current_log)
    return model.guard


def batch(gt: float = 0.5, rank: int = 0) -> dict:
    """Two samples; the first pixel of GT is as given."""
    generator = torch.Generator().manual_seed(rank)
    data = {key: torch.rand(2, 3, 4, 4, generator=generator) for key in ('lq', 'gt')}
    data['gt'][0, 0, 0, 0] = gt
    return data | {'lq_path': ['lq/a.png', 'lq/b.png'], 'gt_path': [f'gt/{rank}{name}.png' for name in 'ab']}


def train(model: BaseModel, guard: NonFiniteGuard, *batches: dict, first: int = 1) -> None:
    for current_iter, data in enumerate(batches, start=first):
        model.feed_data(data)
        model.optimize_parameters(current_iter)
        guard.after_step(data, current_iter)
    guard.settle()


def state(model: BaseModel) -> list[Tensor]:
    """Copies of all that run is to change: weights, and the optimizer's step counts and moments."""
    moments = [value for values in model.optimizers[0].state.values() for value in values.values()]
    return [value.detach().clone() for value in (*model.net_g.state_dict().values(), *moments)]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))


class Lines(logging.Handler):
    """What is logged from here on."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        get_root_logger().addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(f'{record.levelname}: {record.getMessage()}')


@pytest.fixture
def lines():
    handler = Lines()
    yield handler.found
    get_root_logger().removeHandler(handler)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / 'experiment' / 'nonfinite'


def test_a_loss_that_is_not_finite_has_no_finite_gradient_and_another_its_own():
    x = torch.tensor([3.0, 1 / 3], requires_grad=True)
    for loss in (x.pow(2).sum(), -x.sum(), x.sum() * 0):
        tied = tie_gradient(loss)
        assert torch.equal(tied, loss)
        assert torch.equal(*(torch.autograd.grad(y, x, retain_graph=True)[0] for y in (tied, loss)))
    for target in (INF, -INF, NAN):
        loss = (x - target).abs().sum()
        assert torch.autograd.grad(loss, x, retain_graph=True)[0].isfinite().all()
        assert torch.autograd.grad(tie_gradient(loss), x)[0].isnan().all()


@pytest.mark.parametrize('gt', [NAN, INF])
def test_a_skipped_step_changes_no_bit_of_weights_and_optimizer(build, folder, lines, gt):
    model = build()
    guard = watch(model, folder=folder)
    train(model, guard, batch())
    before = state(model)
    train(model, guard, batch(gt), first=2)
    assert len(before) == 4 + 4 * 3 and same(before, state(model))
    train(model, guard, batch(), first=3)
    assert not same(before, state(model)) and all(torch.isfinite(value).all() for value in state(model))
    assert len(lines) == 1


def test_a_run_of_good_steps_is_bit_identical_to_one_without_a_guard_and_leaves_no_trace(build, folder, lines):
    model = build()
    models = model, Plain(model.optimizers[0].param_groups[0]['fused'])
    guard = watch(model, folder=folder)
    train(models[0], guard, batch(), batch())
    guard.end()
    for _ in range(2):
        models[1].feed_data(batch())
        models[1].optimize_parameters(1)
    assert same(state(models[0]), state(models[1]))
    assert lines == [] and not folder.exists() and guard.state_dict() == {'in_a_row': 0, 'skipped': 0}


def test_the_line_names_iteration_terms_and_files_and_the_batch_is_saved_where_it_says(build, folder, lines):
    model = build()
    data = batch(NAN)
    train(model, watch(model, folder=folder), data, first=7)
    path = folder / 'iter_7_rank0.pth'
    assert lines == [
        'WARNING: Iteration 7: l_pix, l_percep, gt not finite; step skipped, 1 in a row, 1 in all; '
        f'files: gt/0a.png, gt/0b.png; batch saved as {path}'
    ]
    saved = torch.load(path, weights_only=True)
    assert saved.keys() == {'iteration', 'terms', 'lq', 'gt', 'lq_path', 'gt_path'}
    assert saved['iteration'] == 7 and saved['lq_path'] == data['lq_path'] and saved['gt_path'] == data['gt_path']
    assert torch.equal(saved['lq'], data['lq']) and torch.equal(saved['gt'].isnan(), data['gt'].isnan())
    assert saved['terms']['l_style'] == 1 and saved['terms']['l_pix'] != saved['terms']['l_pix']


def test_where_all_terms_are_finite_the_first_parameters_whose_gradients_are_not_are_named(build, folder, lines):
    model = build()
    for parameter in model.net_g.parameters():
        parameter.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([1]), INF))
    train(model, watch(model, folder=folder), batch())
    what = 'gradient of net_g.0.weight, net_g.0.bias, net_g.1.weight and 1 more not finite'
    assert lines[0].startswith(f'WARNING: Iteration 1: {what}; ')


def test_finite_gradients_count_as_such_though_their_norm_overflows(build, folder, lines):
    model = build()
    model.net_g[1].bias.register_hook(lambda gradient: torch.full_like(gradient, 3e38))
    before = state(model)
    train(model, watch(model, folder=folder), batch())
    assert lines == [] and not same(before, state(model))


def test_a_good_step_reads_one_value_back_and_an_optimizer_without_gradients_none(folder, monkeypatch):
    model = Plain()
    parameters = list(model.net_g.parameters())
    model.optimizers = [torch.optim.SGD(parameters, 0.1), torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)]
    guard = watch(model, folder=folder)
    read = []
    item, truth = Tensor.item, Tensor.__bool__
    model.reduce_loss_dict = dict  # BasicSR's own reads every term
    monkeypatch.setattr(Tensor, 'item', lambda tensor: read.append('item') or item(tensor))
    monkeypatch.setattr(Tensor, '__bool__', lambda tensor: read.append('bool') or truth(tensor))
    train(model, guard, batch())
    assert read == ['item']


@pytest.mark.parametrize('scale', [None, 2.0**16])
@pytest.mark.parametrize('norm', [None, 1e-3])
def test_a_late_reader_reads_nothing_back_in_a_good_step(scale, norm, folder, monkeypatch):
    model = Calling(True, scale)
    guard = watch(model, folder=folder, clip_grad_norm=norm)
    read = []
    for name in ('item', 'tolist', '__bool__', '__float__'):
        own = getattr(Tensor, name)
        monkeypatch.setattr(Tensor, name, lambda tensor, own=own, name=name: read.append(name) or own(tensor))
    for current_iter in range(1, 4):
        model.feed_data(batch())
        model.optimize_parameters(current_iter)
        assert read == []
        guard.after_step(batch(), current_iter)
        assert read == [] if current_iter == 1 else read == ['tolist']  # of the step before
        read.clear()


def test_a_late_reader_reports_a_step_when_the_next_is_queued_but_it_is_skipped_at_once(folder, lines):
    model = Calling(True)
    guard = watch(model, folder=folder)
    train(model, guard, batch())
    before = state(model)
    for current_iter, data in ((2, batch(NAN)), (3, batch(rank=1))):
        assert lines == []
        model.feed_data(data)
        model.optimize_parameters(current_iter)
        guard.after_step(data, current_iter)
        assert same(before, state(model)) == (current_iter == 2)
    assert len(lines) == 1 and lines[0].startswith('WARNING: Iteration 2: l_pix, l_percep, gt not finite; ')
    assert 'files: gt/0a.png' in lines[0] and (folder / 'iter_2_rank0.pth').is_file()
    guard.settle()
    assert guard.state_dict() == {'in_a_row': 0, 'skipped': 1} and len(lines) == 1


def test_an_optimizer_that_can_not_skip_by_itself_is_read_at_once(folder, lines):
    model = Calling(fused=False)
    guard = watch(model, folder=folder)
    model.feed_data(batch(NAN))
    model.optimize_parameters(1)
    guard.after_step(batch(NAN), 1)
    assert len(lines) == 1


def test_what_a_fused_optimizer_was_told_of_one_step_is_gone_after_it(folder):
    model = Calling(True)
    train(model, watch(model, folder=folder), batch(NAN))
    assert getattr(model.optimizers[0], 'found_inf', None) is None
    assert all(parameter.grad is not None for parameter in model.net_g.parameters())


def test_a_step_of_two_optimizers_counts_once(folder, lines):
    model = Plain()
    first, second = model.net_g
    model.optimizers = [torch.optim.Adam(first.parameters()), torch.optim.Adam(second.parameters())]
    train(model, guard := watch(model, folder=folder), batch(NAN))
    assert guard.state_dict() == {'in_a_row': 1, 'skipped': 1} and len(lines) == 1


def test_so_many_in_a_row_are_fatal_and_a_good_step_begins_the_count_anew(build, folder, lines):
    model = build()
    guard = watch(model, 'skip', 3, folder=folder)
    train(model, guard, batch(NAN), batch(NAN), batch(), batch(NAN), batch(NAN))
    assert guard.state_dict() == {'in_a_row': 2, 'skipped': 4}
    with pytest.raises(UserError) as error:
        train(model, guard, batch(NAN), first=6)
    assert str(error.value) == (
        'train.nonfinite.limit: 3, and so many steps in a row were skipped, the last in iteration 6: '
        'l_pix, l_percep, gt not finite; accepted: finite losses and gradients, or a larger limit'
    )
    assert len(lines) == 5 and '3 in a row, 5 in all' in lines[-1]


def test_a_resumed_run_continues_the_count(build, folder, lines):
    model, resumed = build(), build()
    train(model, guard := watch(model, limit=2, folder=folder), batch(NAN))
    later = watch(resumed, limit=2, folder=folder)
    later.load_state_dict(copy.deepcopy(guard.state_dict()))
    with pytest.raises(UserError, match=r'train.nonfinite.limit: 2, .* iteration 2: '):
        train(resumed, later, batch(NAN), first=2)
    later.end()
    assert lines[-1] == 'WARNING: Steps skipped, with losses or gradients not finite: 2.'


def test_fatal_ends_the_training_in_one_line_once_the_files_are_logged_and_the_batch_is_saved(build, folder, lines):
    model = build()
    with pytest.raises(UserError) as error:
        train(model, watch(model, 'fatal', folder=folder), batch(), batch(NAN))
    message = 'train.nonfinite.action: fatal, and in iteration 2 l_pix, l_percep, gt not finite'
    assert str(error.value).startswith(message) and '; accepted: skip' in str(error.value)
    assert '\n' not in str(error.value)
    assert 'gt/0a.png' in lines[0] and (folder / 'iter_2_rank0.pth').is_file()


def test_batches_are_saved_up_to_a_number_which_the_line_says(build, folder, lines, monkeypatch):
    monkeypatch.setattr(nonfinite, 'SAVED_BATCHES', 2)
    model = build()
    train(model, watch(model, folder=folder), *[batch(NAN)] * 3)
    assert sorted(path.name for path in folder.iterdir()) == ['iter_1_rank0.pth', 'iter_2_rank0.pth']
    assert lines[2].endswith('batch not saved: 2 are')


def test_a_batch_that_can_not_be_saved_does_not_end_the_training(build, folder, lines):
    folder.parent.mkdir()
    folder.write_text('a file where the folder should be')
    model = build()
    train(model, watch(model, folder=folder), batch(NAN), batch())
    assert 'batch not saved: ' in lines[0] and str(folder) in lines[0]


@pytest.mark.parametrize('fused', [None, True])
@pytest.mark.parametrize('scale', [None, 2.0**16])
@pytest.mark.parametrize(('norm', 'factor'), [(2.5, 0.5), (10.0, 1.0)])
def test_each_network_is_clipped_by_its_own_norm_after_the_loss_scale_is_taken_out(folder, fused, scale, norm, factor):
    model = Calling(fused, scale)
    first, second = model.net_g
    model.optimizers = [torch.optim.SGD(model.net_g.parameters(), 1.0, fused=fused)]
    for parameter, gradient in zip(model.net_g.parameters(), (3.0, 4.0, 0.6, 0.8)):  # norms 5 and 1
        parameter.grad = torch.zeros_like(parameter)
        parameter.grad.view(-1)[0] = gradient * (scale or 1)
    before = [parameter.detach().clone() for parameter in model.net_g.parameters()]
    guard = NonFiniteGuard({'net_g': first, 'net_r': second}, folder=folder, clip_grad_norm=norm)
    model.scaler.scale(torch.ones(()))  # as before a backward
    guard.step(model.optimizers[0], model.scaler, {})
    steps = [(old - new).view(-1)[0].item() for old, new in zip(before, model.net_g.parameters())]
    assert steps == pytest.approx([3 * factor, 4 * factor, 0.6, 0.8], rel=1e-5)


@both_kernels
@pytest.mark.parametrize('scale', [None, 2.0**16])
def test_where_gradients_are_clipped_only_those_that_were_not_finite_are_named(fused, scale, folder, lines):
    model = Calling(fused, scale)
    model.net_g[1].bias.register_hook(lambda gradient: gradient * INF)
    before = state(model)[:4]
    train(model, watch(model, folder=folder, clip_grad_norm=1e-3), batch())
    assert same(before, state(model)[:4])
    if scale is None:  # a scaler's search for its scale is not reported
        assert lines[0].startswith('WARNING: Iteration 1: gradient of net_g.1.bias not finite; ')


@both_kernels
def test_steps_by_which_a_scaler_finds_its_scale_are_not_reported_nor_fatal_by_themselves(fused, folder, lines):
    model = Calling(fused, 2.0**127)
    for parameter in model.net_g.parameters():
        parameter.register_hook(lambda gradient: torch.where(gradient.abs().max() > 2.0**120, INF, gradient))
    guard = watch(model, 'fatal', 100, folder=folder)
    before = state(model)
    train(model, guard, batch())
    weights, moments = state(model)[:4], state(model)[4:]  # a fused optimizer makes these, of zeros
    assert model.scaler.get_scale() == 2.0**126 and same(before, weights) and not any(map(torch.any, moments))
    train(model, guard, *[batch()] * 9)
    assert not same(before, state(model)[:4])
    assert lines == [] and guard.state_dict() == {'in_a_row': 0, 'skipped': 0}


@both_kernels
def test_a_scaler_that_finds_no_scale_is_fatal(fused, folder, lines):
    model = Calling(fused, 4.0)
    model.net_g[1].bias.register_hook(lambda gradient: gradient * INF)
    guard = watch(model, limit=2, folder=folder)
    with pytest.raises(UserError) as error:
        train(model, guard, batch(), batch())
    assert 'iteration 2: gradient not finite in float16 at loss scales down to 1; accepted: ' in str(error.value)
    assert 'train.precision: bf16 or fp32' in str(error.value) and '\n' not in str(error.value)
    assert lines == []


@both_kernels
def test_a_term_that_is_not_finite_is_reported_although_a_scaler_has_skipped_the_step(fused, folder, lines):
    model = Calling(fused, 2.0**16)
    guard = watch(model, folder=folder)
    train(model, guard, batch(NAN), batch())
    assert len(lines) == 1 and lines[0].startswith('WARNING: Iteration 1: l_pix, l_percep, gt not finite; step skipped')
    assert guard.state_dict() == {'in_a_row': 0, 'skipped': 1}


MODELS = {
    'hooks': Plain,
    'calling': Calling,
    'scaling': partial(Calling, None, 2.0**16),
    'late': partial(Calling, True),
    'late and scaling': partial(Calling, True, 2.0**16),
}


def worker(folder: Path, rank: int) -> None:
    """One of two ranks. Some batches of the second one are not finite."""
    lines = Lines().found  # before the process group, as in train.py: BasicSR's logger then takes itself for rank 0's
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    results = {}
    for name, build in MODELS.items():
        model = build()
        guard = watch(model, limit=2, folder=folder / name)
        good, bad = batch(rank=rank), batch(NAN if rank == 1 else 0.5, rank)
        train(model, guard, good, good)
        before = state(model)
        train(model, guard, bad, first=3)
        kept = same(before, state(model))
        train(model, guard, good, bad, first=4)
        try:
            train(model, guard, bad, first=6)
            message = ''
        except UserError as error:
            message = str(error)
        results[name] = {'kept': kept, 'state': state(model), 'lines': lines.copy(), 'message': message}
        lines.clear()
    torch.save(results, folder / f'{rank}.pth')
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    from conftest import run  # not at the top: the workers import this file without pytest's path

    folder = tmp_path_factory.mktemp('ranks')
    with ThreadPoolExecutor() as pool:
        for done in pool.map(lambda rank: run(__file__, folder, str(rank), cwd=folder), range(2)):
            assert done.returncode == 0, done.stderr
    return folder, [torch.load(folder / f'{rank}.pth', weights_only=True) for rank in range(2)]


@pytest.mark.parametrize('name', MODELS)
def test_a_nan_on_one_rank_is_skipped_on_both_and_both_end_alike(ranks, name):
    _, (first, second) = ranks
    for rank in (first, second):
        assert rank[name]['kept']
        assert rank[name]['message'].startswith('train.nonfinite.limit: 2, and so many steps in a row')
    assert same(first[name]['state'], second[name]['state'])


@pytest.mark.parametrize('name', MODELS)
def test_the_first_rank_says_which_rank_had_it_and_both_save_their_batch(ranks, name):
    folder, (first, second) = ranks
    terms = 'l_pix, l_percep, gt'
    here = 'gt' if name == 'hooks' else terms
    assert first[name]['lines'][0] == (
        f'WARNING: Iteration 3: {terms} not finite; step skipped, 1 in a row, 1 in all; '
        f'files of rank 0: gt/0a.png, gt/0b.png; files of rank 1 ({here}): gt/1a.png, gt/1b.png; '
        f'batch saved as {folder / name}/iter_3_rank*.pth'
    )
    assert len(first[name]['lines']) == 3 and second[name]['lines'] == []
    for rank in range(2):
        saved = torch.load(folder / name / f'iter_3_rank{rank}.pth', weights_only=True)
        assert saved['gt_path'] == [f'gt/{rank}a.png', f'gt/{rank}b.png']


if __name__ == '__main__':
    worker(Path(sys.argv[1]), int(sys.argv[2]))
