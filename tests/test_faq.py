"""Every message that docs/faq.md quotes is provoked as a user would, or found in its source."""

import importlib
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
from basicsr.archs import build_network
from basicsr.utils import mkdir_and_rename
from conftest import REPOSITORY, TEACHER, changed, tiny_train_opt, write_yml

from facd_basicsr.data.loaders import reraise_killed_worker
from facd_basicsr.errors import Stopped, UserError
from facd_basicsr.files.download import download
from facd_basicsr.options import load_options, parser
from facd_basicsr.train import train

TEXT = (REPOSITORY / 'docs' / 'faq.md').read_text(encoding='utf-8')
MESSAGES = dict(re.findall(r'^### (.+)\n\n```\n(.+)\n```$', TEXT, flags=re.MULTILINE))
EDSR, RCAN = 'options/train/FACD_EDSR_x4.yml', 'options/train/FACD_RCAN_x4.yml'

Provocation = Callable[['NewUser'], object]


class NewUser:
    """A new user's working directory, with the option files and nothing else, and tiny data elsewhere."""

    def __init__(self, tmp_path: Path, data: Path, teacher_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path, self.data, self.monkeypatch = tmp_path, data, monkeypatch
        self.opt = tiny_train_opt(data, teacher_weights)
        (tmp_path / 'options').symlink_to(REPOSITORY / 'options')
        monkeypatch.chdir(tmp_path)

    def message_of(self, provocation: Provocation, capsys: pytest.CaptureFixture[str]) -> str:
        try:
            provocation(self)
        except UserError as error:
            return f'error: {error}'
        except Stopped as stopped:
            return str(stopped)
        except ModuleNotFoundError as error:
            return f'{type(error).__name__}: {error}'
        return capsys.readouterr().out

    def train(self, opt: dict, *flags: str, on_iteration: Callable[[int], None] = lambda _: None) -> None:
        args = parser().parse_args(['-opt', str(write_yml(opt, self.path / 'tiny.yml')), *flags])
        train(args, root=self.path, console=False, on_iteration=on_iteration)


def shipped(option_file: str, *overrides: str, with_data: bool = False) -> Provocation:
    """An option file of the repository, read as by train.py or test.py."""
    return lambda user: load_options(option_file, overrides, 'options/test' not in option_file, with_data)


def tiny(location: str, value: object | Callable[[NewUser], object], *flags: str) -> Provocation:
    """A tiny run with one key changed."""
    return lambda user: user.train(changed(user.opt, location, value(user) if callable(value) else value), *flags)


def unfinished_lmdb(user: NewUser) -> str:
    (user.path / 'HR.lmdb').mkdir()
    return str(user.path / 'HR.lmdb')


def another_teacher(user: NewUser) -> str:
    torch.save({'params': build_network({**TEACHER, 'num_block': 2}).state_dict()}, user.path / 'other.pth')
    return str(user.path / 'other.pth')


def with_gpus(available: int, requested: int) -> Provocation:
    def provocation(user: NewUser) -> None:
        user.monkeypatch.setattr(torch.cuda, 'device_count', lambda: available)
        tiny('num_gpu', requested)(user)

    return provocation


def without_spandrel(user: NewUser) -> None:
    torch.save({'layers.0.weight': torch.zeros(1)}, user.path / 'transformer.pth')
    user.monkeypatch.setattr('facd_basicsr.distill.teacher.INSTALLED', False)
    tiny('teacher', {'weights': str(user.path / 'transformer.pth')})(user)


def networks_without_states(user: NewUser) -> None:
    models = user.path / 'experiments' / 'tiny' / 'models'
    models.mkdir(parents=True)
    (models / 'net_g_latest.pth').touch()
    user.train(user.opt, '--auto_resume')


def a_killed_worker(user: NewUser) -> None:
    with reraise_killed_worker():
        raise RuntimeError('DataLoader worker (pid 4711) is killed by signal: Killed. ')


def a_step_that_diverges(user: NewUser) -> None:
    tiny('train.optim_g.lr', 1e30)(user)
    print_warning(user)


def print_warning(user: NewUser) -> None:
    (log,) = user.path.glob('experiments/tiny/*.log')
    print(re.search(r'WARNING: (.*)', log.read_text(encoding='utf-8'))[1])


def no_network(user: NewUser) -> None:
    address = 'http://127.0.0.1:9/edsr_x4-4f62e9ef.pt'  # the `discard` port, where nothing listens
    download(address, user.path / 'edsr.pt', 'teacher.weights', pause=lambda seconds: None)


def plain_basicsr(user: NewUser) -> None:
    name = 'torchvision.transforms.functional_tensor'
    user.monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.import_module(name)


def a_full_disk(user: NewUser) -> None:
    user.monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=1000))
    block = {**user.opt['datasets']['train'], 'io_backend': {'type': 'memory'}}
    for key in ('dataroot_gt', 'dataroot_lq'):  # links: beside the data there may be decoded images
        link = user.path / Path(block[key]).name
        link.symlink_to(block[key])
        block[key] = str(link)
    tiny('datasets.train', block)(user)
    print_warning(user)


