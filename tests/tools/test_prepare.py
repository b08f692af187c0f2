from itertools import pairwise
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest
from conftest import picture, run
from hypothesis import given
from hypothesis import strategies as st

from facd_basicsr.errors import UserError
from facd_basicsr.options.paths import _check_dataset
from facd_basicsr.tools.prepare import bicubic_lr, mod_crop, prepare, sub_images


def decoded(path: Path) -> dict[str, np.ndarray]:
    """Every image of an LMDB by key."""
    with lmdb.open(str(path), readonly=True, lock=False) as env, env.begin() as txn:
        return {key.decode(): cv2.imdecode(np.frombuffer(value, np.uint8), -1) for key, value in txn.cursor()}


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / 'SET_HR'
    folder.mkdir()
    for i, (height, width) in enumerate([(100, 76), (64, 130)]):
        cv2.imwrite(str(folder / f'{i}.png'), picture(i, height, width))
    cv2.imwrite(str(folder / 'gray.jpg'), picture(9, 72, 72)[:, :, 0])
    return folder


def test_the_command_writes_aligned_sub_images_for_every_scale(photographs, tmp_path):
    sizes = ('--scale', '2', '4', '--crop', '48', '--step', '24')
    done = run('-m', 'facd_basicsr.tools.prepare', photographs, *sizes, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    hr = decoded(tmp_path / 'SET_HR_sub.lmdb')
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        'SET_HR', 'SET_HR_sub.lmdb', 'SET_LR_bicubic_X2_sub.lmdb', 'SET_LR_bicubic_X4_sub.lmdb',
    ]  # fmt: skip
    assert f'{len(hr)} pairs' in done.stdout
    for scale in (2, 4):
        lr = decoded(tmp_path / f'SET_LR_bicubic_X{scale}_sub.lmdb')
        assert lr.keys() == hr.keys()
        whole = bicubic_lr(picture(0, 100, 76), scale)
        assert np.array_equal(lr['0_s001'], whole[: 48 // scale, : 48 // scale])
        roots = {'dataroot_gt': 'SET_HR_sub.lmdb', 'dataroot_lq': f'SET_LR_bicubic_X{scale}_sub.lmdb'}
        dataset_opt = {key: str(tmp_path / name) for key, name in roots.items()} | {'io_backend': {'type': 'lmdb'}}
        _check_dataset('datasets.train', {**dataset_opt, 'gt_size': 48}, scale, training=True)
    assert hr['gray_s001'].shape == (48, 48, 3)


def test_lr_equals_the_mean_of_a_flat_image_and_halves_a_ramp():
    assert np.array_equal(bicubic_lr(np.full((8, 8, 3), 77, np.uint8), 4), np.full((2, 2, 3), 77, np.uint8))
    ramp = np.tile((np.arange(16, dtype=np.uint8) * 10)[None, :, None], (8, 1, 3))
    # a symmetric kernel leaves a ramp a ramp: pixel j of LR sits between 2j and 2j+1 of HR
    assert np.array_equal(bicubic_lr(ramp, 2)[0, 2:-2, 0], np.arange(16)[::2][2:-2] * 10 + 5)


@given(size=st.integers(1, 300), crop=st.integers(1, 20), step=st.integers(1, 20))
def test_sub_images_cover_an_axis_and_stay_inside(size, crop, step):
    crop, step = 12 * crop, 12 * min(step, crop)
    boxes = sub_images(size, crop, step)
    assert boxes[0][0] == 0 and boxes[-1][1] == size
    assert all(end - start == min(crop, size) for start, end in boxes)
    assert all(start <= previous_end for (_, previous_end), (start, _) in pairwise(boxes))


def test_mod_crop():
    assert mod_crop(np.zeros((11, 14, 3)), 4).shape == (8, 12, 3)


def test_small_images_are_left_out_on_request(photographs, tmp_path, capsys):
    prepare([photographs], [2], tmp_path / 'out', 'SET', crop=480, step=240, min_size=70)
    assert '1 of 3 images left out: smaller than 70 pixels' in capsys.readouterr().out
    assert {key.split('_')[0] for key in decoded(tmp_path / 'out' / 'SET_HR_sub.lmdb')} == {'0', 'gray'}


def test_an_unreadable_image_is_named_and_nothing_is_left_behind(photographs, tmp_path):
    (photographs / 'x.png').write_bytes(b'no image')
    with pytest.raises(UserError, match=r'x.png: not a readable image'):
        prepare([photographs], [2], tmp_path / 'out', 'SET', crop=480, step=240, min_size=0)
    assert list((tmp_path / 'out').iterdir()) == []


def test_bad_arguments_are_refused(photographs, tmp_path):
    def attempt(**changes: object) -> None:
        prepare(**{'folders': [photographs], 'scales': [2], 'out': tmp_path / 'out', 'name': 'SET', 'crop': 48,
                   'step': 24, 'min_size': 0, **changes})  # fmt: skip

    with pytest.raises(UserError, match=r"--name: '../SET'; accepted: the first word of a file name"):
        attempt(name='../SET')
    with pytest.raises(UserError, match=r'absent: no such folder'):
        attempt(folders=[tmp_path / 'absent'])
    with pytest.raises(UserError, match=r'--crop: 50; accepted: a multiple of every scale'):
        attempt(scales=[3], crop=50)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match=r'empty: no images; accepted: .bmp'):
        attempt(folders=[tmp_path / 'empty'])
    attempt()
    with pytest.raises(UserError, match=r'SET_HR_sub.lmdb: already there'):
        attempt()
    with pytest.raises(UserError, match=r'0.png and .*0.png have the same name'):
        attempt(folders=[photographs, photographs], name='TWICE')
    with pytest.raises(UserError, match=r'no image is left to write'):
        attempt(min_size=1000, name='NONE')
    assert not list((tmp_path / 'out').glob('*NONE*'))
    (photographs / 'a.b.png').write_bytes((photographs / '0.png').read_bytes())
    with pytest.raises(UserError, match=r'a.b.png: accepted: an ASCII file name without further dots'):
        attempt(name='DOT')
