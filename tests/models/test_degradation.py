"""LQ made in training equal BasicSR's, and a run of them is resumed, saved and shared out as any other."""

import re
import shutil
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import cv2
import pytest
import torch
from basicsr.models.realesrgan_model import RealESRGANModel
from basicsr.models.realesrnet_model import RealESRNetModel
from basicsr.utils import set_random_seed
from conftest import changed, train_options, write_yml
from processes import run_ranks
from realesrgan import USM, degraded_opt, prepare
from runs import TOTAL, Child, assert_resumes, assert_same, log_text, metric_lines, result, run
from torch import nn

from facd_basicsr.data.lmdb_pairs import write_lmdbs
from facd_basicsr.data.loaders import build_loaders
from facd_basicsr.errors import UserError
from facd_basicsr.models.degradation import ContiguousJPEG, Degradation
from facd_basicsr.models.safe_model import build_model, lq_patch_size
from facd_basicsr.options import parser
from facd_basicsr.options.option_check import check_options
from facd_basicsr.runtime.rng import rng_state
from facd_basicsr.tools.check import check
from facd_basicsr.train import train

TRAIN = 'facd_basicsr/train.py'


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    return tmp_path / 'photographs'


@pytest.fixture
def opt(train_opt: dict, photographs: Path) -> dict:
    """FACD on LQ made of photographs."""
    return degraded_opt(train_opt, photographs)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """BasicSR's models ask for CUDA where they degrade."""
    for cls in (nn.Module, torch.Tensor):
        monkeypatch.setattr(cls, 'cuda', lambda self: self)


def raw_batches(opt: dict, count: int) -> Iterator[dict]:
    """Of the data set, without the seeds that BasicSR's has not."""
    loaders = build_loaders(opt)
    for epoch in range(count):
        loaders.sampler.set_position(epoch, most=1)
        for batch in loaders.train:
            yield {key: value for key, value in batch.items() if key != 'seed'}


def of_whole_crops(opt: dict) -> dict:
    """With BasicSR's own dataset, which other processes know and a user has."""
    return changed(opt, 'datasets.train.type', 'RealESRGANDataset')


def basicsr_model(cls: type, opt: dict) -> RealESRNetModel:
    """A model of BasicSR's, as far as its feed_data goes."""
    model = cls({**opt, 'is_train': False, 'network_g': opt['network_g']})
    model.is_train = True
    # DiffJPEG's output has a layout in which filter2D fails on a CPU, of RealESRNetModel too
    model.jpeger = ContiguousJPEG(differentiable=False)
    return model


@pytest.mark.parametrize(
    ('cls', 'gt_usm'), [(RealESRNetModel, True), (RealESRNetModel, False), (RealESRGANModel, None)]
)
def test_pairs_are_those_that_basicsrs_model_makes_with_the_same_random_numbers(
    cls, gt_usm, train_opt, photographs, tmp_path, no_gpu
):
    opt = train_options(changed(degraded_opt(train_opt, photographs, gt_usm), 'queue_size', 4), tmp_path)
    degradation, model = Degradation(opt, torch.device('cpu')), basicsr_model(cls, opt)
    seen = []
    for number, batch in enumerate(raw_batches(opt, 4)):
        set_random_seed(number)
        model.feed_data(dict(batch))
        after = rng_state()
        set_random_seed(number)
        found = degradation(batch)
        assert rng_state() == after
        assert found['lq'].shape == (2, 3, 16, 16) and torch.equal(found['lq'], model.lq)
        if gt_usm is None:
            for key, expected in (('gt', model.gt_usm), ('percep_gt', model.gt_usm), ('gan_gt', model.gt)):
                assert torch.equal(found[key], expected)
            assert not torch.equal(model.gt, model.gt_usm)
        else:
            assert torch.equal(found['gt'], model.gt) and not {'percep_gt', 'gan_gt'} & found.keys()
        seen.append(found['gt_path'] == batch['gt_path'])
    assert seen[:2] == [True, True] and not all(seen[2:])  # the pool was full after two


