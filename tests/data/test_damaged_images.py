import shutil
from pathlib import Path

import lmdb
import pytest

from facd_basicsr.data.damaged_images import check_files, check_lmdb
from facd_basicsr.errors import UserError


@pytest.fixture
def copy(data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data / 'HR.lmdb', tmp_path / 'HR.lmdb'))


def change(path: Path, key: bytes, value: bytes | None) -> None:
    with lmdb.open(str(path)) as env, env.begin(write=True) as txn:
        if value is None:
            txn.delete(key)
        else:
            txn.put(key, value)


def stored(path: Path, key: bytes) -> bytes:
    with lmdb.open(str(path), readonly=True, lock=False) as env, env.begin() as txn:
        return txn.get(key)


def test_whole_lmdbs_and_files_are_counted(data):
    assert check_lmdb(data / 'HR.lmdb', 'gt') == 6
    assert check_files(sorted((data / 'GT').iterdir()), 'gt') == 2
    assert check_files([], 'gt') == 0


def test_a_missing_key_is_named_and_one_that_is_not_listed_does_not_count(copy):
    extra = stored(copy, b'0001_s001')
    change(copy, b'0003_s001', None)
    with pytest.raises(UserError, match=r'gt: .*HR\.lmdb lacks 0003_s001, which its meta_info\.txt lists'):
        check_lmdb(copy, 'gt')
    change(copy, b'0003_s001', extra)
    change(copy, b'0009_s001', extra)
    assert check_lmdb(copy, 'gt') == 6


def test_a_damaged_image_is_named(copy):
    png = bytearray(stored(copy, b'0002_s001'))
    png[len(png) // 2] ^= 1
    for damaged in (bytes(png), bytes(png[:60]), b'', b'no image' * 9):
        change(copy, b'0002_s001', damaged)
        with pytest.raises(UserError, match=r'gt: .*HR\.lmdb: 0002_s001 is damaged \(.+\)$'):
            check_lmdb(copy, 'gt')


def test_an_image_of_another_size_is_named(copy, data):
    change(copy, b'0002_s001', stored(data / 'LR.lmdb', b'0002_s001'))
    with pytest.raises(UserError, match=r'0002_s001 is \(24, 24, 3\), but its meta_info\.txt says \(48, 48, 3\)'):
        check_lmdb(copy, 'gt')


def test_an_lmdb_that_was_cut_short_is_refused(copy):
    with (copy / 'data.mdb').open('r+b') as file:
        file.truncate(3 * 4096)
    with pytest.raises(UserError, match=r'gt: .*HR\.lmdb/data\.mdb is cut short'):
        check_lmdb(copy, 'gt')
    (copy / 'data.mdb').write_bytes(b'no database')
    with pytest.raises(UserError, match=r'gt: .*HR\.lmdb: .*; datasets/README\.md says how to prepare it'):
        check_lmdb(copy, 'gt')
    (copy / 'meta_info.txt').write_text('not a list\n')
    with pytest.raises(UserError, match=r'HR\.lmdb'):
        check_lmdb(copy, 'gt')


def test_a_damaged_file_is_named(data, tmp_path):
    path = Path(shutil.copy(data / 'GT' / '0.png', tmp_path))
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b'', b'no image'):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r'lq: .*0\.png: not a readable image \(.+\)$'):
            check_files([path], 'lq')
    path.unlink()
    with pytest.raises(UserError, match=r'lq: .*0\.png: no such file'):
        check_files([path], 'lq')
