import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import REPOSITORY, decoded, picture, run

from facd_basicsr.data import lmdb_pairs
from facd_basicsr.data.bicubic import with_bicubic_lr
from facd_basicsr.data.lmdb_pairs import png_shape, write_lmdbs
from facd_basicsr.errors import UserError


def noise(seed: int, scales: list[int]) -> dict[int, np.ndarray]:
    """A source of a picture that PNG cannot make small."""
    return with_bicubic_lr(np.random.default_rng(seed).integers(0, 256, (60, 72, 3), np.uint8), scales, 12)


def killed(scales: list[int]) -> dict[int, np.ndarray]:
    """A source whose process dies as by ``kill -9``."""
    os.kill(os.getpid(), signal.SIGKILL)
    return noise(0, scales)


SOURCES = {f'{i:04d}': partial(noise, i) for i in range(5)}


def names(folder: Path) -> dict[int, Path]:
    return {1: folder / 'HR.lmdb', 2: folder / 'X2.lmdb', 3: folder / 'X3.lmdb'}


def write(folder: Path, sources: dict = SOURCES, **how: object) -> int:
    return write_lmdbs(sources, names(folder), **{'crop': 48, 'step': 24, 'made_of': {'images': 'noise'}, **how})


def test_sub_images_of_all_scales_are_aligned_and_listed_as_basicsr_does(tmp_path):
    sources = {'b': partial(with_bicubic_lr, picture(0, 50, 74), multiple=6), 'a': partial(noise, 1)}
    assert write(tmp_path, sources) == 4 + 2
    hr = decoded(tmp_path / 'HR.lmdb')
    assert list(hr) == ['a_s001', 'a_s002', 'a_s003', 'a_s004', 'b_s001', 'b_s002']
    image = picture(0, 50, 74)[:48, :72]
    assert np.array_equal(hr['b_s001'], image[:48, :48]) and np.array_equal(hr['b_s002'], image[:48, 24:72])
    x2 = decoded(tmp_path / 'X2.lmdb')
    assert np.array_equal(x2['b_s002'], with_bicubic_lr(image, [2], 6)[2][:, 12:36])
    lines = (tmp_path / 'X3.lmdb' / 'meta_info.txt').read_text().splitlines()
    assert lines == [f'{key}.png (16,16,3) 1' for key in hr]
    assert sorted(path.name for path in tmp_path.iterdir()) == ['HR.lmdb', 'X2.lmdb', 'X3.lmdb']


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_the_number_of_workers(tmp_path):
    write(tmp_path / 'one')
    write(tmp_path / 'two', workers=2)
    for name in ('HR.lmdb', 'X2.lmdb', 'X3.lmdb'):
        for file in ('data.mdb', 'meta_info.txt', 'prepare.json'):
            assert (tmp_path / 'one' / name / file).read_bytes() == (tmp_path / 'two' / name / file).read_bytes()


def test_a_second_call_finds_everything_there(tmp_path):
    count = write(tmp_path)
    assert write(tmp_path, dict.fromkeys(SOURCES, killed)) == count


def test_a_killed_run_leaves_nothing_that_looks_finished_and_is_continued(tmp_path):
    script = (
        'import pathlib, sys; sys.path[:0] = sys.argv[1:]; import test_lmdb_pairs as t; '
        't.write(pathlib.Path("cut"), {**t.SOURCES, "0003": t.killed})'
    )
    done = run('-c', script, REPOSITORY, REPOSITORY / 'tests', REPOSITORY / 'tests' / 'data', cwd=tmp_path)
    assert done.returncode == -signal.SIGKILL
    assert all(path.name.startswith('.partial_') for path in (tmp_path / 'cut').iterdir())
    assert len(decoded(tmp_path / 'cut' / '.partial_X3.lmdb')) == 3 * 4

    begun = dict.fromkeys(['0000', '0001', '0002'], killed)  # not read again
    assert write(tmp_path / 'cut', {**SOURCES, **begun}) == 5 * 4
    write(tmp_path / 'whole')
    for name in ('HR.lmdb', 'X2.lmdb', 'X3.lmdb'):
        whole, continued = decoded(tmp_path / 'whole' / name), decoded(tmp_path / 'cut' / name)
        assert whole.keys() == continued.keys() and all(np.array_equal(whole[key], continued[key]) for key in whole)
    assert sorted(path.name for path in (tmp_path / 'cut').iterdir()) == ['HR.lmdb', 'X2.lmdb', 'X3.lmdb']


def test_a_run_killed_between_the_renames_is_continued(tmp_path):
    write(tmp_path)
    (tmp_path / 'HR.lmdb').rename(tmp_path / '.partial_HR.lmdb')
    assert write(tmp_path, dict.fromkeys(SOURCES, killed)) == 20
    assert (tmp_path / 'HR.lmdb').is_dir()


