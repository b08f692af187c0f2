"""Exact resume: a run that was stopped and resumed ends as one that never was, to the last bit."""

import multiprocessing
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from basicsr.archs.edsr_arch import EDSR
from basicsr.utils.registry import ARCH_REGISTRY
from conftest import picture, tiny_train_opt, with_two_teachers
from runs import assert_resumes, assert_same, log_text, result, run
from torch.nn import functional as F  # noqa: N812

from facd_basicsr.data.bicubic import bicubic_lr
from facd_basicsr.errors import UserError


@ARCH_REGISTRY.register()
class RandomStudent(EDSR):
    """Draws from all three generators in every forward pass."""

    def __init__(self) -> None:
        super().__init__(3, 3, num_feat=4, num_block=3, upscale=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(super().forward(x), 0.1) * (1 + 0.1 * random.random() + 0.1 * np.random.rand())


def facd(opt: dict) -> None:
    """FACD with EMA, warm-up and a schedule that changes the rate in every iteration."""
    opt['train'] |= {
        'ema_decay': 0.9,
        'warmup_iter': 3,
        'scheduler': {'type': 'CosineAnnealingRestartLR', 'periods': [3, 50], 'restart_weights': [1, 0.5]},
    }


def started_regressors(opt: dict) -> None:
    """Regressors that take the first batch's features in the teacher's units, which no later batch may repeat."""
    opt['network_g'] = {**opt['network_g'], 'img_range': 1.0}
    opt['train'] |= {'ema_decay': 0.9, 'init_r': 'first_batch'}


def several_losses(opt: dict) -> None:
    fading = {'start': 4.0, 'end': 0.0, 'over': 6, 'shape': 'cosine'}
    opt['train'] |= {
        'distill_opt': {
            'l2': {'type': 'MSELoss', 'target': 'gated', 'loss_weight': {'start': 0, 'end': 255, 'over': 5}},
            'facd': {'type': 'FACDLoss', 'lambda': fading, 'layer_weights': [0.5, 0.3, fading]},
            'fakd': {'type': 'FAKDLoss', 'image_term': False},
        },
        'pixel_opt': {'type': 'CharbonnierLoss', 'loss_weight': 0.1},
    }


def two_teachers(opt: dict) -> None:
    opt |= with_two_teachers(opt)
    opt['train']['init_r'] = 'first_batch'


def without_teacher(opt: dict) -> None:
    """FACDModel, whose loss reads no teacher."""
    for key in ('teacher', 'taps', 'network_r'):
        del opt[key]
    opt['train'] |= {'ema_decay': 0.9, 'distill_opt': {'type': 'L1Loss', 'target': 'gt'}}


def student_alone(opt: dict) -> None:
    for key in ('teacher', 'taps', 'network_r'):
        del opt[key]
    opt |= {'model_type': 'SRModel'}
    opt['train'] |= {'ema_decay': 0.9, 'pixel_opt': {'type': 'L1Loss'}}
    del opt['train']['distill_opt']


def random_student(opt: dict) -> None:
    opt['network_g'] = {'type': 'RandomStudent'}


def in_parts(opt: dict) -> None:
    random_student(opt)
    opt['train'] |= {'accum_iter': 3, 'clip_grad_norm': 0.1, 'log_gradient_share': 2}
    opt['train']['optim_g'] = {'type': 'AdamW', 'lr': 1e-3}


def seed_drawn(opt: dict) -> None:
    del opt['manual_seed']


def two_workers(opt: dict) -> None:
    opt['datasets']['train']['num_worker_per_gpu'] = 2


def prefetching(opt: dict) -> None:
    opt['datasets']['train'] |= {'num_worker_per_gpu': 1, 'prefetch_mode': 'cpu'}


@pytest.mark.parametrize(
    ('change', 'stops'),
    [
        pytest.param(facd, [1], marks=pytest.mark.slow),
        (facd, [3, 4, 7]),  # in the middle of an epoch, at its end, and again
        pytest.param(started_regressors, [1], marks=pytest.mark.slow),
        pytest.param(two_workers, [3], marks=pytest.mark.slow),
        pytest.param(prefetching, [3], marks=pytest.mark.slow),
        pytest.param(student_alone, [3], marks=pytest.mark.slow),
        (two_teachers, [3]),
        pytest.param(without_teacher, [3], marks=pytest.mark.slow),
        pytest.param(several_losses, [3], marks=pytest.mark.slow),
        pytest.param(random_student, [3, 4], marks=pytest.mark.slow),
        (in_parts, [3]),  # of the random student
    ],
)
def test_a_run_that_was_stopped_and_resumed_ends_as_one_that_never_was(train_opt, tmp_path, change, stops):
    train_opt['datasets']['train']['dataset_enlarge_ratio'] = 2  # four iterations an epoch
    train_opt['logger'] |= {'save_checkpoint_freq': 100}
    train_opt['val']['val_freq'] = 4
    change(train_opt)
    assert_resumes(train_opt, tmp_path, stops)


def test_a_drawn_seed_is_kept_by_a_resumed_run(train_opt, tmp_path):
    seed_drawn(train_opt)
    run(train_opt, tmp_path, 3)
    run(train_opt, tmp_path, 4, '--auto_resume')
    assert result(tmp_path, 4)['data']['seed'] == result(tmp_path, 3)['data']['seed']


def test_the_number_of_workers_changes_nothing(train_opt, tmp_path):
    run(train_opt, tmp_path / 'none', 3)
    two_workers(train_opt)
    run(train_opt, tmp_path / 'two', 3)
    assert_same(result(tmp_path / 'two', 3), result(tmp_path / 'none', 3))


@pytest.fixture
def folders(train_opt, tmp_path) -> Path:
    """GT and LQ of six pairs in a folder, which ``train_opt`` trains on."""
    root = tmp_path / 'images'
    for name in ('GT', 'LQ'):
        (root / name).mkdir(parents=True)
    for i in range(6):
        gt = picture(i, 48, 48)
        cv2.imwrite(str(root / 'GT' / f'{i}.png'), gt)
        cv2.imwrite(str(root / 'LQ' / f'{i}.png'), bicubic_lr(gt, 2))
    block = {'dataroot_gt': str(root / 'GT'), 'dataroot_lq': str(root / 'LQ'), 'io_backend': {'type': 'disk'}}
    train_opt['datasets']['train'] |= block
    return root


def damage_when_trained(path: Path) -> Callable[[int], None]:
    """Cuts a file short after the first iteration: at the start it was whole."""

    def damage(iteration: int) -> None:
        if iteration == 1:
            os.truncate(path, path.stat().st_size // 2)

    return damage


WORKERS = [{'num_worker_per_gpu': 0}, {'num_worker_per_gpu': 1, 'prefetch_mode': 'cpu'}]


@pytest.mark.parametrize('workers', WORKERS)
def test_an_image_damaged_in_the_middle_of_training_ends_it_by_name(train_opt, tmp_path, folders, workers):
    train_opt['datasets']['train'] |= workers
    with pytest.raises(UserError, match=r'datasets.train: .*GT/3.png: not a readable image .*; accepted: .*: true, wh'):
        run(train_opt, tmp_path, 20, on_iteration=damage_when_trained(folders / 'GT' / '3.png'))
    assert 'GT/3.png: not a readable image' in log_text(tmp_path).splitlines()[-1]


@pytest.mark.parametrize('workers', [pytest.param(WORKERS[0], marks=pytest.mark.slow), WORKERS[1]])
def test_by_option_a_damaged_image_is_skipped_named_once_and_counted(train_opt, tmp_path, folders, workers):
    train_opt['datasets']['train'] |= {'skip_damaged': True, **workers}
    run(train_opt, tmp_path, 20, on_iteration=damage_when_trained(folders / 'LQ' / '3.png'))
    line, total = [line for line in log_text(tmp_path).splitlines() if 'LQ/3.png' in line]
    assert re.search(r'LQ/3.png: not a .*; another image takes its place \(1 damaged, in \d samples so far\)', line)
    assert re.search(r'another took their place: .*LQ/3.png \d+\.$', total)
    assert result(tmp_path, 20)['iter'] == 20


def test_damaged_images_that_can_not_be_replaced_end_the_training_in_a_line(train_opt, tmp_path, folders):
    train_opt['datasets']['train'] |= {'num_worker_per_gpu': 1, 'skip_damaged': True}

    def damage_all(iteration: int) -> None:
        for path in folders.glob('GT/*.png'):
            os.truncate(path, 50)

    with pytest.raises(UserError, match=r'^datasets.train: 10 images in a row cannot be read: .*GT/\d.png: not a r'):
        run(train_opt, tmp_path, 20, on_iteration=damage_all)


def test_a_damaged_validation_image_is_named(train_opt, tmp_path, folders, data):
    train_set = train_opt['datasets']['train']
    train_opt['datasets']['val'] |= {key: train_set[key] for key in ('dataroot_gt', 'dataroot_lq')}
    train_set |= tiny_train_opt(data, data)['datasets']['train']
    with pytest.raises(UserError, match=r'datasets: .*LQ/3.png: not a readable image'):
        run(train_opt, tmp_path, 20, on_iteration=damage_when_trained(folders / 'LQ' / '3.png'))


@pytest.mark.parametrize('error', [ConnectionResetError(104, 'Connection reset by peer'), EOFError()])
def test_a_worker_that_is_killed_while_it_sends_a_batch_ends_the_training_in_a_line(
    train_opt, tmp_path, monkeypatch, error
):
    def broken(*_: object) -> Iterator[dict]:
        raise error
        yield {}

    monkeypatch.setattr('facd_basicsr.data.loaders._prefetched', broken)
    with pytest.raises(UserError, match=r'datasets.train: DataLoader worker exited \(.*Error\); perhaps memory'):
        run(train_opt, tmp_path, 2)


def test_a_worker_that_is_killed_ends_the_training_in_a_line(train_opt, tmp_path):
    train_opt['datasets']['train'] |= {'num_worker_per_gpu': 1, 'dataset_enlarge_ratio': 50}

    def kill_the_worker(iteration: int) -> None:
        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(UserError, match=r'datasets.train: DataLoader worker .*(killed by|exited).*; perhaps memory'):
        run(train_opt, tmp_path, 80, on_iteration=kill_the_worker)
