import os
import zipfile
from pathlib import Path

import pytest
import torch

from facd_basicsr.errors import UserError
from facd_basicsr.files.atomic import (
    atomic_paths,
    atomic_torch_save,
    atomic_write,
    make_folder_of,
    remove_unfinished,
    rename_into_place,
    verify_checksums,
    write_partial,
)


def test_a_file_is_written_and_replaced(tmp_path):
    atomic_write(tmp_path / 'file', b'first')
    atomic_write(tmp_path / 'file', b'second')
    assert (tmp_path / 'file').read_bytes() == b'second'
    assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_a_file_that_is_taken_out_of_those_written_together_does_not_get_its_name(tmp_path):
    with atomic_paths([tmp_path / 'a', tmp_path / 'b']) as partials:
        for partial in partials:
            partial.write_text('content')
        del partials[0]
    assert [path.name for path in tmp_path.iterdir()] == ['b']


def test_a_folder_that_cannot_be_made_is_a_line(tmp_path):
    (tmp_path / 'file').touch()
    message = r'-o: .*/file/a.txt cannot be written \(File exists\); accepted: a file in a writable folder'
    with pytest.raises(UserError, match=message):
        make_folder_of(tmp_path / 'file' / 'a.txt', '-o')


@pytest.mark.skipif(not Path('/proc/version').is_file(), reason='no unwritable folder')
def test_a_folder_that_takes_no_file_is_a_line_before_there_is_one():
    with pytest.raises(UserError, match=r'--out: /proc/a.png cannot be written \(.*\); accepted: a file in a writable'):
        make_folder_of(Path('/proc/a.png'), '--out')


@pytest.mark.parametrize(('owner', 'step'), [(os, 'fsync'), (Path, 'replace')])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, owner, step):
    atomic_write(tmp_path / 'file', b'first')

    def fail(*_: object) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(owner, step, fail)
    with pytest.raises(OSError, match='No space left on device') as caught:
        atomic_write(tmp_path / 'file', b'second')
    assert caught.value.filename == str(tmp_path / 'file')
    assert (tmp_path / 'file').read_bytes() == b'first'
    assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_a_written_file_that_cannot_get_its_name_is_removed_and_named(tmp_path):
    (tmp_path / 'image.png' / 'in the way').mkdir(parents=True)
    partial = write_partial(tmp_path / 'image.png', [b'content'])
    with pytest.raises(OSError) as caught:
        rename_into_place(partial, tmp_path / 'image.png')
    assert caught.value.filename == str(tmp_path / 'image.png')
    assert [path.name for path in tmp_path.iterdir()] == ['image.png']


def test_it_is_on_the_disk_before_it_has_its_name_and_the_name_before_the_call_ends(tmp_path, monkeypatch):
    steps = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        steps.append(f'flush {Path(f"/proc/self/fd/{descriptor}").readlink()}')
        fsync(descriptor)

    def noted_replace(source: Path, target: Path) -> None:
        steps.append(f'name {target}')
        replace(source, target)

    monkeypatch.setattr(os, 'fsync', noted_fsync)
    monkeypatch.setattr(Path, 'replace', noted_replace)
    atomic_write(tmp_path / 'file', b'content')
    assert steps == [f'flush {tmp_path}/.partial_file', f'name {tmp_path}/file', f'flush {tmp_path}']


def test_the_same_content_has_the_same_bytes_whatever_its_name(tmp_path):
    paths = [tmp_path / name for name in ('a.pth', 'b.state')]
    for path in paths:
        atomic_torch_save({'a': torch.arange(3)}, path)
    assert len({path.read_bytes() for path in paths}) == 1
    assert torch.equal(torch.load(paths[0], weights_only=True)['a'], torch.arange(3))


def test_an_altered_tensor_is_noticed_which_torch_loads_without_a_word(tmp_path):
    path = tmp_path / 'a.pth'
    atomic_torch_save({'a': torch.full((50,), 7, dtype=torch.uint8)}, path)
    verify_checksums(path)
    path.write_bytes(path.read_bytes().replace(b'\7' * 50, b'\7' * 49 + b'\6'))
    assert torch.load(path, weights_only=True)['a'].sum() == 7 * 50 - 1
    with pytest.raises(zipfile.BadZipFile, match=r'the checksum of archive/data/0 differs'):
        verify_checksums(path)


def test_what_a_killed_process_left_is_removed(tmp_path):
    for name in ('.partial_1.state', '1.state'):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['1.state']


def test_files_written_together_have_their_names_when_all_are_done(tmp_path):
    paths = [tmp_path / 'a', tmp_path / 'b']
    with atomic_paths(paths) as partials:
        for partial, content in zip(partials, 'ab'):
            partial.write_text(content)
            assert not any(path.exists() for path in paths)
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ['a', 'b']


@pytest.mark.parametrize('missing', [False, True])
def test_of_files_written_together_a_failure_leaves_none(tmp_path, missing):
    with (
        pytest.raises((RuntimeError, FileNotFoundError)),
        atomic_paths([tmp_path / 'a', tmp_path / 'b']) as partials,
    ):
        partials[0].write_text('a')
        if not missing:
            raise RuntimeError
    assert not list(tmp_path.iterdir())
