"""Exact resume: a run that was stopped and resumed ends as one that never was, to the last bit."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from basicsr.archs.edsr_arch import EDSR
from basicsr.utils.registry import ARCH_REGISTRY
from conftest import write_yml
from runs import assert_same, result, scalars
from torch.nn import functional as F  # noqa: N812

from facd_basicsr.options import parser
from facd_basicsr.train import train

TOTAL = 8


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


def student_alone(opt: dict) -> None:
    for key in ('teacher', 'taps', 'network_r'):
        del opt[key]
    opt |= {'model_type': 'SRModel'}
    opt['train'] |= {'ema_decay': 0.9, 'pixel_opt': {'type': 'L1Loss'}}
    del opt['train']['distill_opt']


def random_student(opt: dict) -> None:
    opt['network_g'] = {'type': 'RandomStudent'}


def seed_drawn(opt: dict) -> None:
    del opt['manual_seed']


def two_workers(opt: dict) -> None:
    opt['datasets']['train']['num_worker_per_gpu'] = 2


def prefetching(opt: dict) -> None:
    opt['datasets']['train'] |= {'num_worker_per_gpu': 1, 'prefetch_mode': 'cpu'}


def run(opt: dict, root: Path, total_iter: int = TOTAL, *flags: str) -> None:
    root.mkdir(exist_ok=True)
    args = ['-opt', str(write_yml(opt, root / 'opt.yml')), '--force_yml', f'train:total_iter={total_iter}', *flags]
    train(parser().parse_args(args), root=root, console=False)


@pytest.mark.parametrize(
    ('change', 'stops'),
    [
        (facd, [1]),
        (facd, [3, 4, 7]),  # in the middle of an epoch, at its end, and again
        (two_workers, [3]),
        (prefetching, [3]),
        (student_alone, [3]),
        (random_student, [3, 4]),
    ],
)
def test_a_run_that_was_stopped_and_resumed_ends_as_one_that_never_was(train_opt, tmp_path, change, stops):
    train_opt['datasets']['train']['dataset_enlarge_ratio'] = 2  # four iterations an epoch
    train_opt['logger'] |= {'save_checkpoint_freq': 100}
    train_opt['val']['val_freq'] = 4
    change(train_opt)
    run(train_opt, tmp_path / 'whole')
    for total in stops:
        run(train_opt, tmp_path / 'stopped', total, '--auto_resume')
    run(train_opt, tmp_path / 'stopped', TOTAL, '--auto_resume')
    assert_same(result(tmp_path / 'stopped', TOTAL), result(tmp_path / 'whole', TOTAL))
    whole, stopped = scalars(tmp_path / 'whole'), scalars(tmp_path / 'stopped')
    for tag, values in whole.items():
        assert values.items() <= stopped[tag].items(), tag  # it was validated at its stops as well


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
