"""The examples of docs/extending.md train, unchanged, in a copy of the checkout."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network
from conftest import REPOSITORY, TEACHER, run, write_yml

PAGE = (REPOSITORY / 'docs' / 'extending.md').read_text(encoding='utf-8')
FILES = dict(re.findall(r'^`([\w/.]+)`:\n\n```\w+\n(.*?)^```', PAGE, flags=re.MULTILINE | re.DOTALL))
CODE = [path for path in FILES if path.endswith('.py')]
OPTION_FILES = [path for path in FILES if path.endswith('.yml')]
TRAIN_ALL = """
import sys
from pathlib import Path
from facd_basicsr.options import parser
from facd_basicsr.train import train

for option_file in sys.argv[1:]:
    train(parser().parse_args(['-opt', option_file]), console=False)
"""


@pytest.fixture(scope='module')
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with the page's files, whose option files were trained with a tiny teacher and little data."""
    root = tmp_path_factory.mktemp('checkout')
    for name in ('facd_basicsr', 'options'):
        shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('facd_cli.py', 'setup.py'):
        shutil.copy(REPOSITORY / name, root)
    for path, text in FILES.items():
        (root / path).write_text(text, encoding='utf-8')

    network = {'num_feat': 4, 'num_block': 32}
    torch.save({'params': build_network({**TEACHER, **network}).state_dict()}, root / 'teacher.pth')
    train_set = {
        'dataroot_gt': str(data / 'HR.lmdb'), 'dataroot_lq': str(data / 'LR.lmdb'), 'gt_size': 24,
        'num_worker_per_gpu': 0, 'batch_size_per_gpu': 2, 'dataset_enlarge_ratio': 1,
    }  # fmt: skip
    tiny = {
        'num_gpu': 0,
        'datasets': {'train': train_set, 'val': {'dataroot_gt': str(data / 'GT'), 'dataroot_lq': str(data / 'LQ')}},
        'teacher': {'network': network, 'weights': str(root / 'teacher.pth'), 'expect': None},
        'train': {'total_iter': 3},
        'logger': {'print_freq': 1, 'use_tb_logger': False},
    }
    small = [write_yml({'base': path, **tiny}, root / f'tiny_{Path(path).name}') for path in OPTION_FILES]
    done = run('-c', TRAIN_ALL, *small, cwd=root)
    assert done.returncode == 0, done.stderr
    return root


def log_of(root: Path, name: str) -> str:
    return next((root / 'experiments' / name).glob('train_*.log')).read_text()


def test_the_page_has_losses_and_a_student_with_an_option_file_each():
    assert [Path(path).parent.name for path in FILES] == ['losses', 'train', 'losses', 'train', 'archs', 'train']


@pytest.mark.parametrize('path', CODE)
def test_no_example_is_longer_than_its_title_says(path):
    assert len(FILES[path].splitlines()) <= (45 if 'inversion' in path else 30)


def test_the_loss_trains_with_its_own_term(trained):
    log = log_of(trained, 'AT_EDSR_x2')
    terms = [float(value) for value in re.findall(r'l_at: ([\d.e+-]+)', log)]
    assert len(terms) == 3 and min(terms) > 0
    models = [path.name for path in (trained / 'experiments' / 'AT_EDSR_x2' / 'models').iterdir()]
    assert 'net_g_latest.pth' in models and not any(name.startswith('net_r') for name in models)


def test_the_loss_with_a_view_trains_with_what_the_student_gives_on_it(trained):
    log = log_of(trained, 'Inversion_EDSR_x2')
    terms = [float(value) for value in re.findall(r'l_inversion: ([\d.e+-]+)', log)]
    assert len(terms) == 3 and min(terms) > 0


def test_the_student_trains_with_facd(trained):
    log = log_of(trained, 'FACD_Plain_x2')
    assert 'Network [PlainStudent] is created' in log and len(re.findall(r'l_facd: ', log)) == 3
    models = trained / 'experiments' / 'FACD_Plain_x2' / 'models'
    assert (models / 'net_r_latest.pth').is_file()
    weights = torch.load(models / 'net_g_latest.pth', weights_only=True)['params']
    assert weights['body.8.0.weight'].shape == (48, 48, 3, 3)


@pytest.mark.slow
def test_the_loss_passes_the_tests_of_every_loss(trained):
    shutil.copytree(REPOSITORY / 'tests', trained / 'tests')
    shutil.copy(REPOSITORY / 'pyproject.toml', trained)
    done = run('-m', 'pytest', '-k', 'ATLoss', 'tests/losses/test_every_loss.py', cwd=trained)
    assert done.returncode == 0, done.stdout
    assert int(re.search(r'(\d+) passed', done.stdout)[1]) > 10
