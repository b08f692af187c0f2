import re
import shlex
import sys

import numpy as np
import pytest
from conftest import REPOSITORY, imported_script, run
from PIL import Image

demo = imported_script(REPOSITORY / 'demo' / 'demo.py')


@pytest.mark.parametrize('name', demo.TRAIN_PHOTOGRAPHS + demo.VAL_PHOTOGRAPHS)
def test_every_photograph_is_in_scikit_images_wheel(name):
    image = demo.gt_of(name)
    assert image.dtype == np.uint8 and image.shape[2] == 3 and image.std() > 5
    assert image.shape[0] % 2 == image.shape[1] % 2 == 0


def test_validation_photographs_are_held_out():
    assert not set(demo.TRAIN_PHOTOGRAPHS) & set(demo.VAL_PHOTOGRAPHS)


def test_the_demo_ends_with_its_table_and_picture(checkout):
    done = run('demo/demo.py', '--iterations', '2', cwd=checkout)
    assert done.returncode == 0, done.stderr
    out = checkout / 'demo_output'
    table = (out / 'table.txt').read_text()
    assert table in done.stdout
    assert re.match(r'x2, 2 iterations +PSNR-Y +PSNR-RGB +SSIM-Y +parameters +FLOPs +ms/image +training\n', table)
    rows = {line.split('  ')[0]: line.split() for line in table.splitlines()[2:]}
    assert list(rows) == ['bicubic', 'student alone', 'student, FACD', 'teacher']
    assert float(rows['teacher'][1]) > float(rows['bicubic'][1])  # the shipped teacher is better than bicubic
    assert rows['student alone'][5:7] == rows['student, FACD'][5:7]  # one network: parameters and FLOPs agree
    for step in ('2/4 student alone', '3/4 student, FACD'):
        assert re.search(rf'{step}: 2 of 2 in ', done.stderr)
    assert Image.open(out / 'comparison.png').size[0] > 1000
    python, *command = shlex.split(done.stdout.splitlines()[-1])
    assert python == sys.executable and command[:2] == ['facd_cli.py', 'upscale']
    upscaled = run(*command, cwd=checkout)
    assert upscaled.returncode == 0, upscaled.stderr
    photo = Image.open(out / 'data' / 'val_GT' / 'astronaut.png')
    assert Image.open(out / 'upscaled' / 'astronaut.png').size == (2 * photo.width, 2 * photo.height)
    assert {path.name for path in (out / 'experiments').iterdir()} == {'demo_Student', 'demo_FACD'}


def test_a_checkout_that_cannot_be_written_is_a_line(tmp_path, monkeypatch, capsys):
    (tmp_path / 'file').touch()
    monkeypatch.setattr(demo, 'OUT', tmp_path / 'file')
    monkeypatch.setattr(demo, 'DATA', tmp_path / 'file' / 'data')
    monkeypatch.setattr(sys, 'argv', ['demo.py'])
    with pytest.raises(SystemExit, match='2'):
        demo.main()
    assert re.fullmatch(
        r'error: .*Not a directory; once that is fixed, give the same command again\n', capsys.readouterr().err
    )


def test_largest_error_finds_the_window_with_the_largest_error():
    error = np.zeros((30, 40))
    error[12:17, 21:26] = 1
    assert demo.largest_error(error, 5) == (12, 21)


def test_the_shipped_teacher_is_small():
    assert demo.TEACHER_WEIGHTS.stat().st_size < 1_000_000
