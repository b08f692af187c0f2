"""Images whose header claims more pixels than there is memory for: refused by name wherever they are first read."""

import resource
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest
from basicsr.utils import imfrombytes
from click.testing import CliRunner
from conftest import changed, write_yml

from facd_basicsr.cli import facd
from facd_basicsr.data.damaged_images import check_files, check_lmdb
from facd_basicsr.data.paths import check_whole_dataset
from facd_basicsr.errors import UserError
from facd_basicsr.files import parallel
from facd_basicsr.files.images import image_size, read_bgr
from facd_basicsr.options import load_options

SIZES = [(60_000, 60_000), (2**31 - 1, 2**31 - 1)]
pytestmark = [
    pytest.mark.parametrize('size', SIZES, ids=str),
    pytest.mark.usefixtures('memory_is_short'),
]


def claiming(size: tuple[int, int], depth: int = 8) -> bytes:
    """A PNG of a few bytes, with right checksums, that claims a size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))

    header = struct.pack('>IIBBBBB', *size, depth, 2, 0, 0, 0)
    return (
        b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(bytes(99))) + chunk(b'IEND', b'')
    )


@pytest.fixture
def memory_is_short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """2 GB more than this process has: an image of 60000 x 60000 has 10.8."""
    monkeypatch.setattr(parallel, 'THREADS', 2)  # each reserves some
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def bomb(size, tmp_path) -> Path:
    path = tmp_path / 'SET' / 'bomb.png'
    path.parent.mkdir()
    path.write_bytes(claiming(size))
    return path


REASON = r'bomb\.png: not a readable image \(Image size \(\d+ pixels\) exceeds limit'


@pytest.mark.parametrize('depth', [8, 16])
@pytest.mark.parametrize('read', [read_bgr, image_size, lambda path: check_files([path], 'gt')])
def test_reading_one_is_refused(read, depth, bomb, size):
    bomb.write_bytes(claiming(size, depth))
    with pytest.raises(UserError, match=REASON):
        read(bomb)


@pytest.mark.parametrize('kind', ['folder', 'benchmarks'])
def test_preparing_one_is_refused(kind, bomb, tmp_path):
    command = ['prepare', kind, str(bomb.parent), '--scale', '2', '--out', str(tmp_path / 'out'), '--workers', '1']
    error = CliRunner().invoke(facd, command).exception
    assert isinstance(error, UserError)
    assert str(error).startswith(str(bomb)) and len(str(error).splitlines()) == 1
    assert 'exceeds limit' in str(error)


@pytest.mark.parametrize('phase', ['train', 'val'])
def test_one_among_the_images_of_a_set_is_refused_before_training(phase, train_opt, bomb, tmp_path):
    cv2.imwrite(str(bomb.with_name('a.png')), np.zeros((48, 48, 3), np.uint8))
    shutil.copytree(bomb.parent, tmp_path / 'LQ')
    opt = changed(train_opt, f'datasets.{phase}.io_backend', {'type': 'disk'})
    opt['datasets'][phase] |= {'dataroot_gt': str(bomb.parent), 'dataroot_lq': str(tmp_path / 'LQ')}
    with pytest.raises(UserError, match=rf'datasets\.{phase}\.dataroot_gt: .*{REASON}'):
        load_options(str(write_yml(opt, tmp_path / 'opt.yml')), [], is_train=True)
    with pytest.raises(UserError, match=rf'datasets\.{phase}\.dataroot_gt: .*{REASON}'):
        check_whole_dataset(phase, opt['datasets'][phase], 2)


def test_one_in_an_lmdb_is_refused_where_every_image_is_read(size, data, tmp_path):
    path = Path(shutil.copytree(data / 'HR.lmdb', tmp_path / 'HR.lmdb'))
    with lmdb.open(str(path)) as env, env.begin(write=True) as txn:
        txn.put(b'0002_s001', claiming(size))
    with pytest.raises(UserError, match=r'gt: .*HR\.lmdb: 0002_s001 is damaged \(Image size .* exceeds limit'):
        check_lmdb(path, 'gt')


def test_opencv_takes_no_memory_for_one_that_only_training_reads(size):
    """The start of training looks at no image of an LMDB, and at a hundred of a folder; ``facd check`` at all."""
    with pytest.raises((cv2.error, AttributeError)):  # what BasicSR makes of the None that OpenCV gives
        imfrombytes(claiming(size), float32=True)
