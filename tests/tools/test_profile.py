"""``facd profile`` as a user runs it."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import STUDENT, TEACHER, run

from facd_basicsr.errors import UserError
from facd_basicsr.evaluation import costs
from facd_basicsr.evaluation.complexity import OUTPUT_SIZE
from facd_basicsr.tools.profile import command


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes small enough to run in a test."""
    monkeypatch.setattr(costs, 'LQ_SIZE', (8, 10))
    monkeypatch.setattr(costs, 'OUTPUT_SIZE', (16, 20))


def test_the_command_counts_teacher_and_student_without_data_or_checkpoints(no_data, tmp_path):
    out = tmp_path / 'costs.json'
    done = run('-m', 'facd_basicsr.cli', 'profile', '-opt', no_data, '--repeats', '0', '--out', out, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for text in ('256x256 -> 512x512', '640x360 -> 1280x720', 'teacher / student', 'call FLOPs', 'two for each'):
        assert text in done.stdout, text
    assert 'latency' not in done.stdout and 'Network [' not in done.stderr
    result = json.loads(out.read_text())
    ntire, output_720p = result['settings']
    assert (ntire['input'], ntire['output']) == ([256, 256], [512, 512])
    assert (output_720p['input'], output_720p['output']) == ([360, 640], list(OUTPUT_SIZE))
    teacher = ntire['networks']['teacher']
    # EDSR of 6 features and 3 blocks: conv_first, 6 of the blocks, conv_after_body, upsample to 24, conv_last at x2
    lr, hr, f = 256**2, 512**2, TEACHER['num_feat']
    expected = 9 * (lr * (3 * f + 7 * f * f + f * 4 * f) + hr * f * 3)
    assert (teacher['multiply_adds'], teacher['flops']) == (expected, 2 * expected)
    assert teacher['activations'] == lr * (8 * f + 4 * f) + hr * 3
    assert teacher['parameters'] == 9 * (3 * f + 7 * f * f + 4 * f * f + 3 * f) + 8 * f + 4 * f + 3
    assert ntire['networks']['student']['network'] == STUDENT['type']


def test_markdown_has_the_table_of_the_console(no_data, small, tmp_path, monkeypatch):
    monkeypatch.setattr('facd_basicsr.progress.INTERVAL', 0)
    done = CliRunner().invoke(
        command,
        ['-opt', str(no_data), '--repeats', '1', '--out', str(tmp_path / 'new' / 'costs.md')],
        catch_exceptions=False,
    )
    assert '10x8, student' in done.stderr or '10x8, student' in done.output  # the progress
    text = (tmp_path / 'new' / 'costs.md').read_text()
    assert '| 10x8 -> 20x16 | network | parameters [M] | mult-adds [G] |' in text
    assert '| runs | latency [ms] |' in text and '| teacher / student |' in text
    assert 'median of so many runs' in text
    rows = [line.split(' | ') for line in text.splitlines() if line.startswith('| student, ')]
    assert [row[0] for row in rows] == ['| student, ONNX', '| student, int8'] * 2
    assert all(row[1] == 'EDSRStudent' and row[2:6] == [''] * 4 and float(row[-1].rstrip(' |')) > 0 for row in rows)
    assert 'ONNX, int8: ' in text


def test_without_onnxruntime_a_line_says_what_is_missing(no_data, small, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    done = CliRunner().invoke(command, ['-opt', str(no_data), '--repeats', '1'], catch_exceptions=False)
    assert done.exit_code == 0 and 'student, ONNX' not in done.output
    assert (
        'no row of ONNX and int8: ONNX: needs onnx and onnxruntime, not installed; accepted: `pip install'
        in done.output
        and '--no-onnx' not in done.output
    )


@pytest.mark.parametrize(
    ('out', 'complaint'),
    [
        ('costs.csv', r'--out: costs.csv; accepted: a name that ends in .json, .md'),
        ('folder.md', r'--out: folder.md is a folder; accepted: a file name'),
    ],
)
def test_an_invalid_output_path_is_refused_before_anything_runs(out, complaint, no_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('folder.md').mkdir()
    with pytest.raises(UserError, match=complaint):
        command.main(['-opt', str(no_data), '--out', out], standalone_mode=False)


def test_an_existing_file_stays_until_the_new_one_is_complete(no_data, small, tmp_path, monkeypatch):
    out = tmp_path / 'costs.json'
    out.write_text('old')

    def full(descriptor: int) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('os.fsync', full)
    with pytest.raises(UserError, match=r'costs.json: No space left on device'):
        command.main(['-opt', str(no_data), '--repeats', '0', '--out', str(out)], standalone_mode=False)
    assert out.read_text() == 'old' and not list(tmp_path.glob('.partial*'))
    monkeypatch.undo()
    command.main(['-opt', str(no_data), '--repeats', '0', '--out', str(out)], standalone_mode=False)
    assert json.loads(out.read_text())['settings']
