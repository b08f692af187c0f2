import json
import os
import re
from pathlib import Path
from unittest.mock import Mock

import cv2
import lmdb
import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import decoded, picture, run
from PIL import Image

from facd_basicsr.cli import facd
from facd_basicsr.data.bicubic import bicubic_lr
from facd_basicsr.data.loaders import build_ordered_dataset
from facd_basicsr.data.paths import check_paths
from facd_basicsr.errors import UserError, reraise_disk_errors


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / 'SET_HR'
    folder.mkdir()
    for i, (height, width) in enumerate([(100, 76), (64, 130)]):
        cv2.imwrite(str(folder / f'{i}.png'), picture(i, height, width))
    cv2.imwrite(str(folder / 'gray.jpg'), picture(9, 72, 72)[:, :, 0])
    return folder


def prepare(*args: object) -> Result:
    return CliRunner().invoke(facd, ['prepare', *map(str, args)])


def refusal(*args: object) -> str:
    """The error message for these arguments."""
    error = prepare(*args).exception
    assert isinstance(error, UserError), error
    return str(error)


def test_the_command_writes_aligned_sub_images_for_every_scale(photographs, tmp_path):
    command = ('-m', 'facd_basicsr.cli', 'prepare', 'folder', photographs, '--scale', '2', '4')
    sizes = ('--crop', '48', '--step', '24', '--workers', '1')
    done = run(*command, *sizes, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    hr = decoded(tmp_path / 'SET_HR_sub.lmdb')
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        'SET_HR', 'SET_HR_sub.lmdb', 'SET_LR_bicubic_X2_sub.lmdb', 'SET_LR_bicubic_X4_sub.lmdb',
    ]  # fmt: skip
    assert f'{len(hr)} pairs' in done.stdout
    for scale in (2, 4):
        lr = decoded(tmp_path / f'SET_LR_bicubic_X{scale}_sub.lmdb')
        assert lr.keys() == hr.keys()
        full_lr = bicubic_lr(picture(0, 100, 76), scale)
        assert np.array_equal(lr['0_s001'], full_lr[: 48 // scale, : 48 // scale])
        roots = {'dataroot_gt': 'SET_HR_sub.lmdb', 'dataroot_lq': f'SET_LR_bicubic_X{scale}_sub.lmdb'}
        dataset = {'type': 'PairedImageDataset', 'io_backend': {'type': 'lmdb'}}
        dataset |= {key: str(tmp_path / name) for key, name in roots.items()}
        check_paths({'scale': scale, 'path': {}, 'datasets': {'train': {**dataset, 'gt_size': 48}}}, is_train=True)
    assert hr['gray_s001'].shape == (48, 48, 3)

    again = prepare('folder', photographs, '--scale', '4', '2', *sizes)
    assert again.exit_code == 0 and again.output.startswith(f'{len(hr)} pairs already there: ')
    assert 'SET_HR_sub.lmdb: already exists, made with other crop (48, now 24)' in refusal(
        'folder', photographs, '--scale', '4', '--crop', '24'
    )
    cv2.imwrite(str(photographs / '0.png'), picture(3, 100, 80))
    assert 'made with other images; delete it, or choose another --out or --name' in refusal(
        'folder', photographs, '--scale', '4', *sizes
    )


@pytest.mark.parametrize(
    'args',
    [
        ('HR', '--scale', '2', '3', '4', '--workers', '1'),
        ('--workers', '1', '--scale', '2', '3', '4', 'HR'),
        ('--workers', '1', '--scale=2', '--scale', '3', '--scale', '4', 'HR'),
        ('--scale', '4', '2', '4', '3', '--workers', '1', '--', 'HR'),
    ],
)
def test_several_scales_may_be_written_in_any_order(tmp_path, args, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('HR').mkdir()
    cv2.imwrite('HR/1.png', picture(0, 24, 24))
    done = prepare('folder', '--name', 'N', *args)
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in Path().glob('N*')) == [
        'N_HR_sub.lmdb', *(f'N_LR_bicubic_X{scale}_sub.lmdb' for scale in (2, 3, 4)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (('HR', '--scale', '5'), '5 is not in the range 2<=x<=4'),
        (('HR', '--scale', '2', '2.5'), "'2.5' is not a valid integer range"),
        (('HR', '--scale', 'HR'), "'HR' is not a valid integer range"),
        (('HR',), "Missing option '--scale'"),
        (('--scale', '2'), "Missing argument 'HR_DIR...'"),
        (('HR', '--scale', '2', '--workers', '0'), '0 is not in the range x>=1'),
    ],
)
def test_wrong_arguments_are_refused_by_name(args, message):
    done = prepare('folder', *args)
    assert done.exit_code == 2 and message in done.output


@pytest.mark.parametrize('name', ['div2k', 'folder', 'benchmarks'])
def test_the_help_has_an_example(name):
    assert name in prepare('--help').output
    assert f'facd prepare {name} ' in prepare(name, '--help').output.split('Example:')[1]


def test_small_images_are_skipped_on_request(photographs, tmp_path):
    done = prepare(
        'folder', photographs, '--scale', '2', '--out', tmp_path / 'out', '--min-size', '70', '--workers', '1'
    )
    assert '1 of 3 images left out: smaller than 70 pixels' in done.output
    assert {key.split('_')[0] for key in decoded(tmp_path / 'out' / 'SET_HR_sub.lmdb')} == {'0', 'gray'}


def test_an_unreadable_image_is_reported_and_no_output_looks_complete(photographs, tmp_path):
    command = ('folder', photographs, '--scale', '2', '--out', tmp_path / 'out', '--workers', '1')
    (photographs / 'x.png').write_bytes(b'no image')
    assert 'x.png: not a readable image' in refusal(*command)
    assert not (tmp_path / 'out').exists()
    content = (photographs / '0.png').read_bytes()
    (photographs / 'x.png').write_bytes(content[: len(content) // 2])  # its header is valid
    assert 'x.png: not a readable image' in refusal(*command)
    assert all(path.name.startswith('.partial_') for path in (tmp_path / 'out').iterdir())
    Image.new('RGBA', (30, 30)).save(photographs / 'x.png')
    assert 'x.png: has transparent pixels; accepted: opaque images' in refusal(*command)
    (photographs / 'x.png').write_bytes(content)
    assert prepare(*command).exit_code == 0


def test_the_default_folder_is_next_to_the_first_and_the_default_step_fits_the_scales(photographs, monkeypatch):
    monkeypatch.chdir(photographs)
    done = prepare('folder', '.', '--scale', '2', '3', '--crop', '54', '--workers', '1')
    assert done.exit_code == 0, done.exception
    assert (photographs.parent / 'SET_HR_sub.lmdb').is_dir()
    record = json.loads((photographs.parent / 'SET_HR_sub.lmdb' / 'prepare.json').read_text())
    assert (record['crop'], record['step'], record['lr']) == (54, 24, 'bicubic as MATLAB of uint8')


def test_bad_folders_names_and_sizes_are_refused(photographs, tmp_path):
    def attempt(*changes: object, folder: Path = photographs) -> str:
        return refusal('folder', folder, '--scale', '2', '--crop', '48', '--out', tmp_path / 'out', *changes)

    assert "--name: '../SET'; accepted: the first word of a file name" in attempt('--name', '../SET')
    assert 'absent: no such folder' in attempt(folder=tmp_path / 'absent')
    assert '--crop: 50; accepted: a multiple of every scale' in attempt('--scale', '3', '--crop', '50')
    assert "'--min-size': -4" in prepare('folder', photographs, '--scale', '2', '--min-size', '-4').output
    assert '--step: 0; accepted: a multiple of every scale' in attempt('--step', '0')
    (tmp_path / 'empty').mkdir()
    assert 'empty: no images; accepted: .bmp' in attempt(folder=tmp_path / 'empty')
    assert 'no image is left to write' in attempt('--min-size', '1000')
    cv2.imwrite(str(photographs / 'tiny.png'), np.zeros((3, 50, 3), np.uint8))
    assert 'tiny.png: 50x3 pixels; accepted: 4 or more both ways (see --min-size)' in attempt('--scale', '4')
    (photographs / 'tiny.png').unlink()
    (photographs / 'LRbicx2').mkdir()
    cv2.imwrite(str(photographs / 'LRbicx2' / '0.png'), picture(0, 50, 38))
    assert 'SET_HR: has a folder LRbicx2, of low-resolution images by its name; accepted: folders of HR' in attempt()
    assert not (tmp_path / 'out').exists()


def test_disk_errors_are_one_line(photographs, tmp_path):
    (tmp_path / 'out').write_text('a file')
    assert 'out: File exists; once that is fixed, give the same command again' in refusal(
        'folder', photographs, '--scale', '2', '--out', tmp_path / 'out'
    )
    with pytest.raises(UserError, match=r'^\[Errno 28\] No space left on device; once'), reraise_disk_errors():
        raise OSError(28, 'No space left on device')
    with (
        pytest.raises(UserError, match=r'^mdb_txn_commit: Input/output error \(a full disk\?\)'),
        reraise_disk_errors(),
    ):
        raise lmdb.Error('mdb_txn_commit: Input/output error')


def test_held_out_images_form_their_own_set_and_are_not_in_the_training_pairs(photographs, tmp_path):
    done = prepare('folder', photographs, '--scale', 2, '--crop', 48, '--hold-out', 2, '--name', 'SET', '--workers', 1)
    assert done.exit_code == 0, done.output
    held_out = {path.stem for path in (tmp_path / 'SET_val' / 'GTmod12').iterdir()}
    assert held_out == {path.stem for path in (tmp_path / 'SET_val' / 'LRbicx2').iterdir()} == {'0', '1'}
    assert {key.split('_')[0] for key in decoded(tmp_path / 'SET_HR_sub.lmdb')} == {'gray'}
    again = prepare('folder', photographs, '--scale', 2, '--crop', 48, '--hold-out', 2, '--name', 'SET', '--workers', 1)
    assert again.exit_code == 0 and again.output.count('already there') == 2


def test_the_held_out_images_stay_when_an_unreadable_one_is_removed(photographs, tmp_path):
    for i in range(3, 8):
        cv2.imwrite(str(photographs / f'{i}.png'), picture(i, 72, 72))
    call = ('folder', photographs, '--scale', 2, '--crop', 48, '--hold-out', 2, '--name', 'SET', '--workers', 1)
    damaged = photographs / '4.png'
    os.truncate(damaged, damaged.stat().st_size // 2)
    assert damaged.name in str(prepare(*call).exception)
    held_out = {path.stem for path in (tmp_path / 'SET_val' / 'GTmod12').iterdir()}
    damaged.unlink()
    done = prepare(*call)
    assert done.exit_code == 0, done.output
    assert {path.stem for path in (tmp_path / 'SET_val' / 'GTmod12').iterdir()} == held_out
    assert keys_in(tmp_path / 'SET_HR_sub.lmdb') == {'0', '1', '3', '5', '6', '7', 'gray'} - held_out


def test_holding_out_every_image_is_refused(photographs):
    message = refusal('folder', photographs, '--scale', 2, '--crop', 48, '--hold-out', 3)
    assert message == '--hold-out: 3 of 3 images; accepted: fewer than there are'


def keys_in(path: Path) -> set[str]:
    return {key.rpartition('_s')[0] for key in decoded(path)}


def test_images_of_any_name_in_any_folder_below_get_keys_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [
        'a.png',
        'photo.v2.png',
        'été.png',
        '000/00000000.png',
        '000/00000001.png',
        '001/00000000.jpg',
        'deep/er/a.png',
    ]
    for i, name in enumerate(names):
        (tmp_path / 'HR' / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(i, 24, 32)[:, :, ::-1]).save(tmp_path / 'HR' / name)
    (tmp_path / 'HR' / 'notes.txt').touch()
    (tmp_path / 'HR' / 'linked').symlink_to(tmp_path / 'HR' / '000')
    done = prepare('folder', 'HR', '--scale', 2, '--crop', 48, '--out', 'HR', '--name', 'N', '--workers', 1)
    assert done.exit_code == 0, done.exception
    assert 'HR: 7 images, in 4 folders\n' in done.output and 'HR: left out: linked and 1 more; accepted:' in done.output
    assert keys_in(tmp_path / 'HR' / 'N_HR_sub.lmdb') == {
        'a', 'photo-v2', 'ete', '000_00000000', '000_00000001', '001_00000000', 'deep_er_a',
    }  # fmt: skip
    assert np.array_equal(decoded(tmp_path / 'HR' / 'N_HR_sub.lmdb')['photo-v2_s001'], picture(1, 24, 32))
    roots = {f'dataroot_{side}': f'HR/N_{name}_sub.lmdb' for side, name in (('gt', 'HR'), ('lq', 'LR_bicubic_X2'))}
    block = {'type': 'PairedImageDataset', 'io_backend': {'type': 'lmdb'}, 'phase': 'val', 'scale': 2, 'name': 'N'}
    assert len(build_ordered_dataset(block | roots)) == 7
    again = prepare('folder', 'HR', '--scale', 2, '--crop', 48, '--out', 'HR', '--name', 'N', '--workers', 1)
    assert '7 pairs already there' in again.output  # what it has made there is not taken for images


def test_images_that_would_share_a_key_get_digits_of_their_paths_and_one_in_two_folders_counts_once(tmp_path):
    names = ['one/x.png', 'two/x.png', 'one/照.png', 'one/片.png', 'one/sub/x.png']
    for i, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / name), picture(i, 24, 24))
    folders = [tmp_path / name for name in ('one', 'two', 'one/sub', 'one')]
    done = prepare(
        'folder', *folders, '--scale', 2, '--out', tmp_path / 'out', '--name', 'N', '--hold-out', 2, '--workers', 1
    )
    assert done.exit_code == 0, done.exception
    held_out = {path.stem for path in (tmp_path / 'out' / 'N_val' / 'GTmod12').iterdir()}
    keys = keys_in(tmp_path / 'out' / 'N_HR_sub.lmdb') | held_out
    assert len(held_out) == 2 and len(keys) == 5
    assert sorted(re.sub('[0-9a-f]{8}', '#', key) for key in keys) == ['--#', '--#', 'sub_x', 'x-#', 'x-#']


def test_an_interrupted_preparation_forgets_by_key_what_was_made_of_an_image_that_is_gone(tmp_path):
    for name in ('a.b', 'c.d'):
        (tmp_path / 'HR').mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / 'HR' / f'{name}.png'), picture(0, 24, 24))
    command = ('folder', tmp_path / 'HR', '--scale', 2, '--out', tmp_path / 'out', '--name', 'N', '--workers', 1)
    assert prepare(*command).exit_code == 0
    for name in ('N_HR_sub.lmdb', 'N_LR_bicubic_X2_sub.lmdb'):
        (tmp_path / 'out' / name).rename(tmp_path / 'out' / f'.partial_{name}')
    (tmp_path / 'HR' / 'a.b.png').unlink()
    assert prepare(*command).exit_code == 0
    assert keys_in(tmp_path / 'out' / 'N_HR_sub.lmdb') == {'c-d'}


def test_workers_that_cannot_be_started_for_a_full_dev_shm_are_a_line(photographs, tmp_path, monkeypatch):
    full = Mock(side_effect=OSError(28, 'No space left on device'))
    monkeypatch.setattr('facd_basicsr.files.parallel.ProcessPoolExecutor', full)
    assert refusal('folder', photographs, '--scale', 2, '--out', tmp_path / 'out', '--workers', 2) == (
        '--workers: 2: no process can be started (No space left on device); perhaps /dev/shm is full, in which '
        'processes share memory; accepted: 1, which needs none'
    )
