"""Small data, networks and option files shared by the tests."""

import copy
import gc
import importlib.util
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import lmdb
import numpy as np
import pytest
import torch
import yaml

import facd_basicsr

# isort: split
from basicsr.archs import build_network
from basicsr.utils import set_random_seed
from hypothesis import settings
from processes import run, run_in_new_interpreter  # noqa: F401  tests import them from here
from torchvision.models import alexnet

from facd_basicsr.data.bicubic import bicubic_lr, with_bicubic_lr
from facd_basicsr.data.lmdb_pairs import write_lmdbs
from facd_basicsr.distill import teacher
from facd_basicsr.distill.teacher import Teacher
from facd_basicsr.options import check_inputs, parse_options, parser, schema

REPOSITORY = Path(facd_basicsr.__file__).resolve().parents[1]
SHARED_DATA = REPOSITORY.parent / 'shared' / 'data'

# Processes that tests start are not measured: tracing would take longer than their work. pytest-xdist's controller
# keeps the variable, since its workers inherit it.
if 'PYTEST_XDIST_WORKER' in os.environ:
    os.environ.pop('COVERAGE_PROCESS_CONFIG', None)

# Without a deadline: tests must not fail on a busy machine.
settings.register_profile('quick', deadline=None, max_examples=40)
settings.register_profile('with slow tests', deadline=None)


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile('quick' if config.option.markexpr == 'not slow' else 'with slow tests')


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker('gpu'):
                item.add_marker(pytest.mark.skip(reason='no CUDA GPU'))


def pytest_collection() -> None:
    gc.disable()  # what is imported and collected stays


def pytest_collection_finish() -> None:
    gc.freeze()  # every run ends with gc.collect(), most of whose time would go to what was imported
    gc.enable()


