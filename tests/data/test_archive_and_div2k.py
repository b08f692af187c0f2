import stat
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import decoded, picture

from facd_basicsr.cli import facd
from facd_basicsr.data import div2k
from facd_basicsr.data.bicubic import bicubic_lr
from facd_basicsr.data.div2k import prepare_div2k, unpack
from facd_basicsr.errors import UserError


def png(image: np.ndarray) -> bytes:
    return cv2.imencode('.png', image)[1].tobytes()


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    """DIV2K of two small images."""
    folder = tmp_path / 'archives'
    folder.mkdir()
    images = {'0001': picture(1, 48, 600), '0002': picture(2, 72, 48)}
    with zipfile.ZipFile(folder / 'DIV2K_train_HR.zip', 'w') as archive:
        archive.writestr('DIV2K_train_HR/', '')
        for key, image in images.items():
            archive.writestr(f'DIV2K_train_HR/{key}.png', png(image))
    for scale in (2, 4):
        with zipfile.ZipFile(folder / f'DIV2K_train_LR_bicubic_X{scale}.zip', 'w') as archive:
            for key, image in images.items():
                name = f'DIV2K_train_LR_bicubic/X{scale}/{key}x{scale}.png'
                archive.writestr(name, png(255 - bicubic_lr(image, scale)))  # not what we would make of HR
    return folder


@pytest.fixture
def mirror(archives: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    monkeypatch.setattr(SimpleHTTPRequestHandler, 'log_message', lambda *_: None)
    with ThreadingHTTPServer(('127.0.0.1', 0), partial(SimpleHTTPRequestHandler, directory=archives)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01})
        thread.start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()
        thread.join()


def prepare(*args: object) -> Result:
    return CliRunner().invoke(facd, ['prepare', 'div2k', *map(str, args)])


def test_div2k_is_downloaded_unpacked_and_paired_with_its_own_lr(mirror, tmp_path):
    out = tmp_path / 'DIV2K'
    done = prepare('--scale', '2', '4', '--out', out, '--url', mirror, '--workers', '1')
    assert done.exit_code == 0, done.output
    for name, shapes in (
        ('DIV2K_train_HR_sub', ['(48,480,3)', '(48,480,3)', '(72,48,3)']),
        ('DIV2K_train_LR_bicubic_X2_sub', ['(24,240,3)', '(24,240,3)', '(36,24,3)']),
    ):
        lines = (out / f'{name}.lmdb' / 'meta_info.txt').read_text().splitlines()
        assert lines == [f'{key}.png {shape} 1' for key, shape in zip(('0001_s001', '0001_s002', '0002_s001'), shapes)]
    x4 = decoded(out / 'DIV2K_train_LR_bicubic_X4_sub.lmdb')
    assert np.array_equal(x4['0001_s002'], 255 - bicubic_lr(picture(1, 48, 600), 4)[:, 30:])

    for path in out.iterdir():  # archives and unpacked images are not needed any more
        if path.suffix == '.zip':
            path.unlink()
    again = prepare('--scale', '2', '4', '--out', out, '--url', 'http://127.0.0.1:9')
    assert again.exit_code == 0 and again.output.startswith('already there: ')


def test_a_scale_can_be_added_and_the_archives_lie_in_a_folder(archives, tmp_path, capsys):
    prepare_div2k([2], tmp_path / 'out', str(archives), 1)
    hr = tmp_path / 'out' / 'DIV2K_train_HR_sub.lmdb' / 'data.mdb'
    before = hr.stat().st_mtime_ns
    (archives / 'DIV2K_train_HR.zip').unlink()  # unpacked, so not needed
    prepare_div2k([2, 4], tmp_path / 'out', str(archives), 1)
    assert '3 pairs: ' in capsys.readouterr().out
    assert hr.stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r'--url: .*archives has no DIV2K_train_LR_bicubic_X3\.zip; accepted'):
        prepare_div2k([3], tmp_path / 'out', str(archives), 1)


