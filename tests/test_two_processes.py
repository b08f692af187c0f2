"""Training and testing on two processes, compared with one process and the full batch."""

import re
import shutil
from pathlib import Path
from subprocess import CompletedProcess

import cv2
import pytest
import torch
from conftest import picture, tiny_test_opt, tiny_train_opt, write_yml
from processes import run_ranks
from runs import assert_same, result, scalars, torchrun, with_stages
from states import save_vgg

from facd_basicsr.data.bicubic import bicubic_lr
from facd_basicsr.options import parser
from facd_basicsr.test import test as evaluate
from facd_basicsr.train import train

N = 4
TRAIN, TEST = 'facd_basicsr/train.py', 'facd_basicsr/test.py'
PYTORCH = ('--launcher', 'pytorch')


@pytest.fixture(scope='module')
def three_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders ``GT`` and ``LQ`` of three images, so that one of two ranks has two of them."""
    root = tmp_path_factory.mktemp('three')
    for i, height in enumerate((32, 40, 48)):
        gt = picture(200 + i, height, 56 - height // 8 * 2)
        for folder, image in (('GT', gt), ('LQ', bicubic_lr(gt, 2))):
            (root / folder).mkdir(exist_ok=True)
            cv2.imwrite(str(root / folder / f'{i}.png'), image)
    return root


def facd_opt(data: Path, teacher_weights: Path, three_images: Path) -> dict:
    """FACD for two ranks with batches of 2: three iterations per epoch, N iterations end within the second epoch.

    With the small learning rate the random student stays about as good as the random teacher: alpha is in (0, 1).
    """
    opt = tiny_train_opt(data, teacher_weights)
    opt['datasets']['train'] |= {'batch_size_per_gpu': 2, 'dataset_enlarge_ratio': 2}
    opt['datasets']['val'] |= {'dataroot_gt': str(three_images / 'GT'), 'dataroot_lq': str(three_images / 'LQ')}
    opt['train'] |= {'total_iter': 2 * N, 'ema_decay': 0.9, 'optim_g': {'type': 'Adam', 'lr': 1e-4}}
    opt['val']['val_freq'] = opt['logger']['save_checkpoint_freq'] = N
    return opt


@pytest.fixture(scope='module')
def option_file(checkout: Path, data: Path, teacher_weights: Path, three_images: Path) -> Path:
    return write_yml(facd_opt(data, teacher_weights, three_images), checkout / 'two.yml')


@pytest.fixture(scope='module')
def two(checkout: Path, option_file: Path) -> CompletedProcess[str]:
    """2N iterations on two processes."""
    return run_ranks(TRAIN, '-opt', option_file, *PYTORCH, '--force_yml', 'name=two', cwd=checkout)


def in_this_process(option_file: Path, root: Path, *overrides: str, resume: bool = False) -> None:
    args = ['-opt', str(option_file), *(['--auto_resume'] if resume else []), '--force_yml', *overrides]
    train(parser().parse_args(args), root=root, console=False)


@pytest.fixture(scope='module')
def one(checkout: Path, option_file: Path) -> None:
    """The same on one process with the full batch."""
    in_this_process(option_file, checkout, 'name=one', 'datasets:train:batch_size_per_gpu=4')


def networks(checkout: Path, name: str, iteration: int | str, nets: str = 'gr') -> dict[str, torch.Tensor]:
    """All weights that a run saved at an iteration: student, its EMA, and regressors."""
    return {
        f'{net} {key} {weight}': value
        for net in nets
        for key, weights in torch.load(
            checkout / f'experiments/{name}/models/net_{net}_{iteration}.pth', weights_only=True
        ).items()
        for weight, value in weights.items()
    }


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], atol: float = 1e-7) -> None:
    """Asserts equality to 1e-6, or ``atol`` for small weights.

    Two ranks sum a batch in another order than one process, so weights of 0.2 differ in their last bits, by 1.5e-8.
    """
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=atol)


def test_two_processes_train_like_one_with_the_combined_batch(two, one, checkout):
    assert two.returncode == 0, two.stderr
    for iteration in (N, 2 * N, 'latest'):
        assert_close(networks(checkout, 'two', iteration), networks(checkout, 'one', iteration))


@pytest.mark.slow
def test_two_processes_with_batches_in_parts_train_like_one_with_the_combined_batch(option_file, one, checkout):
    overrides = ('name=parts', 'train:accum_iter=2', 'train:log_gradient_share=2')
    done = run_ranks(TRAIN, '-opt', option_file, *PYTORCH, '--force_yml', *overrides, cwd=checkout)
    assert done.returncode == 0, done.stderr
    for iteration in (N, 2 * N):
        assert_close(networks(checkout, 'parts', iteration), networks(checkout, 'one', iteration))
    shares = [scalars(checkout, 'parts')[tag] for tag in ('share_sr', 'share_facd')]
    assert [list(own) for own in shares] == [[2, 4, 6, 8]] * 2
    assert [sum(pair) for pair in zip(*(own.values() for own in shares))] == pytest.approx([1] * 4)


def test_two_processes_log_the_same_terms_as_one(two, one, checkout):
    found, expected = scalars(checkout, 'two'), scalars(checkout, 'one')
    assert {'losses/l_sr', 'losses/l_facd', 'alpha', 'r_1', 'r_2', 'r_3'} < expected.keys() == found.keys()
    assert 0 < min(expected['alpha'].values()) < max(expected['alpha'].values()) < 1  # the gate was active
    for tag, values in expected.items():
        assert found[tag] == pytest.approx(values, rel=1e-6), tag
    assert two.stderr.count('iter:       2') == 1  # only rank 0 logs


def test_a_stopped_and_resumed_run_on_two_processes_equals_an_uninterrupted_one(two, option_file, checkout):
    for total in (N, 2 * N):
        overrides = (f'train:total_iter={total}', 'name=stopped', 'datasets:train:num_worker_per_gpu=1')
        done = run_ranks(TRAIN, '-opt', option_file, *PYTORCH, '--auto_resume', '--force_yml', *overrides, cwd=checkout)
        assert done.returncode == 0, done.stderr
    assert 'Resume is not exact' not in done.stderr
    assert_same(result(checkout, 2 * N, 'stopped'), result(checkout, 2 * N, 'two'))
    uninterrupted, stopped = scalars(checkout, 'two'), scalars(checkout, 'stopped')
    for tag, values in uninterrupted.items():
        assert values.items() <= stopped[tag].items(), tag


@pytest.mark.slow
def test_two_processes_train_stages_like_one_and_resume_at_a_border(checkout, data, teacher_weights, three_images):
    opt = with_stages(facd_opt(data, teacher_weights, three_images))
    del opt['train']['stages'][1]['batch_size_per_gpu'], opt['logger']['keep_last']
    path = write_yml(opt, checkout / 'stages.yml')
    done = run_ranks(TRAIN, '-opt', path, *PYTORCH, '--force_yml', 'name=stages', cwd=checkout)
    assert done.returncode == 0, done.stderr
    in_this_process(path, checkout, 'name=stages_one', 'datasets:train:batch_size_per_gpu=4')
    assert_close(networks(checkout, 'stages', 2 * N), networks(checkout, 'stages_one', 2 * N))
    states = checkout / 'experiments/stages_resumed/training_states'
    shutil.copytree(checkout / 'experiments/stages', states.parent)
    for iteration in (N, 2 * N):
        (states / f'{iteration}.state').unlink()
    overrides = ('--auto_resume', '--force_yml', 'name=stages_resumed')
    done = run_ranks(TRAIN, '-opt', path, *PYTORCH, *overrides, cwd=checkout)
    assert done.returncode == 0, done.stderr
    assert_same(result(checkout, 2 * N, 'stages_resumed'), result(checkout, 2 * N, 'stages'))


@pytest.mark.slow  # tests/runtime/test_processes.py has the values and gradients of every loss on two ranks
def test_two_processes_train_on_views_like_one_and_resume_the_average(
    checkout, data, teacher_weights, three_images, tmp_path
):
    opt = facd_opt(data, teacher_weights, three_images)
    vgg = {'vgg_weights': str(save_vgg(tmp_path / 'vgg.pth', 2)), 'layer_weights': [0.5, 1]}
    opt['train']['distill_opt'] = {
        'facd': opt['train']['distill_opt'],
        'dukd': {'type': 'DUKDLoss', 'crops': 2, 'zoom_out': True, 'two_steps': True, 'img_range': 255},
        'dckd': {'type': 'DCKDLoss', 'every': 3, 'img_range': 255, 'lambda': 25, **vgg},
        'eco': {'type': 'ECOLoss', 'alpha': {'start': 0, 'end': 1, 'over': 6}, 'img_range': 255},
    }
    path = write_yml(opt, checkout / 'views.yml')
    done = run_ranks(TRAIN, '-opt', path, *PYTORCH, '--force_yml', 'name=views', cwd=checkout)
    assert done.returncode == 0, done.stderr
    in_this_process(path, checkout, 'name=views_one', 'datasets:train:batch_size_per_gpu=4')
    for iteration in (N, 2 * N):
        assert_close(networks(checkout, 'views', iteration), networks(checkout, 'views_one', iteration), atol=1e-6)
    found, expected = scalars(checkout, 'views'), scalars(checkout, 'views_one')
    assert {'losses/l_dukd_zoom_in', 'losses/l_dckd_contrast', 'losses/l_eco', 'losses/l_facd_facd'} <= expected.keys()
    for tag, values in expected.items():
        assert found[tag] == pytest.approx(values, rel=1e-5), tag
    states = checkout / 'experiments/views_resumed/training_states'
    shutil.copytree(checkout / 'experiments/views', states.parent)
    (states / f'{2 * N}.state').unlink()
    overrides = ('--auto_resume', '--force_yml', 'name=views_resumed', 'datasets:train:num_worker_per_gpu=1')
    done = run_ranks(TRAIN, '-opt', path, *PYTORCH, *overrides, cwd=checkout)
    assert done.returncode == 0, done.stderr
    assert_same(result(checkout, 2 * N, 'views_resumed'), result(checkout, 2 * N, 'views'))


def test_two_processes_train_a_discriminator_like_one(checkout, data, teacher_weights, three_images, tmp_path):
    opt = facd_opt(data, teacher_weights, three_images)
    vgg = {'vgg_weights': str(save_vgg(tmp_path / 'vgg.pth', 1)), 'layer_weights': {'conv1_1': 1}}
    opt['network_d'] = {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 4}
    opt['train'] |= {
        'gan_opt': {'type': 'GANLoss', 'gan_type': 'vanilla', 'relativistic': True},
        'perceptual_opt': {'type': 'PerceptualLoss', 'style_weight': 1, **vgg},
        'optim_d': {'type': 'Adam', 'lr': 1e-4},
        'net_d_init_iters': 2,
    }
    path = write_yml(opt, checkout / 'gan.yml')
    done = run_ranks(TRAIN, '-opt', path, *PYTORCH, '--force_yml', 'name=gan', cwd=checkout)
    assert done.returncode == 0, done.stderr
    in_this_process(path, checkout, 'name=gan_one', 'datasets:train:batch_size_per_gpu=4')
    for iteration in (N, 2 * N):
        found, expected = (networks(checkout, name, iteration, 'grd') for name in ('gan', 'gan_one'))
        assert_close(found, expected, atol=1e-6)
    found, expected = scalars(checkout, 'gan'), scalars(checkout, 'gan_one')
    assert {'losses/l_percep', 'losses/l_style', 'losses/l_g_gan', 'losses/l_d_real', 'out_d_fake'} <= expected.keys()
    for tag, values in expected.items():
        assert found[tag] == pytest.approx(values, rel=1e-4), tag


@pytest.mark.slow
def test_two_processes_train_from_memory_like_from_files(two, option_file, checkout):
    overrides = [f'datasets:{phase}:io_backend:type=memory' for phase in ('train', 'val')]
    done = run_ranks(TRAIN, '-opt', option_file, *PYTORCH, '--force_yml', 'name=memory', *overrides, cwd=checkout)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count('pictures is read from') == 1
    assert_same(result(checkout, 2 * N, 'memory'), result(checkout, 2 * N, 'two'))


@pytest.mark.slow
def test_two_processes_read_one_cache_of_the_teachers_images_and_train_like_one(
    checkout, data, teacher_weights, three_images
):
    opt = facd_opt(data, teacher_weights, three_images)
    for key in ('taps', 'network_r'):
        del opt[key]
    opt['datasets']['train']['io_backend'] = {'type': 'memory'}
    opt['teacher']['cache'] = True
    opt['train']['distill_opt'] = {
        'sr': {'type': 'L1Loss', 'target': 'gated'},
        'eco': {'type': 'ECOLoss', 'alpha': {'start': 0, 'end': 1, 'over': 6}},
    }
    path = write_yml(opt, checkout / 'cache.yml')
    for old in data.glob('*.taught-*'):
        old.unlink()
    done = run_ranks(TRAIN, '-opt', path, *PYTORCH, '--force_yml', 'name=cache', cwd=checkout)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count('teacher.cache: 6 of 6') == 1
    in_this_process(path, checkout, 'name=cache_one', 'datasets:train:batch_size_per_gpu=4')
    found, expected = (
        {
            f'{iteration}': torch.load(checkout / f'experiments/{name}/models/net_g_{iteration}.pth')['params']
            for iteration in (N, 2 * N)
        }
        for name in ('cache', 'cache_one')
    )
    for iteration in found:
        assert_close(found[iteration], expected[iteration])
    found, expected = scalars(checkout, 'cache'), scalars(checkout, 'cache_one')
    assert {'losses/l_sr', 'losses/l_eco'} <= expected.keys()
    for tag, values in expected.items():
        assert found[tag] == pytest.approx(values, rel=1e-6), tag


def test_resuming_with_another_world_size_continues_and_logs_the_differences(two, one, option_file, checkout):
    """It continues after the samples that were done, so it ends like the run on one process."""
    shutil.copytree(checkout / 'experiments/two', checkout / 'experiments/resumed')
    (checkout / f'experiments/resumed/training_states/{2 * N}.state').unlink()
    in_this_process(option_file, checkout, 'name=resumed', 'datasets:train:batch_size_per_gpu=4', resume=True)
    log = max((checkout / 'experiments/resumed').glob('train_resumed_*.log')).read_text()
    for difference in ('batch_size was 2 and is 4', 'world_size was 2 and is 1'):
        assert f'Resume is not exact: {difference}.' in log
    assert_close(networks(checkout, 'resumed', 2 * N), networks(checkout, 'one', 2 * N))
    # it first validated the networks of iteration N, like the two processes: equal bit for bit
    found, expected = (result(checkout, 2 * N, name)['best_metric_results']['val'] for name in ('resumed', 'two'))
    assert found == expected and all(best['iter'] == N for best in expected.values())


def test_two_processes_split_a_test_set_and_find_the_metrics_of_one(two, checkout, three_images, data):
    opt = tiny_test_opt(data)
    opt['datasets']['test_1'] |= {f'dataroot_{name}': str(three_images / name.upper()) for name in ('gt', 'lq')}
    opt['path']['pretrain_network_g'] = str(checkout / 'experiments/two/models/net_g_latest.pth')
    opt['val']['save_img'] = True
    path = write_yml(opt, checkout / 'three.yml')
    metrics = evaluate(
        parser(is_train=False).parse_args(['-opt', str(path), '--force_yml', 'name=alone']), checkout, console=False
    )
    done = run_ranks(TEST, '-opt', path, *PYTORCH, '--force_yml', 'name=shared', cwd=checkout)
    assert done.returncode == 0, done.stderr
    row = re.findall(r'^pictures +(.*)$', done.stderr, re.MULTILINE)
    assert [line.split() for line in row] == [[f'{value:.4f}' for value in metrics['pictures'].values()]]
    images = {name: sorted((checkout / f'results/{name}').rglob('*.png')) for name in ('alone', 'shared')}
    assert [path.name for path in images['shared']] == [f'{i}_shared.png' for i in range(3)]
    for alone, shared in zip(images['alone'], images['shared']):
        assert alone.read_bytes() == shared.read_bytes()


@pytest.mark.slow
def test_two_processes_train_by_several_losses_like_one(checkout, data, teacher_weights, three_images):
    opt = facd_opt(data, teacher_weights, three_images)
    opt['train'] |= {
        'total_iter': N,
        'distill_opt': {
            'sr': {'type': 'L1Loss', 'target': 'gated', 'loss_weight': 255},
            'facd': {'type': 'FACDLoss', 'image_term': False, 'lambda': {'start': 4, 'end': 0, 'over': 2 * N}},
            'fakd': {'type': 'FAKDLoss', 'loss_weight': 0.5},
            'wavelet': {'type': 'WaveletLoss', 'target': 'teacher'},
        },
        'pixel_opt': {'type': 'MSELoss', 'loss_weight': 0.1},
    }
    path = write_yml(opt, checkout / 'several.yml')
    done = torchrun(TRAIN, '-opt', path, '--force_yml', 'name=several_two', cwd=checkout)
    assert done.returncode == 0, done.stderr
    in_this_process(path, checkout, 'name=several_one', 'datasets:train:batch_size_per_gpu=4')
    assert_close(networks(checkout, 'several_two', N), networks(checkout, 'several_one', N))
    found, expected = scalars(checkout, 'several_two'), scalars(checkout, 'several_one')
    names = ['l_sr', 'l_facd', 'l_fakd_sr', 'l_fakd_fakd', 'l_wavelet', 'l_pix']
    assert {*(f'losses/{name}' for name in names), 'facd_alpha', 'facd_r_1'} < expected.keys() == found.keys()
    for tag, values in expected.items():
        assert found[tag] == pytest.approx(values, rel=1e-6), tag


@pytest.mark.slow
def test_a_student_alone_trains_on_two_processes_like_on_one(checkout, data, teacher_weights, three_images):
    opt = facd_opt(data, teacher_weights, three_images)
    for key in ('teacher', 'taps', 'network_r'):
        del opt[key]
    opt |= {'model_type': 'SRModel', 'name': 'alone_two'}
    opt['train'] |= {'pixel_opt': {'type': 'L1Loss'}}
    del opt['train']['distill_opt']
    path = write_yml(opt, checkout / 'alone.yml')
    done = torchrun(TRAIN, '-opt', path, cwd=checkout)
    assert done.returncode == 0, done.stderr
    in_this_process(path, checkout, 'name=alone_one', 'datasets:train:batch_size_per_gpu=4')
    for iteration in (N, 2 * N):
        found, expected = (
            torch.load(checkout / f'experiments/alone_{name}/models/net_g_{iteration}.pth', weights_only=True)
            for name in ('two', 'one')
        )
        assert found.keys() == expected.keys()
        for key in expected:
            assert_close(found[key], expected[key])
    found, expected = scalars(checkout, 'alone_two'), scalars(checkout, 'alone_one')
    assert found.keys() == expected.keys()
    for tag, values in expected.items():
        assert found[tag] == pytest.approx(values, rel=1e-6), tag
