"""FACDModel's and SRModel's step on a GPU."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network
from basicsr.utils import get_root_logger, set_random_seed
from conftest import changed, train_options, with_two_teachers
from states import save_vgg

from facd_basicsr.data.loaders import batches, build_loaders
from facd_basicsr.models.safe_model import build_model
from facd_basicsr.runtime.execution import tf32_of
from facd_basicsr.runtime.rng import restore_rng_state, rng_state
from facd_basicsr.tools.check import memory_estimate

pytestmark = pytest.mark.gpu

EXECUTIONS = {
    'fp32': {'precision': 'fp32'},
    'tf32': {'precision': 'tf32'},
    'bf16': {'precision': 'bf16'},
    'fp16': {'precision': 'fp16'},
    'fp32, channels_last': {'precision': 'fp32', 'channels_last': True},
    'bf16, channels_last': {'precision': 'bf16', 'channels_last': True},
    'fp32, compiled': {'precision': 'fp32', 'compile': {}},
    'bf16, channels_last, CUDA graphs': {
        'precision': 'bf16',
        'channels_last': True,
        'compile': {'mode': 'reduce-overhead'},
    },
}
# relative, of a term after four steps from the same weights; bfloat16 has 8 bits
TOLERANCES = {'fp32': 1e-3, 'tf32': 5e-3, 'bf16': 5e-2, 'fp16': 1e-2}


@pytest.fixture(autouse=True)
def own_tf32():
    with tf32_of(None):
        yield


@pytest.fixture
def parsed(tmp_path: Path):
    def _parsed(opt: dict, gpus: int = 1) -> dict:
        return train_options({**opt, 'num_gpu': gpus}, tmp_path)

    return _parsed


def run_as(opt: dict, execution: dict) -> dict:
    """The options with all networks run so."""
    opt = changed(opt, 'train', {**opt['train'], **execution})
    if isinstance(opt.get('teacher'), list):
        return changed(opt, 'teacher', [own | execution for own in opt['teacher']])
    return changed(opt, 'teacher', {**opt['teacher'], **execution}) if 'teacher' in opt else opt


def alone(opt: dict) -> dict:
    """SRModel's options of a distillation's."""
    opt = {key: value for key, value in opt.items() if key not in ('teacher', 'taps', 'network_r')}
    train = {key: value for key, value in opt['train'].items() if key != 'distill_opt'}
    return opt | {'model_type': 'SRModel', 'train': train | {'pixel_opt': {'type': 'L1Loss'}}}


def random_batch(n: int = 3, lq: int = 12) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    gt = torch.rand(n, 3, 2 * lq, 2 * lq, generator=generator)
    batch = {'lq': torch.nn.functional.avg_pool2d(gt, 2), 'gt': gt}
    return {key: value.pin_memory() for key, value in batch.items()}


def terms(opt: dict, steps: int = 4) -> dict[str, float]:
    """The loss's after some steps on one batch from weights that depend on the seed alone."""
    set_random_seed(0)
    model = build_model(opt)
    for iteration in range(1, steps + 1):
        model.update_learning_rate(iteration)
        model.feed_data(random_batch())
        model.optimize_parameters(iteration)
    return dict(model.get_current_log())


@pytest.mark.parametrize('execution', EXECUTIONS.values(), ids=EXECUTIONS)
@pytest.mark.parametrize('method', ['FACD', 'alone'])
def test_every_way_to_run_gives_the_terms_of_the_cpu_in_float32(parsed, train_opt, method, execution):
    opt = alone(train_opt) if method == 'alone' else train_opt
    expected = terms(parsed(run_as(opt, {'precision': 'fp32'}), gpus=0))
    found = terms(parsed(run_as(opt, execution)))
    minimized = [name for name in expected if name.startswith('l_')]
    assert minimized
    for name in minimized:
        assert found[name] == pytest.approx(expected[name], rel=TOLERANCES[execution['precision']]), name


@pytest.fixture
def opt_of(train_opt: dict, tmp_path: Path) -> Callable[[str], dict]:
    def of_images(loss: dict) -> dict:
        opt = {key: value for key, value in train_opt.items() if key not in ('taps', 'network_r')}
        return changed(opt, 'train.distill_opt', loss)

    def _opt(method: str) -> dict:
        gan_opt = {'type': 'GANLoss', 'gan_type': 'vanilla', 'relativistic': True}
        gan = {'gan_opt': gan_opt, 'optim_d': {'type': 'Adam', 'lr': 1e-4}}
        vgg = {'vgg_weights': str(save_vgg(tmp_path / 'vgg.pth', 1)), 'layer_weights': [1]}
        opts = {
            'FACD': lambda: train_opt,
            'FACD in parts': lambda: changed(train_opt, 'train.accum_iter', 3),
            'FACD, two teachers': lambda: with_two_teachers(train_opt),
            'FAKD': lambda: changed(
                {key: value for key, value in train_opt.items() if key != 'network_r'},
                'train.distill_opt',
                {'type': 'FAKDLoss'},
            ),
            'DUKD': lambda: of_images({'type': 'DUKDLoss', 'zoom_out': True}),
            'ECO': lambda: of_images({'type': 'ECOLoss', 'alpha': 0.5}),
            'DCKD': lambda: of_images({'type': 'DCKDLoss', 'every': 3, **vgg}),
            'gated': lambda: of_images({'type': 'L1Loss', 'target': 'gated'}),
            'GAN': lambda: (
                changed(train_opt, 'train', train_opt['train'] | gan)
                | {'network_d': {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 4}}
            ),
            'quantized': lambda: changed(train_opt, 'train.quantize', {}),
            'alone': lambda: alone(train_opt),
        }
        return opts[method]()

    return _opt