def test_pairs_of_a_batch_depend_on_its_seeds_alone_and_leave_the_generators_as_they_were(opt, tmp_path):
    opt = train_options(opt, tmp_path)
    degradation = Degradation(opt, torch.device('cpu'))
    batch = next(iter(build_loaders(opt).train))
    before = rng_state()
    first = degradation(batch, pool=False)
    assert rng_state() == before
    torch.rand(3)
    again, other = degradation(batch, pool=False), degradation({**batch, 'seed': ['1', '2']}, pool=False)
    assert torch.equal(first['lq'], again['lq']) and torch.equal(first['gt'], again['gt'])
    assert not torch.equal(first['lq'], other['lq'])
    assert degradation.queue_ptr == 0 and first['seed'] == batch['seed']


def test_the_file_of_each_pair_follows_it_through_the_pool(opt, tmp_path):
    """Images of one color each, which no degradation of GT changes."""
    opt = train_options(opt, tmp_path)
    degradation = Degradation(opt, torch.device('cpu'))
    kernel = torch.zeros(2, 21, 21)
    kernel[:, 10, 10] = 1
    taken: list[str] = []
    for number in range(12):
        grays = [2 * number, 2 * number + 1]
        gt = torch.tensor(grays)[:, None, None, None].expand(2, 3, 64, 64) / 255
        batch = {'gt': gt, 'kernel1': kernel, 'kernel2': kernel, 'sinc_kernel': kernel}
        found = degradation({**batch, 'gt_path': list(map(str, grays)), 'seed': [str(number)] * 2})
        assert [f'{image.mean() * 255:.0f}' for image in found['gt']] == found['gt_path']
        taken += found['gt_path'] if number >= 4 else []  # until then the pool only fills
    assert sorted(map(int, taken + degradation.state()['gt_path'])) == list(range(24)) != list(map(int, taken))


@pytest.mark.parametrize('gt_usm', [False, True])
def test_the_pool_is_stored_to_the_last_bit_in_a_byte_a_number_where_there_are_no_more_than_256(opt, tmp_path, gt_usm):
    opt = train_options(changed(changed(opt, 'gt_usm', gt_usm), 'queue_size', 4), tmp_path)
    first, second = (Degradation(opt, torch.device('cpu')) for _ in range(2))
    for batch in raw_batches(opt, 2):
        first(batch)
    torch.save([first.state()], tmp_path / 'state')
    (state,) = stored = torch.load(tmp_path / 'state', weights_only=True)
    assert state['lq']['levels'].dtype == torch.uint8
    assert state['gt']['levels'].dtype == (torch.float32 if gt_usm else torch.uint8)
    second.load_state(stored)
    assert second.queue_ptr == 4 and second.state()['gt_path'] == state['gt_path']
    assert torch.equal(second.queue_lr, first.queue_lr) and torch.equal(second.queue_gt, first.queue_gt)


def student_alone(opt: dict) -> dict:
    opt = {key: value for key, value in opt.items() if key not in ('teacher', 'taps', 'network_r')}
    train_opt = {key: value for key, value in opt['train'].items() if key != 'distill_opt'}
    return {**opt, 'model_type': 'SRModel', 'train': {**train_opt, 'pixel_opt': {'type': 'L1Loss'}}}


def test_a_model_is_probed_with_patches_of_the_size_that_it_is_trained_on(opt, tmp_path):
    assert lq_patch_size(train_options(opt, tmp_path)) == 16
    assert lq_patch_size({'scale': 2, 'datasets': {'train': {'gt_size': 48}}}) == 24
    assert lq_patch_size({'scale': 2, 'datasets': {'train': {}}}) == 16