MEAN = [0.4488, 0.4371, 0.4040]
STUDENT = {'type': 'EDSRStudent', 'num_feat': 4, 'num_block': 3, 'upscale': 2}
TEACHER = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 6, 'num_block': 3, 'upscale': 2}


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """A smooth random BGR uint8 picture."""
    coarse = np.random.default_rng(seed).uniform(0, 255, (height // 8, width // 8, 3)).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)


def decoded(path: Path) -> dict[str, np.ndarray]:
    """Every image of an LMDB by key."""
    with lmdb.open(str(path), readonly=True, lock=False) as env, env.begin() as txn:
        return {key.decode(): cv2.imdecode(np.frombuffer(value, np.uint8), -1) for key, value in txn.cursor()}


@pytest.fixture(scope='session')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``HR.lmdb`` and ``LR.lmdb`` (x2) of six 48x48 pictures, and ``GT`` and ``LQ`` folders of two."""
    root = tmp_path_factory.mktemp('data')
    sources = {f'{i:04d}': partial(with_bicubic_lr, picture(i, 48, 48), multiple=2) for i in range(6)}
    write_lmdbs(sources, {1: root / 'HR.lmdb', 2: root / 'LR.lmdb'}, 480, 240)
    for folder in ('GT', 'LQ'):
        (root / folder).mkdir()
    for i in range(2):
        gt = picture(100 + i, 32, 48)
        cv2.imwrite(str(root / 'GT' / f'{i}.png'), gt)
        cv2.imwrite(str(root / 'LQ' / f'{i}.png'), bicubic_lr(gt, 2))
    return root


@pytest.fixture(scope='session')
def teacher_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of ``TEACHER`` in BasicSR's layout."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp('teacher') / 'teacher.pth'
    torch.save({'params': build_network(TEACHER).state_dict()}, path)
    return path


METRICS = {
    'psnr_y': {'type': 'calculate_psnr', 'crop_border': 2, 'test_y_channel': True},
    'ssim_y': {'type': 'calculate_ssim', 'crop_border': 2, 'test_y_channel': True},
    'psnr_rgb': {'type': 'calculate_psnr', 'crop_border': 2, 'test_y_channel': False},
}


def tiny_train_opt(data: Path, teacher_weights: Path) -> dict:
    """A complete option dict, as in an option file, for FACD training in seconds."""
    return copy.deepcopy(
        {
            'name': 'tiny',
            'model_type': 'FACDModel',
            'scale': 2,
            'num_gpu': 0,
            'manual_seed': 7,
            'datasets': {
                'train': {
                    'name': 'pictures',
                    'type': 'PairedImageDataset',
                    'dataroot_gt': str(data / 'HR.lmdb'),
                    'dataroot_lq': str(data / 'LR.lmdb'),
                    'io_backend': {'type': 'lmdb'},
                    'gt_size': 24,
                    'use_hflip': True,
                    'use_rot': True,
                    'num_worker_per_gpu': 0,
                    'batch_size_per_gpu': 3,
                    'dataset_enlarge_ratio': 1,
                },
                'val': {
                    'name': 'val',
                    'type': 'PairedImageDataset',
                    'dataroot_gt': str(data / 'GT'),
                    'dataroot_lq': str(data / 'LQ'),
                    'io_backend': {'type': 'disk'},
                },
            },
            'network_g': STUDENT,
            'teacher': {'network': TEACHER, 'weights': str(teacher_weights)},
            'taps': [
                {'student': 'body.0', 'teacher': 'body.0'},
                {'student': 'body.1', 'teacher': 'body.1'},
                {'student': 'upsample:input', 'teacher': 'upsample:input'},
            ],
            'network_r': {'type': 'DeepRegressor'},
            'path': {'resume_state': None},
            'train': {
                'total_iter': 4,
                'optim_g': {'type': 'Adam', 'lr': 1e-3},
                'scheduler': {'type': 'MultiStepLR', 'milestones': [3], 'gamma': 0.5},
                'distill_opt': {'type': 'FACDLoss', 'lambda': 4},
            },
            'val': {'val_freq': 4, 'save_img': False, 'metrics': METRICS},
            'logger': {'print_freq': 1, 'save_checkpoint_freq': 2, 'use_tb_logger': True},
        }
    )


def tiny_test_opt(data: Path) -> dict:
    """A complete option dict for testing a ``STUDENT`` checkpoint; the caller sets its path."""
    dataset = {
        'name': 'pictures',
        'type': 'PairedImageDataset',
        'dataroot_gt': str(data / 'GT'),
        'dataroot_lq': str(data / 'LQ'),
        'io_backend': {'type': 'disk'},
    }
    return copy.deepcopy(
        {
            'name': 'tiny_test',
            'model_type': 'SRModel',
            'scale': 2,
            'num_gpu': 0,
            'manual_seed': 0,
            'datasets': {'test_1': dataset},
            'network_g': STUDENT,
            'path': {'pretrain_network_g': None, 'strict_load_g': True},
            'val': {'save_img': False, 'suffix': None, 'metrics': METRICS},
        }
    )


def save_features(path: Path, build: Callable[..., Any], end: int | None = None) -> Path:
    """Writes a checkpoint of one of torchvision's networks, random and without its classifier, in its layout.

    Args:
        end: the number of layers; None: all of ``features``.
    """
    with torch.device('meta'):
        layers = build(weights=None).features[:end]
    generator = torch.Generator().manual_seed(0)
    deviations = {key: (2 / value[0].numel()) ** 0.5 for key, value in layers.state_dict().items()}
    weights = {
        f'features.{key}': torch.randn(value.shape, generator=generator) * deviations[key] * key.endswith('weight')
        for key, value in layers.state_dict().items()
    }
    torch.save({**weights, 'classifier.0.bias': torch.zeros(2)}, path)
    return path


@pytest.fixture(scope='session')
def lpips(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """LPIPS's block in ``val.metrics``, on a random AlexNet."""
    pytest.importorskip('torchmetrics')
    path = save_features(tmp_path_factory.mktemp('lpips') / 'alexnet.pth', alexnet)
    return {'type': 'calculate_lpips', 'crop_border': 0, 'weights': str(path)}


@pytest.fixture
def train_opt(data: Path, teacher_weights: Path) -> dict:
    return tiny_train_opt(data, teacher_weights)


@pytest.fixture
def test_opt(data: Path) -> dict:
    return tiny_test_opt(data)


def changed(opt: dict, location: str, value: object) -> dict:
    """A copy of ``opt`` with the key at a dotted location set, or removed if ``value`` is ``...``."""
    opt = copy.deepcopy(opt)
    block = opt
    *parents, leaf = location.split('.')
    for key in parents:
        block = block[int(key) if isinstance(block, list) else key]
    if value is ...:
        del block[leaf]
    else:
        block[int(leaf) if isinstance(block, list) else leaf] = value
    return opt


def with_two_teachers(opt: dict) -> dict:
    """A copy with a second teacher, eight features wide, which is tapped after other blocks; ``nearest`` teaches."""
    opt = copy.deepcopy(opt)
    network = {**TEACHER, 'num_feat': 8}
    path = Path(opt['teacher']['weights']).with_name('wide.pth')
    torch.save({'params': seeded(network, 2)}, path)
    opt['teacher'] = [opt['teacher'], {'network': network, 'weights': str(path)}]
    for tap, other in zip(opt['taps'], ('body.1', 'body.2')):
        tap['teacher'] = [tap['teacher'], other]
    opt['train']['teacher_target'] = 'nearest'
    return opt


def seeded(network_opt: dict, seed: int) -> dict[str, torch.Tensor]:
    """The weights that a network begins with, without a draw from torch's generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_network(network_opt).state_dict()


def write_yml(opt: dict, path: Path) -> Path:
    path.write_text(yaml.safe_dump(opt, sort_keys=False), encoding='utf-8')
    return path


@pytest.fixture(scope='session')
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout; its entry points write their results into it."""
    root = tmp_path_factory.mktemp('checkout')
    for name in ('facd_basicsr', 'options', 'demo'):
        shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('facd_cli.py', 'setup.py'):
        shutil.copy(REPOSITORY / name, root)
    return root


def train_options(opt: dict, folder: Path) -> dict:
    """The option dict after train.py's set-up: written to a file in ``folder``, read, checked, and the seed set."""
    path = str(write_yml(opt, folder / 'opt.yml'))
    parsed = parse_options(parser().parse_args(['-opt', path]), is_train=True, root=folder)
    check_inputs(parsed, path, is_train=True)
    set_random_seed(parsed['manual_seed'])
    return parsed


def build_teacher(teacher_opt: dict, scale: int) -> Teacher:
    """The teacher of a block whose defaults are not filled in."""
    defaults = {key: own.default for key, own in schema.TEACHER.items() if own.default is not ...}
    return teacher.build_teacher({**defaults, **teacher_opt}, scale)


def imported_script(path: Path) -> ModuleType:
    """Imports a script of the repository that is not in a package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def no_data(train_opt: dict, tmp_path: Path) -> Path:
    """A train file whose data and teacher checkpoint do not exist."""
    train_opt['datasets']['train']['dataroot_gt'] = '/absent/HR.lmdb'
    train_opt['path']['pretrain_network_g'] = '/absent/net_g.pth'
    return write_yml(changed(train_opt, 'teacher.weights', '/absent/teacher.pth'), tmp_path / 'train.yml')