WAITED = ('FACD', 'FACD in parts', 'FACD, two teachers', 'FAKD', 'DUKD', 'ECO', 'DCKD', 'gated', 'GAN', 'alone')


@pytest.mark.parametrize(
    ('method', 'execution'),
    [
        *(
            (method, execution)
            for method in WAITED
            for execution in ('fp32', 'bf16, channels_last', 'fp16', 'bf16, channels_last, CUDA graphs')
        ),
        ('quantized', 'fp32'),
        ('quantized', 'bf16, channels_last'),
    ],
)
def test_twenty_steps_wait_for_nothing(parsed, opt_of, method, execution):
    model = build_model(parsed(run_as(opt_of(method), EXECUTIONS[execution])))

    def steps(first: int, last: int) -> None:
        for iteration in range(first, last):
            model.update_learning_rate(iteration)
            model.feed_data(batch)
            model.optimize_parameters(iteration)
            model.guard.after_step(batch, iteration)

    batch = random_batch()
    steps(1, 5)  # what is compiled or recorded, is
    torch.cuda.set_sync_debug_mode('error')
    try:
        steps(5, 25)
    finally:
        torch.cuda.set_sync_debug_mode('default')
    model.guard.settle()


@pytest.mark.parametrize('precision', ['fp32', 'bf16', 'fp16'])
def test_a_step_that_is_not_finite_changes_nothing_and_is_reported_after_the_next(
    parsed, train_opt, caplog, monkeypatch, precision
):
    monkeypatch.setattr(get_root_logger(), 'propagate', True)
    model = build_model(parsed(run_as(train_opt, {'precision': precision})))
    assert model.optimizer_g.param_groups[0]['fused']
    good = random_batch() | {'gt_path': ['good.png']}
    bad = {**good, 'gt': good['gt'].clone().fill_(float('nan')), 'gt_path': ['bad.png']}

    def step(batch: dict, iteration: int) -> None:
        model.feed_data(batch)
        model.optimize_parameters(iteration)
        model.guard.after_step(batch, iteration)

    step(good, 1)
    before = {name: value.clone() for name, value in model.net_g.state_dict().items()}
    steps_before = {int(state['step']) for state in model.optimizer_g.state.values()}
    step(bad, 2)
    assert all(torch.equal(value, before[name]) for name, value in model.net_g.state_dict().items())
    assert {int(state['step']) for state in model.optimizer_g.state.values()} == steps_before
    assert 'bad.png' not in caplog.text
    step(good, 3)
    assert 'Iteration 2: l_sr' in caplog.text
    assert 'bad.png' in caplog.text
    assert not all(torch.equal(value, before[name]) for name, value in model.net_g.state_dict().items())


@pytest.mark.parametrize('workers', [0, 2])
def test_batches_copied_ahead_are_those_of_the_loader(parsed, train_opt, workers):
    train_opt['datasets']['train'] |= {'num_worker_per_gpu': workers, 'pin_memory': True, 'dataset_enlarge_ratio': 8}
    found = {}
    for mode in (None, 'cpu', 'cuda') if workers else (None, 'cuda'):
        opt = parsed(changed(train_opt, 'datasets.train.prefetch_mode', mode))
        loaders = build_loaders(opt)
        loaders.sampler.set_position(0, 0)
        found[mode] = list(batches(loaders.train, opt))
        del loaders  # an LMDB is opened once in a process
    assert len(found[None]) > 3
    assert found[None][0]['lq'].is_pinned()
    for mode, items in found.items():
        assert len(items) == len(found[None]), mode
        assert all(batch['lq'].is_cuda == (mode == 'cuda') for batch in items)
        for batch, expected in zip(items, found[None]):
            assert batch['gt_path'] == expected['gt_path']
            assert torch.equal(batch['lq'].cpu(), expected['lq'])
            assert torch.equal(batch['gt'].cpu(), expected['gt'])


def test_random_numbers_of_the_gpu_go_on_where_they_were():
    torch.rand(3, device='cuda')
    state = rng_state()
    expected = torch.rand(3, device='cuda')
    torch.rand(5, device='cuda')
    restore_rng_state(state)
    assert torch.equal(torch.rand(3, device='cuda'), expected)


PAPER = {'num_in_ch': 3, 'num_out_ch': 3, 'upscale': 2}


@pytest.mark.parametrize('execution', ['fp32', 'bf16, channels_last'])
def test_the_memory_that_facd_check_expects_is_within_15_percent_of_the_measured(
    parsed, train_opt, tmp_path, execution
):
    teacher = {'type': 'EDSR', 'num_feat': 128, 'num_block': 16, **PAPER}
    torch.save({'params': build_network(dict(teacher)).state_dict()}, tmp_path / 'teacher.pth')
    train_opt['network_g'] = {'type': 'EDSRStudent', 'num_feat': 64, 'num_block': 16, **PAPER}
    train_opt['teacher'] = {'network': teacher, 'weights': str(tmp_path / 'teacher.pth')}
    train_opt['taps'][1] = {'student': 'body.9', 'teacher': 'body.9'}
    train_opt['datasets']['train'] |= {'gt_size': 48, 'batch_size_per_gpu': 16, 'dataset_enlarge_ratio': 8}
    model = build_model(parsed(run_as(train_opt, EXECUTIONS[execution])))
    batch = random_batch(64, 48)
    expected, _ = memory_estimate(model, batch)
    model.feed_data(batch)
    model.optimize_parameters(1)
    torch.cuda.reset_peak_memory_stats()
    model.optimize_parameters(2)
    assert expected == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.15)
