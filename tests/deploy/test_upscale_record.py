import json
import os
from pathlib import Path
from unittest.mock import Mock

import pytest

from facd_basicsr.deploy.student import Description
from facd_basicsr.deploy.upscale_images import UPSCALE_RECORD, UpscaleJob, UpscaleRecord, student_id
from facd_basicsr.errors import UserError
from facd_basicsr.files.atomic import write_partial

STUDENT = {'student': 'a.pth', 'sha256': 'aa'}


def finish(record: UpscaleRecord, pair: UpscaleJob) -> None:
    pair.target.parent.mkdir(parents=True, exist_ok=True)
    record.finish(pair, record.line(pair), write_partial(pair.target, [pair.source.read_bytes()]))


@pytest.fixture
def pairs(tmp_path: Path) -> list[UpscaleJob]:
    """Two images, and their files in the folder ``out``, not there yet."""
    for name in ('a.png', 'b.png'):
        (tmp_path / name).write_text(name)
    out = tmp_path / 'out'
    return [UpscaleJob(tmp_path / 'a.png', out / 'a.png'), UpscaleJob(tmp_path / 'b.png', out / 'sub' / 'b.png')]


def test_what_is_recorded_and_there_is_finished(tmp_path, pairs):
    record = UpscaleRecord(tmp_path / 'out', STUDENT)
    assert record.unfinished(pairs) == pairs
    finish(record, pairs[0])
    assert UpscaleRecord(tmp_path / 'out', STUDENT).unfinished(pairs) == pairs[1:]
    finish(record, pairs[1])
    assert UpscaleRecord(tmp_path / 'out', {**STUDENT, 'student': 'renamed.pth'}).unfinished(pairs) == []
    pairs[1].target.unlink()
    assert UpscaleRecord(tmp_path / 'out', STUDENT).unfinished(pairs) == pairs[1:]


def test_a_changed_image_is_unfinished_until_it_is_recorded_again(tmp_path, pairs):
    finish(UpscaleRecord(tmp_path / 'out', STUDENT), pairs[0])
    pairs[0].source.write_text('changed')
    record = UpscaleRecord(tmp_path / 'out', STUDENT)
    assert record.unfinished(pairs[:1]) == pairs[:1]
    finish(record, pairs[0])
    assert UpscaleRecord(tmp_path / 'out', STUDENT).unfinished(pairs[:1]) == []


@pytest.mark.parametrize(('owner', 'step'), [(Path, 'open'), (os, 'fsync'), (Path, 'replace')])
def test_a_process_killed_before_a_file_has_its_name_leaves_the_older_one_which_is_not_taken_for_it(
    owner, step, tmp_path, pairs, monkeypatch
):
    finish(UpscaleRecord(tmp_path / 'out', STUDENT), pairs[0])
    pairs[0].source.write_text('changed')
    record = UpscaleRecord(tmp_path / 'out', STUDENT)
    partial = write_partial(pairs[0].target, [b'changed'])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # as a kill: nothing is tidied up
        patch.setattr(owner, step, Mock(side_effect=KeyboardInterrupt))
        record.finish(pairs[0], record.line(pairs[0]), partial)
    assert pairs[0].target.read_text() == 'a.png'
    assert UpscaleRecord(tmp_path / 'out', STUDENT).unfinished(pairs[:1]) == pairs[:1]
    finish(record, pairs[0])
    assert UpscaleRecord(tmp_path / 'out', STUDENT).unfinished(pairs[:1]) == []
    assert pairs[0].target.read_text() == 'changed'


def test_a_line_that_finds_the_disk_full_leaves_the_older_file_with_its_own(tmp_path, pairs, monkeypatch):
    finish(UpscaleRecord(tmp_path / 'out', STUDENT), pairs[0])
    record = UpscaleRecord(tmp_path / 'out', {'student': 'b.pth', 'sha256': 'bb'})
    partial = write_partial(pairs[0].target, [b'changed'])
    with monkeypatch.context() as patch, pytest.raises(OSError, match='No space left') as caught:
        patch.setattr(Path, 'open', Mock(side_effect=OSError(28, 'No space left on device')))
        record.finish(pairs[0], record.line(pairs[0]), partial)
    assert caught.value.filename == str(tmp_path / 'out' / UPSCALE_RECORD)
    assert pairs[0].target.read_text() == 'a.png' and not partial.exists()
    assert UpscaleRecord(tmp_path / 'out', STUDENT).unfinished(pairs[:1]) == []


def test_a_file_that_can_not_get_its_name_is_not_taken_for_the_older_one(tmp_path, pairs, monkeypatch):
    finish(UpscaleRecord(tmp_path / 'out', STUDENT), pairs[0])
    record = UpscaleRecord(tmp_path / 'out', STUDENT)
    with monkeypatch.context() as patch, pytest.raises(PermissionError):
        patch.setattr(Path, 'replace', Mock(side_effect=PermissionError))
        finish(record, pairs[0])
    assert UpscaleRecord(tmp_path / 'out', STUDENT).unfinished(pairs[:1]) == pairs[:1]


def test_files_of_another_student_and_of_nobody_are_refused(tmp_path, pairs):
    finish(UpscaleRecord(tmp_path / 'out', {'student': 'b.pth', 'sha256': 'bb'}), pairs[0])
    record = UpscaleRecord(tmp_path / 'out', STUDENT)
    with pytest.raises(UserError, match=r'a\.png exists, written by another student or .* --opt \(b\.pth\)'):
        record.unfinished(pairs)
    (tmp_path / 'out' / UPSCALE_RECORD).unlink()
    with pytest.raises(UserError, match=r'^--out: .*a\.png exists and was not written by this command; accepted: ano'):
        UpscaleRecord(tmp_path / 'out', STUDENT).unfinished(pairs)
    assert record.unfinished(pairs[1:]) == pairs[1:]


@pytest.mark.parametrize('cut', ['{"file": "b.p', '[]\n', '{"file": "a.png"}\n', '{"file": "\udcff"}\n', '\0\udcff\0'])
def test_a_line_that_was_cut_short_is_passed_over_and_the_next_one_whole(tmp_path, pairs, cut):
    finish(UpscaleRecord(tmp_path / 'out', STUDENT), pairs[0])
    with (tmp_path / 'out' / UPSCALE_RECORD).open('a', errors='surrogateescape') as file:  # the last two are no UTF-8
        file.write(cut)
    finish(UpscaleRecord(tmp_path / 'out', STUDENT), pairs[1])
    assert UpscaleRecord(tmp_path / 'out', STUDENT).unfinished(pairs) == []
    assert json.loads((tmp_path / 'out' / UPSCALE_RECORD).read_bytes().splitlines()[-1])['file'] == 'sub/b.png'


def test_a_student_is_told_by_its_weights_and_how_they_are_run(tmp_path):
    description = Description('EDSR', {'res_scale': 1}, 2, name='one')
    for name, content in (('a.pth', b'1'), ('b.pth', b'1'), ('c.pth', b'2')):
        (tmp_path / name).write_bytes(content)
    a, b, c = (student_id(tmp_path / name, description) for name in ('a.pth', 'b.pth', 'c.pth'))
    assert a['sha256'] == b['sha256'] != c['sha256'] and a['student'] == 'a.pth'
    other = Description('EDSR', {'res_scale': 0.1}, 2, name='one')
    assert student_id(tmp_path / 'a.pth', other)['sha256'] != a['sha256']
    renamed = Description('EDSR', {'res_scale': 1}, 2, name='two')
    assert student_id(tmp_path / 'a.pth', renamed) == a
