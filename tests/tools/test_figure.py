"""``facd figure`` as a user runs it."""

import json
import shlex

import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from click.testing import CliRunner
from conftest import STUDENT, changed, run, with_two_teachers, write_yml
from PIL import Image

from facd_basicsr.cli import facd
from facd_basicsr.errors import UserError


@pytest.fixture
def files(test_opt, train_opt, tmp_path) -> dict[str, str]:
    """Paths of a test file and of a train file."""
    torch.manual_seed(3)
    checkpoint = tmp_path / 'net_g_latest.pth'
    torch.save({'params': build_network(STUDENT).state_dict()}, checkpoint)
    opt = changed(test_opt, 'path.pretrain_network_g', str(checkpoint))
    return {
        'test': str(write_yml(opt, tmp_path / 'test.yml')),
        'train': str(write_yml(train_opt, tmp_path / 'train.yml')),
    }


def invoke(*command: str) -> str:
    """Output of a ``facd`` command; its error is raised."""
    return CliRunner().invoke(facd, command, catch_exceptions=False).output


def test_found_crops_are_drawn_for_every_method(files, checkout, tmp_path):
    options = ('-opt', files['test'], '--teacher', files['train'], '--size', '16', '--count', '2')
    done = run('-m', 'facd_basicsr.cli', 'figure', 'crops', *options, '--out', tmp_path / 'figure.png', cwd=checkout)
    assert done.returncode == 0, done.stderr
    width, height = Image.open(tmp_path / 'figure.png').size
    assert width > 4 * 192 and height > 2 * 192  # image, HR, bicubic, student, teacher; two crops
    assert done.stdout.count('--crop') == 2 and '--image pictures/0 --crop' in done.stdout


def test_the_printed_line_draws_the_same_crops_again(files, tmp_path):
    first, again = tmp_path / 'first one.png', tmp_path / 'again.png'
    printed = invoke('figure', 'crops', '-opt', files['test'], '--size', '16', '--count', '2', '--out', str(first))
    program, *words = shlex.split(printed.splitlines()[-1])
    assert program == 'facd' and words[-1] == str(first)
    assert 'facd figure crops' not in invoke(*words[:-1], str(again))
    assert again.read_bytes() == first.read_bytes()


def test_a_row_of_errors_shows_them_below_the_crops(files, tmp_path):
    options = ('-opt', files['test'], '--teacher', files['train'], '--image', '1', '--crop', '20', '4', '24')
    invoke('figure', 'crops', *options, '--out', str(tmp_path / 'plain.png'))
    invoke('figure', 'crops', *options, '--errors', '--out', str(tmp_path / 'errors.png'))
    plain, errors = (np.asarray(Image.open(tmp_path / f'{name}.png')) for name in ('plain', 'errors'))
    assert errors.shape[0] > plain.shape[0] + 192 and errors.shape[1] == plain.shape[1]
    assert np.array_equal(errors[:192], plain[:192])
    assert (errors[plain.shape[0] + 32 :, -192:].sum(2) < 30).any()  # black: no error somewhere in the teacher's


def test_a_chosen_crop_shows_gts_pixels(files, data, tmp_path):
    out = tmp_path / 'new' / 'chosen.png'
    options = ('-opt', files['test'], '--image', '1', '--crop', '20', '4', '24', '--out', str(out))
    invoke('figure', 'crops', *options)
    gt = np.asarray(Image.open(data / 'GT' / '1.png').convert('RGB'))[4:28, 20:44]
    picture = np.asarray(Image.open(out))
    enlarged = gt.repeat(8, 0).repeat(8, 1)
    left = 6 + 48 + 6  # the full image is 48x32 pixels, not scaled
    assert np.array_equal(picture[6 : 6 + 192, left : left + 192], enlarged)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--crop', '0', '0', '8'], r'--crop: 2 images match for 1 crops; accepted: one image, chosen by --image'),
        (['--image', '1', '--crop', '40', '0', '16'], r'--crop: 40 0 16 .* is not inside pictures/1'),
        (['--out', 'figure.jpg'], r'--out: figure.jpg; accepted: a file name that ends in .png'),
    ],
)
def test_what_cannot_be_drawn_is_refused(files, options, message):
    with pytest.raises(UserError, match=message):
        invoke('figure', 'crops', '-opt', files['test'], *options)


def test_the_teacher_map_is_drawn_and_its_shares_written(files, checkout, tmp_path):
    options = ('-opt', files['test'], '--teacher', files['train'], '--patch', '4', '--out', tmp_path / 'map.png')
    done = run('-m', 'facd_basicsr.cli', 'figure', 'teacher-map', *options, cwd=checkout)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / 'map.png').size[1] > 2 * 192
    shares = json.loads((tmp_path / 'map.json').read_text())
    assert [image['patches'] for image in shares['images']] == [4 * 6, 4 * 6]  # 32x48 in patches of 8
    lost = sum(image['teacher_loses'] for image in shares['images'])
    assert shares['share'] == lost / 48 and shares['gt_patch'] == 8
    assert f'{lost / 48:.1%}' in done.stdout


def test_the_map_of_several_teachers_is_refused(files, train_opt, tmp_path):
    two = str(write_yml(with_two_teachers(train_opt), tmp_path / 'two.yml'))
    with pytest.raises(UserError, match=r'--teacher: .*two.yml has 2 teachers; accepted: a train file with one'):
        invoke('figure', 'teacher-map', '-opt', files['test'], '--teacher', two, '--out', str(tmp_path / 'map.png'))


def test_a_patch_larger_than_every_image_is_refused(files):
    with pytest.raises(UserError, match=r'--patch: 99; accepted: a patch no larger than the LQ images'):
        invoke('figure', 'teacher-map', '-opt', files['test'], '--teacher', files['train'], '--patch', '99')