def test_a_failed_source_stops_the_run_and_the_rest_is_kept(tmp_path):
    def refused(scales: list[int]) -> dict[int, np.ndarray]:
        raise UserError('0003.png: not a readable image')

    with pytest.raises(UserError, match=r'0003\.png: not a readable image'):
        write(tmp_path, {**SOURCES, '0003': refused})
    assert all(path.name.startswith('.partial_') for path in tmp_path.iterdir())
    assert write(tmp_path) == 20


def test_what_was_begun_with_other_settings_is_started_over(tmp_path, capsys):
    write(tmp_path)
    for name in ('HR.lmdb', 'X2.lmdb', 'X3.lmdb'):
        (tmp_path / name).rename(tmp_path / f'.partial_{name}')
    write(tmp_path, crop=24)
    assert '.partial_HR.lmdb: begun with other settings, so started over' in capsys.readouterr().out
    assert decoded(tmp_path / 'HR.lmdb')['0000_s001'].shape == (24, 24, 3)


def test_after_an_image_was_mended_or_taken_away_the_rest_is_kept(tmp_path):
    def of(**sizes: int) -> dict:
        return {'images': [[f'{key}.png', size, 0] for key, size in sizes.items()]}

    write(tmp_path, made_of=of(**{'0000': 1, '0001': 1, '0002': 1, '0003': 1, '0004': 1}))
    for name in ('HR.lmdb', 'X2.lmdb', 'X3.lmdb'):
        (tmp_path / name).rename(tmp_path / f'.partial_{name}')
    read = []

    def noted(key: str) -> Callable:
        return lambda scales: read.append(key) or noise(int(key), scales)

    sources = {key: noted(key) for key in SOURCES if key != '0003'}
    write(tmp_path, sources, made_of=of(**{'0000': 1, '0001': 2, '0002': 1, '0004': 1}))
    assert read == ['0001']  # which has another size now
    for name in ('HR.lmdb', 'X2.lmdb', 'X3.lmdb'):
        assert {key.split('_')[0] for key in decoded(tmp_path / name)} == {'0000', '0001', '0002', '0004'}


def test_lmdbs_of_other_making_are_never_overwritten(tmp_path):
    write(tmp_path)
    with pytest.raises(UserError, match=r'already exists, made with other crop \(48, now 24\); delete it'):
        write(tmp_path, crop=24)
    with pytest.raises(UserError, match=r'already exists, made with other images \(noise, now photographs\)'):
        write(tmp_path, made_of={'images': 'photographs'})
    (tmp_path / 'X3.lmdb' / 'prepare.json').unlink()
    with pytest.raises(UserError, match=r'X3\.lmdb: already exists, made without a prepare\.json, so not by this com'):
        write(tmp_path)


def test_an_lmdb_grows_as_it_must(tmp_path, monkeypatch):
    monkeypatch.setattr(lmdb_pairs, 'MAP_SIZE', 2**15)
    assert write(tmp_path) == 20
    assert (tmp_path / 'HR.lmdb' / 'data.mdb').stat().st_size > 2**17
    assert len(decoded(tmp_path / 'HR.lmdb')) == 20


def test_images_are_forgotten_though_the_map_of_an_unfinished_lmdb_has_no_room_left(tmp_path, monkeypatch):
    monkeypatch.setattr(lmdb_pairs, 'MAP_SIZE', 2**15)
    write(tmp_path)
    lmdb_pairs._forget(tmp_path / 'HR.lmdb', ['0001.png', '0003.png'])
    assert {key.split('_')[0] for key in decoded(tmp_path / 'HR.lmdb')} == {'0000', '0002', '0004'}


def test_a_second_process_is_refused_while_one_writes(tmp_path):
    def write_too(scales: list[int]) -> dict[int, np.ndarray]:
        with pytest.raises(UserError, match=r'HR\.lmdb: another process is writing it'):
            write(tmp_path)
        return noise(3, scales)

    assert write(tmp_path, {**SOURCES, '0003': write_too}) == 20


def test_no_source_is_refused(tmp_path):
    with pytest.raises(UserError, match=r'no image is left to write'):
        write(tmp_path, {})


@pytest.mark.parametrize('shape', [(3, 5, 3), (5, 3, 1), (2, 2, 4)])
def test_the_shape_of_a_png_is_read_off_its_header(shape):
    png = cv2.imencode('.png', np.zeros(shape, np.uint8))[1].tobytes()
    assert png_shape(png) == shape
    with pytest.raises(ValueError, match=r'no PNG'):
        png_shape(png[1:])
