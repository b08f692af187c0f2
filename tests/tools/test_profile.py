"""``facd profile`` as a user runs it."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from conftest import STUDENT, TEACHER, changed, run, write_yml

from facd_basicsr.errors import UserError
from facd_basicsr.evaluation.complexity import OUTPUT_SIZE, parameters
from facd_basicsr.tools import profile as tool
from facd_basicsr.tools.profile import command, profile


@pytest.fixture
def absent(train_opt: dict, tmp_path: Path) -> Path:
    """A train file that names neither data nor a teacher's checkpoint that is there."""
    train_opt['datasets']['train']['dataroot_gt'] = '/absent/HR.lmdb'
    train_opt['path']['pretrain_network_g'] = '/absent/net_g.pth'
    return write_yml(changed(train_opt, 'teacher.weights', '/absent/teacher.pth'), tmp_path / 'train.yml')


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that a test can run, and not only count."""
    monkeypatch.setattr(tool, 'LQ_SIZE', (8, 10))
    monkeypatch.setattr(tool, 'OUTPUT_SIZE', (16, 20))


def test_the_command_counts_teacher_and_student_without_data_or_checkpoints(absent, tmp_path):
    out = tmp_path / 'costs.json'
    done = run('-m', 'facd_basicsr.cli', 'profile', '-opt', absent, '--repeats', '0', '--out', out, cwd=tmp_path)
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


def test_a_test_file_has_the_student_alone_and_latencies_are_measured(test_opt, small, tmp_path):
    option_file = write_yml(changed(test_opt, 'path.pretrain_network_g', '/absent.pth'), tmp_path / 'test.yml')
    result = profile(str(option_file), [], repeats=2)
    assert [list(setting['networks']) for setting in result['settings']] == [['student'], ['student']]
    for setting in result['settings']:
        assert setting['networks']['student']['runs'] == 2
        assert setting['networks']['student']['latency_ms'] >= 0
    assert result['settings'][0]['output'] == [16, 20]


def test_markdown_has_the_table_of_the_console(absent, small, tmp_path):
    done = CliRunner().invoke(
        command, ['-opt', str(absent), '--repeats', '1', '--out', str(tmp_path / 'costs.md')], catch_exceptions=False
    )
    assert '10x8, student' in done.stderr or '10x8, student' in done.output  # the progress
    text = (tmp_path / 'costs.md').read_text()
    assert '| 10x8 -> 20x16 | network | parameters [M] | mult-adds [G] |' in text
    assert '| runs | latency [ms] |' in text and '| teacher / student |' in text
    assert 'median of so many runs' in text


def test_a_size_that_the_scale_does_not_divide_is_rounded_down(train_opt, tmp_path):
    opt = changed(changed(train_opt, 'scale', 3), 'network_g.upscale', 3)
    opt['teacher']['network'] = {**TEACHER, 'upscale': 3}
    result = profile(str(write_yml(opt, tmp_path / 'opt.yml')), [], repeats=0)
    assert result['settings'][1]['input'] == [240, 426] and result['settings'][1]['output'] == [720, 1278]


def test_a_student_of_gray_images_is_fed_them(test_opt, small, tmp_path):
    opt = changed(test_opt, 'path.pretrain_network_g', '/absent.pth')
    opt['network_g'] = {'type': 'MSRResNet', 'num_in_ch': 1, 'num_feat': 4, 'num_block': 1, 'upscale': 2}
    result = profile(str(write_yml(opt, tmp_path / 'opt.yml')), [], repeats=0)
    assert result['settings'][0]['networks']['student']['activations'] == 80 * (4 + 8 + 16) + 4 * 80 * (4 + 3)


def test_a_teacher_without_network_block_needs_its_checkpoint(absent):
    with pytest.raises(UserError, match=r'train.yml: teacher.weights: no such file: /absent/teacher.pth'):
        profile(str(absent), ['teacher:network=~', 'teacher={weights: /absent/teacher.pth}'], repeats=0)


def test_a_teacher_that_spandrel_recognises_gets_images_of_its_sizes(train_opt, small, tmp_path):
    pytest.importorskip('spandrel')
    from spandrel.architectures.SwinIR import SwinIR

    net = SwinIR(
        img_size=16, window_size=8, embed_dim=12, depths=[2], num_heads=[2], mlp_ratio=2, upscale=2,
        upsampler='pixelshuffledirect', resi_connection='1conv',
    )  # fmt: skip
    torch.save({'params': net.state_dict()}, tmp_path / 'swinir.pth')
    opt = changed(train_opt, 'teacher', {'weights': str(tmp_path / 'swinir.pth'), 'precision': 'bf16'})
    result = profile(str(write_yml(opt, tmp_path / 'opt.yml')), [], repeats=1)
    teacher = result['settings'][0]['networks']['teacher']
    assert (teacher['network'], teacher['parameters'], teacher['runs']) == ('SwinIR', parameters(net), 1)
    # 8 x 10 is run as 16 x 16: conv_first, one of the group, conv_after_body, upsample to 12
    assert teacher['activations'] == 16 * 16 * (3 * 12 + 12)


@pytest.mark.parametrize(
    ('out', 'complaint'),
    [
        ('costs.csv', r'--out: costs.csv; accepted: a name that ends in .json, .md'),
        ('no/a.md', 'no such folder: no'),
    ],
)
def test_where_nothing_can_be_written_is_said_before_anything_runs(out, complaint, absent):
    with pytest.raises(UserError, match=complaint):
        command.main(['-opt', str(absent), '--out', out], standalone_mode=False)


def test_a_network_that_does_not_take_such_an_image_is_refused_in_its_own_words(absent, small, monkeypatch):
    monkeypatch.setattr(tool, 'LQ_SIZE', (0, 8))
    with pytest.raises(UserError, match=r'^teacher: EDSR does not take an image of 8x0 \(RuntimeError: .*; accepted: '):
        profile(str(absent), [], repeats=0)