PROVOKED: dict[str, Provocation] = {
    'basicsr does not import': plain_basicsr,
    'The data is not there': shipped(EDSR, with_data=True),
    'The LMDB is not finished': tiny('datasets.train.dataroot_gt', unfinished_lmdb),
    'A folder, but type: lmdb': tiny('datasets.val.io_backend.type', 'lmdb'),
    'LQ and GT are of another scale': tiny('datasets.val.dataroot_lq', lambda user: str(user.data / 'GT')),
    'An image has no counterpart': tiny('datasets.val.filename_tmpl', '{}x2'),
    'The patch is larger than an image': tiny('datasets.train.gt_size', 96),
    'Fewer images than a batch': tiny('datasets.train.batch_size_per_gpu', 16),
    'A misspelt key': shipped(EDSR, 'train:distill_opt:lamda=4'),
    'The wrong command for the file': lambda user: load_options(EDSR, [], is_train=False),
    'PSNR of what?': shipped(EDSR, 'val:metrics:psnr_y={type: calculate_psnr, crop_border: 4}'),
    'Another scale': shipped(EDSR, 'scale=2'),
    'There is no GPU': with_gpus(0, requested=1),
    'Several GPUs': with_gpus(4, requested=4),
    'The teacher is not there': shipped(RCAN),
    'The teacher cannot be downloaded': no_network,
    'The teacher is of another network': tiny('teacher.weights', another_teacher),
    'Which network is it?': tiny('teacher.network', ...),
    'spandrel is not installed': without_spandrel,
    'The teacher is not as good as it should be': tiny(
        'teacher.expect', {'dataset': 'val', 'psnr_y': 32.39, 'tolerance': 0.1}
    ),
    'A tap that is overwritten': tiny('taps.2.teacher', 'conv_after_body'),
    'A tap that does not exist': tiny('taps.0.student', 'body.9'),
    'A batch of one': tiny('datasets.train.batch_size_per_gpu', 1),
    'A worker was killed': a_killed_worker,
    'Decoded images cannot be kept': a_full_disk,
    'Exit code 75': lambda user: user.train(user.opt, on_iteration=lambda _: os.kill(os.getpid(), signal.SIGTERM)),
    'Folders that end in archived and a time': lambda user: [
        mkdir_and_rename(str(user.path / 'tiny')) for _ in range(2)
    ],
    'Nothing to resume': networks_without_states,
    'A loss that is not finite': a_step_that_diverges,
    'There is nothing to test': shipped('options/test/FACD_EDSR_x4.yml'),
}
# Messages of other programs, or too expensive to provoke: a part of the message, and the file that contains it.
WRITTEN = {
    'basicsr does not build on Python 3.13': ("KeyError: '__version__'", 'requirements/basicsr_build/sitecustomize.py'),
    'torchvision does not import': ('torchvision::nms', Path(torchvision.__file__).parent / '_meta_registrations.py'),
    'The interpreter is too old or too new': ('accepted: 3.10 to 3.13, e.g. PYTHON=python3.12 make demo', 'Makefile'),
    'Out of memory': (
        'CUDA out of memory. Tried to allocate ',
        Path(torch.__file__).parent / 'lib' / 'libc10_cuda.so',
    ),
    'Another rank has ended': ('another rank has ended, or is out of reach (', 'facd_basicsr/engine/launch.py'),
}


@pytest.fixture
def user(tmp_path, data, teacher_weights, monkeypatch):
    return NewUser(tmp_path, data, teacher_weights, monkeypatch)


def test_every_message_of_the_page_is_tested():
    assert MESSAGES.keys() == PROVOKED.keys() | WRITTEN.keys()
    assert len(MESSAGES) == TEXT.count('\n```\n') // 2  # every message is under its heading


@pytest.mark.parametrize('heading', PROVOKED)
def test_a_message_is_printed_as_quoted(heading, user, capsys):
    quoted = '.*'.join(re.escape(part) for part in MESSAGES[heading].split('...'))
    assert re.fullmatch(quoted, user.message_of(PROVOKED[heading], capsys).strip())


@pytest.mark.parametrize('heading', WRITTEN)
def test_a_message_that_is_not_provoked_is_in_its_source(heading):
    words, path = WRITTEN[heading]
    assert words in MESSAGES[heading]
    if not (REPOSITORY / path).is_file():
        pytest.skip(f'this torch has no {path.name}')
    assert words.encode() in (REPOSITORY / path).read_bytes()


@pytest.mark.skipif(not hasattr(torch, 'OutOfMemoryError'), reason='torch before 2.5 has no torch.OutOfMemoryError')
def test_torchs_out_of_memory_error_has_the_quoted_name():
    error = torch.OutOfMemoryError
    assert MESSAGES['Out of memory'].startswith(f'{error.__module__}.{error.__name__}: ')


def test_a_quoted_message_is_specific():
    for message in MESSAGES.values():
        assert len(message.replace('...', '')) > 20 and not message.startswith('...')