def test_facdmodel_and_srmodel_train_on_the_same_pairs(opt, tmp_path):
    pairs = []
    for own in (opt, student_alone(opt)):
        parsed = train_options(own, tmp_path)
        model = build_model(parsed)
        for batch in build_loaders(parsed).train:
            torch.rand(len(pairs) + 1)
            model.feed_data(model.degraded(batch))
            assert model.percep_gt is model.gan_gt is None
            pairs.append((model.lq, model.gt))
    assert_same(pairs[: len(pairs) // 2], pairs[len(pairs) // 2 :])


def views(opt: dict) -> None:
    opt['train'] |= {'distill_opt': {'type': 'DUKDLoss', 'crops': 2}, 'accum_iter': 2, 'log_gradient_share': 2}
    del opt['taps'], opt['network_r']


def worker(opt: dict) -> None:
    opt['datasets']['train'] |= {'num_worker_per_gpu': 1, 'prefetch_mode': 'cpu'}


def as_it_is(opt: dict) -> None:
    """FACD."""


def alone(opt: dict) -> None:
    opt |= student_alone(opt)
    for key in ('teacher', 'taps', 'network_r'):
        del opt[key]


def gan(opt: dict) -> None:
    """As Real-ESRGAN: the discriminator takes GT for real that is not sharpened, as the student's target is."""
    del opt['gt_usm']
    opt |= {**USM, 'network_d': {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 4}}
    opt['train'] |= {'gan_opt': {'type': 'GANLoss', 'gan_type': 'vanilla'}, 'optim_d': {'type': 'Adam', 'lr': 1e-4}}


FURTHER = [(gan, [5]), (alone, [6]), (worker, [5]), (views, [5])]
CHANGES = [(as_it_is, [3, 6]), *(pytest.param(*further, marks=pytest.mark.slow) for further in FURTHER)]


@pytest.mark.parametrize(('change', 'stops'), CHANGES)
def test_a_run_that_was_stopped_and_resumed_ends_as_one_that_never_was(opt, tmp_path, change, stops):
    """The pool is full after four iterations: stopped before that and after it. Epochs have three."""
    opt['logger'] |= {'save_checkpoint_freq': 100}
    change(opt)
    assert_resumes(opt, tmp_path, stops)
    assert 'Resume is not exact' not in log_text(tmp_path / 'stopped')
    (pool,) = result(tmp_path / 'whole')['pools']
    assert len(pool['gt_path']) == 8


@pytest.mark.slow
def test_a_run_that_was_killed_and_resumed_has_the_weights_of_an_uninterrupted_one(opt, tmp_path):
    uninterrupted = Child(opt, tmp_path / 'uninterrupted', prepare=prepare)
    assert uninterrupted.end() == 0, (tmp_path / 'uninterrupted' / 'output.txt').read_text()
    child = Child(opt, tmp_path / 'killed', TOTAL, '--auto_resume', prepare=prepare, step_by_step=True)
    child.wait_for(7)  # the last checkpoint is that of iteration 6
    child.kill()
    assert child.end() == -signal.SIGKILL
    resumed = Child(opt, tmp_path / 'killed', TOTAL, '--auto_resume', prepare=prepare)
    assert resumed.end() == 0, (tmp_path / 'killed' / 'output.txt').read_text()
    assert_same(result(tmp_path / 'killed'), result(tmp_path / 'uninterrupted'))
    assert metric_lines(tmp_path / 'killed') == metric_lines(tmp_path / 'uninterrupted')


def test_without_a_pool_of_this_run_in_the_state_it_starts_empty_and_the_log_says_so(opt, tmp_path):
    run(opt, tmp_path, 4)
    for key, value, found in [
        ('queue_size', 6, '8 pairs, which batches do not complete to queue_size: 6'),
        ('gt_size', 28, 'pairs of another gt_size'),
    ]:
        run(changed(opt, key, value), tmp_path, 6, '--auto_resume')
        lines = [line for line in log_text(tmp_path).splitlines() if 'starts empty' in line]
        assert lines[-1].endswith(
            f'Resume is not exact: the pool of training pairs starts empty, since the state has {found}.'
        )
        assert len(result(tmp_path, 6)['pools'][0]['gt_path']) == 4
        (tmp_path / 'experiments/tiny/training_states/6.state').unlink()
    degradation = Degradation(train_options(opt, tmp_path), torch.device('cpu'))
    degradation.load_state([])
    degradation.load_state([{}, {}])
    assert degradation.queue_ptr == 0


def test_a_pool_goes_on_in_the_next_stage_and_starts_empty_with_other_patches(opt, tmp_path):
    opt['train'] |= {'total_iter': TOTAL, 'stages': [{'iterations': 3}, {'iterations': 2}, {'iterations': 3}]}
    opt['train']['stages'][2]['gt_size'] = 28
    run(opt, tmp_path / 'whole')
    assert [len(result(tmp_path / 'whole', n)['pools'][0]['gt_path']) for n in (3, 5, 8)] == [6, 8, 6]
    assert result(tmp_path / 'whole')['pools'][0]['gt']['levels'].shape == (6, 3, 28, 28)
    assert log_text(tmp_path / 'whole').count('since the state has pairs of another gt_size') == 1


def test_the_batch_that_the_guard_saves_is_the_one_that_was_trained_on(opt, tmp_path):
    """Blown up by its learning rate after the pool is full, from which pairs then come."""
    opt['train'] |= {'optim_g': {'type': 'SGD', 'lr': 1e30}, 'nonfinite': {'limit': 20}}
    run(opt, tmp_path)
    folder = tmp_path / 'experiments/tiny/nonfinite'
    saved = torch.load(folder / f'iter_{TOTAL}_rank0.pth', weights_only=True)
    assert saved['lq'].shape == (2, 3, 16, 16) and saved['gt'].shape == (2, 3, 32, 32)
    (line,) = [line for line in log_text(tmp_path).splitlines() if f'Iteration {TOTAL}: ' in line]
    assert f'files: {", ".join(saved["gt_path"])}; batch saved as' in line
    parsed = train_options(opt, tmp_path)
    loaders, degradation = build_loaders(parsed), Degradation(parsed, torch.device('cpu'))
    for number in range(TOTAL):
        epoch, batches = divmod(number, loaders.sampler.batches)
        loaders.sampler.set_position(epoch, batches, 1)
        pairs = [degradation(batch) for batch in loaders.train]
    assert pairs[0]['gt_path'] == saved['gt_path']
    assert torch.equal(pairs[0]['lq'], saved['lq']) and torch.equal(pairs[0]['gt'], saved['gt'])


def pairs_opt(train_opt: dict, data: Path, folder: Path, **keys: object) -> dict:
    """RealESRGANPairedDataset on the pairs of the validation set."""
    folder.mkdir()
    (folder / 'pairs.txt').write_text('GT/0.png, LQ/0.png\nGT/1.png, LQ/1.png\n')
    own = {'type': 'RealESRGANPairedDataset', 'io_backend': {'type': 'disk'}, 'meta_info': str(folder / 'pairs.txt')}
    roots = {'dataroot_gt': str(data), 'dataroot_lq': str(data)}
    train_opt['datasets']['train'] |= {**own, **roots, 'dataset_enlarge_ratio': 6, 'gt_size': 32}
    return {**train_opt, **keys}


def test_pairs_of_a_list_train_as_they_are_and_with_sharpened_targets(train_opt, data, tmp_path):
    plain = pairs_opt(train_opt, data, tmp_path / 'list')
    run(plain, tmp_path / 'plain', 2)
    sharpened = {**plain, **USM, 'high_order_degradation': False}  # as Real-ESRGAN's file for finetuning
    run(sharpened, tmp_path / 'sharpened', 2)
    assert 'pools' not in result(tmp_path / 'sharpened', 2)
    parsed = train_options(sharpened, tmp_path)
    model = build_model(parsed)
    batch = next(iter(build_loaders(parsed).train))
    model.feed_data(model.degraded(batch))
    assert torch.equal(model.lq, batch['lq']) and torch.equal(model.gan_gt, batch['gt'])
    assert torch.equal(model.gt, model.degradation.usm_sharpener(batch['gt'])) and torch.equal(
        model.percep_gt, model.gt
    )


@pytest.mark.slow
def test_an_lmdb_of_photographs_gives_the_pairs_of_its_folder(opt, photographs, tmp_path):
    def read(path: Path, scales: list[int]) -> dict:
        return {1: cv2.imread(str(path))}

    sources = {path.stem: partial(read, path) for path in sorted(photographs.glob('*.png'))}
    write_lmdbs(sources, {1: tmp_path / 'GT.lmdb'}, 480, 240)
    opt = of_whole_crops(opt)
    from_lmdb = changed(opt, 'datasets.train.io_backend.type', 'lmdb')
    from_lmdb['datasets']['train'] |= {'dataroot_gt': str(tmp_path / 'GT.lmdb')}
    del from_lmdb['datasets']['train']['meta_info']
    pairs = []
    for own in (opt, from_lmdb):
        parsed = train_options(own, tmp_path)
        degradation = Degradation(parsed, torch.device('cpu'))
        pairs.append([(found['lq'], found['gt']) for found in map(degradation, build_loaders(parsed).train)])
    assert_same(*pairs)
    run(from_lmdb, tmp_path / 'run', 2)


def test_facd_check_tries_the_file_of_such_a_run(opt, tmp_path):
    lines = list(check(str(write_yml(of_whole_crops(opt), tmp_path / 'opt.yml')), []))
    assert 'data         train: 6 images of photographs, every file read' in lines
    assert any(line.startswith('iteration ') for line in lines)


@pytest.mark.slow
def test_two_processes_keep_a_pool_each_and_resume_both(checkout, opt):
    opt['train'] |= {'total_iter': TOTAL}
    opt['datasets']['train']['dataset_enlarge_ratio'] = 2
    opt['val']['val_freq'] = opt['logger']['save_checkpoint_freq'] = 6
    path = write_yml(of_whole_crops(opt), checkout / 'degraded.yml')

    def two(name: str, *overrides: str) -> str:
        command = ('-opt', path, '--launcher', 'pytorch', '--auto_resume', '--force_yml', f'name={name}', *overrides)
        done = run_ranks(TRAIN, *command, cwd=checkout)
        assert done.returncode == 0, done.stderr
        return done.stderr

    two('degraded')
    stopped = checkout / 'experiments/degraded_stopped'
    shutil.copytree(checkout / 'experiments/degraded', stopped)
    (stopped / f'training_states/{TOTAL}.state').unlink()
    assert 'Resume is not exact' not in two('degraded_stopped')
    first, second = result(checkout, TOTAL, 'degraded')['pools']
    assert len(first['gt_path']) == 8 and not torch.equal(first['lq']['levels'], second['lq']['levels'])
    assert_same(result(checkout, TOTAL, 'degraded_stopped'), result(checkout, TOTAL, 'degraded'))
    (checkout / f'experiments/degraded_stopped/training_states/{TOTAL}.state').unlink()
    args = ['-opt', str(path), '--auto_resume', '--force_yml', 'name=degraded_stopped']
    train(parser().parse_args(args), root=checkout, console=False)
    log = ''.join(own.read_text() for own in (checkout / 'experiments/degraded_stopped').glob('*.log'))
    assert len(re.findall('starts empty, since the state has the pools of 2 processes, not 1', log)) == 1


REFUSED = [
    ('datasets.train.type', 'PairedImageDataset', 'gt_usm: accepted with datasets.train.type: RealESRGANDataset, of '),
    ('resize_prob', ..., 'resize_prob: missing; accepted: a list'),
    ('resize_prob', [0.5, 0.5], 'resize_prob: [0.5, 0.5]; accepted: a list of 3 numbers'),
    ('resize_prob2', [0, 0, 0], 'resize_prob2: [0, 0, 0]; accepted: one that is not 0'),
    ('resize_range', [1.1, 1.5], 'resize_range: [1.1, 1.5]; accepted: a range with 1 in it'),
    ('resize_range', [0.01, 1.5], 'resize_range[0]: 0.01; accepted: 0.05 or more'),
    ('noise_range', [30, 1], 'noise_range: [30, 1]; accepted: the lower end first'),
    ('jpeg_range', [30, 100], 'jpeg_range[1]: 100; accepted: more than 0, less than 100'),
    ('second_blur_prob', 1.5, 'second_blur_prob: 1.5; accepted: 0 or more, 1 or less'),
    ('gt_size', ..., 'gt_size: missing; accepted: a whole number'),
    ('gt_size', 33, 'gt_size: 33; accepted: a multiple of scale, 2'),
    ('gt_size', 402, 'gt_size: 402; accepted: 1 or more, 400 or less'),
    ('datasets.train.gt_size', 64, 'datasets.train.gt_size: 64; accepted: 32, the gt_size of the file'),
    ('queue_size', 7, 'queue_size: 7; accepted: a multiple of datasets.train.batch_size_per_gpu, 2'),
    ('high_order_degradation', False, 'high_order_degradation: false; accepted with datasets.train.type: RealESRGANDa'),
    ('gt_usm', ..., 'gt_usm: missing; accepted: gt_usm, or l1_gt_usm, percep_gt_usm, gan_gt_usm'),
    ('l1_gt_usm', True, 'gt_usm: given with l1_gt_usm; accepted: gt_usm, or l1_gt_usm, percep_gt_usm, gan_gt_usm'),
    ('gray_noise_porb', 0.4, "gray_noise_porb: unknown key; did you mean 'gray_noise_prob'?"),
    ('datasets.train.kernel_list', ['iso', 'skew'], "datasets.train.kernel_list[1]: 'skew'; accepted: iso, aniso, "),
    ('datasets.train.kernel_prob2', [1.0], 'datasets.train.kernel_prob2: 1 numbers; accepted: one for each of kernel'),
    ('datasets.train.kernel_prob', [0] * 6, 'datasets.train.kernel_prob: [0, 0, 0, 0, 0, 0]; accepted: one that is '),
    ('datasets.train.blur_sigma', [1, 1], 'datasets.train.blur_sigma: [1, 1]; accepted: two different numbers'),
    ('datasets.train.final_sinc_prob', ..., 'datasets.train.final_sinc_prob: missing; accepted: a number'),
    ('teacher.cache', True, 'teacher.cache: true; accepted with datasets.train: {type: PairedImageDataset, io_backend'),
]


@pytest.mark.parametrize(('location', 'value', 'message'), REFUSED)
def test_a_value_that_basicsr_would_fail_on_is_refused_by_its_key(opt, location, value, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        check_options(changed(of_whole_crops(opt), location, value), is_train=True)
    assert len(str(error.value).splitlines()) == 1


def test_the_recipe_with_three_keys_needs_them_all_and_a_patch_that_can_be_sharpened(train_opt, photographs):
    opt = of_whole_crops(degraded_opt(train_opt, photographs, None))
    assert check_options(opt, is_train=True)['queue_size'] == 8
    for own, message in [
        (changed(opt, 'percep_gt_usm', ...), 'percep_gt_usm: missing; accepted: gt_usm, or l1_gt_usm'),
        (changed(opt, 'gt_size', 24), 'gt_size: 24; accepted with l1_gt_usm: 26 or more'),
        ({**opt, 'scale': 3, 'gt_size': 33}, 'scale: 3; accepted with datasets.train.type: RealESRGANDataset: a divi'),
    ]:
        own['network_g'], own['teacher'] = {**own['network_g'], 'upscale': own['scale']}, {**own['teacher']}
        own['teacher']['network'] = {**own['teacher']['network'], 'upscale': own['scale']}
        own['datasets'].pop('val', None)
        with pytest.raises(UserError, match=re.escape(message)):
            check_options(own, is_train=True)