def test_an_lr_image_of_another_size_is_refused_by_name(archives, tmp_path):
    (archives / 'DIV2K_train_LR_bicubic_X2.zip').unlink()
    with zipfile.ZipFile(archives / 'DIV2K_train_LR_bicubic_X2.zip', 'w') as archive:
        archive.writestr('DIV2K_train_LR_bicubic/X2/0001x2.png', png(picture(1, 24, 304)))
    with pytest.raises(
        UserError, match=r'X2/0001x2\.png: 304x24 pixels for an HR image of 600x48; accepted: exactly HR / 2'
    ):
        prepare_div2k([2], tmp_path / 'out', str(archives), 1)
    assert not (tmp_path / 'out' / 'DIV2K_train_HR_sub.lmdb').exists()


def test_the_official_archives_are_checked_by_their_digest(archives, tmp_path):
    with pytest.raises(UserError, match=r'DIV2K_train_HR\.zip has sha256 \w+; accepted: 9d0b9c46\w+; delete it'):
        prepare_div2k([2], archives, div2k.OFFICIAL_URL, 1)


def test_unpacking_continues_and_checks_every_file(archives, tmp_path):
    archive = archives / 'DIV2K_train_HR.zip'
    kept = tmp_path / 'out' / 'DIV2K_train_HR' / '0001.png'
    unpack(archive, tmp_path / 'out')
    kept.with_name('0002.png').unlink()
    before = kept.stat().st_mtime_ns
    unpack(archive, tmp_path / 'out')
    assert kept.stat().st_mtime_ns == before and sorted(path.name for path in kept.parent.iterdir()) == [
        '0001.png',
        '0002.png',
    ]

    damaged = bytearray(archive.read_bytes())
    damaged[damaged.index(b'IDAT') + 20] ^= 1
    (tmp_path / 'damaged.zip').write_bytes(damaged)
    with pytest.raises(UserError, match=r'damaged\.zip: damaged or no zip archive \(Bad CRC-32 .*0001\.png.*\); del'):
        unpack(tmp_path / 'damaged.zip', tmp_path / 'elsewhere')
    assert not (tmp_path / 'elsewhere' / 'DIV2K_train_HR' / '0001.png').exists()
    (tmp_path / 'text.zip').write_text('no archive')
    with pytest.raises(UserError, match=r'text\.zip: damaged or no zip archive \(File is not a zip file\)'):
        unpack(tmp_path / 'text.zip', tmp_path / 'elsewhere')


@pytest.mark.parametrize(
    'name',
    [
        '../x.png',
        '/x.png',
        'a/../../x.png',
        '..\\x.png',
        'a\\..\\..\\x.png',
        'C:\\x.png',
        'C:x.png',
        '\\\\host\\share\\x.png',
    ],
)
def test_an_archive_cannot_write_outside_its_folder(tmp_path, name):
    with zipfile.ZipFile(tmp_path / 'evil.zip', 'w') as archive:
        archive.writestr('good.png', b'')
        archive.writestr(name, b'')
    with pytest.raises(UserError, match=r'evil\.zip: names a file outside its folder \(.*x\.png\); not unpacked'):
        unpack(tmp_path / 'evil.zip', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('name', ['.', '..', 'a/..'])
def test_an_archive_cannot_name_a_folder_as_a_file(tmp_path, name):
    with zipfile.ZipFile(tmp_path / 'evil.zip', 'w') as archive:
        archive.writestr(name, b'')
    with pytest.raises(UserError, match=r'evil\.zip: names a file outside its folder \(.*\); not unpacked'):
        unpack(tmp_path / 'evil.zip', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_an_archive_cannot_write_through_a_link(tmp_path):
    link = zipfile.ZipInfo('link')
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / 'evil.zip', 'w') as archive:
        archive.writestr(link, str(tmp_path / 'elsewhere'))
        archive.writestr('link/x.png', b'')
    (tmp_path / 'elsewhere').mkdir()
    with pytest.raises(UserError, match=r'evil\.zip: holds a link \(link\); not unpacked'):
        unpack(tmp_path / 'evil.zip', tmp_path / 'out')
    assert not (tmp_path / 'out').exists() and not list((tmp_path / 'elsewhere').iterdir())
