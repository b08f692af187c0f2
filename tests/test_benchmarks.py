import importlib.util
import json
import sys
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from conftest import REPOSITORY, SHARED_DATA, picture, run, write_yml

from facd_basicsr.data.bicubic import bicubic_lr


def benchmark(name: str) -> ModuleType:
    """A script of benchmarks/, not run."""
    spec = importlib.util.spec_from_file_location(f'benchmark_{name}', REPOSITORY / 'benchmarks' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_train_speed_writes_its_figures(train_opt, tmp_path):
    option_file = write_yml(train_opt, tmp_path / 'opt.yml')
    script = REPOSITORY / 'benchmarks' / 'train_speed.py'
    out = tmp_path / 'results' / 'tiny.json'
    done = run(script, '-opt', option_file, '--iterations', '4', '--random-teacher', '--out', out, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result['iterations'] == 4
    assert result['seconds_per_iteration_median'] > 0 and result['peak_memory_gib'] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ['opt.yml', 'results']
    few = run(script, '-opt', option_file, '--iterations', '2', '--out', out, cwd=tmp_path)
    assert few.returncode == 2 and '--iterations: 2; accepted: more than 2' in few.stderr


def test_bicubic_writes_differences_and_psnr(tmp_path, monkeypatch, capsys):
    for name in ('Set5', 'Set14'):
        for scale in (2, 3, 4):
            for folder in (f'GTx{scale}', f'LRx{scale}'):
                (tmp_path / name / folder).mkdir(parents=True)
            gt = picture(0, 48, 72)
            lr = bicubic_lr(gt, scale).astype(int)
            lr[5, 5, 0] += 5 if lr[5, 5, 0] < 128 else -5
            cv2.imwrite(str(tmp_path / name / f'GTx{scale}' / '1.png'), gt)
            cv2.imwrite(str(tmp_path / name / f'LRx{scale}' / '1.png'), lr.astype(np.uint8))
    out = tmp_path / 'results' / 'bicubic.json'
    monkeypatch.setattr(sys, 'argv', ['bicubic.py', str(tmp_path), '--out', str(out)])
    benchmark('bicubic').main()
    result = json.loads(out.read_text())['Set5 x4']
    assert (result['images'], result['our_equal_images'], result['our_largest_difference']) == (1, 0, 5)
    assert result['our_mean_difference'] == pytest.approx(5 / (12 * 18 * 3), abs=1e-4)
    assert min(result['psnr_y_our_lr'], result['psnr_y_their_lr'], result['psnr_y_published_protocol']) > 30
    assert 'Set14 x4' in capsys.readouterr().out


def test_validation_writes_times_of_both_and_how_far_their_figures_differ(tmp_path, monkeypatch, capsys):
    for name in ('GT', 'LQ'):
        (tmp_path / name).mkdir()
    for i in range(2):
        gt = picture(i, 64, 80)
        cv2.imwrite(str(tmp_path / 'GT' / f'{i}.png'), gt)
        cv2.imwrite(str(tmp_path / 'LQ' / f'{i}.png'), bicubic_lr(gt, 4))
    out = tmp_path / 'validation.json'
    folders = [str(tmp_path / 'GT'), str(tmp_path / 'LQ')]
    arguments = ['--students', 'EDSR 16x4', '--turns', '1', '--threads', str(torch.get_num_threads())]
    monkeypatch.setattr(sys, 'argv', ['validation.py', '--data', *folders, *arguments, '--out', str(out)])
    threads = cv2.getNumThreads()
    benchmark('validation').main()
    cv2.setNumThreads(threads)
    result = json.loads(out.read_text())
    student = result['students']['EDSR 16x4']
    assert result['images'] == 2 and min(student['seconds'].values()) > 0
    assert student['figures'].keys() == student['differences'].keys() and len(student['figures']) == 4
    assert max(student['differences'].values()) < 1e-3
    assert 'EDSR 16x4' in capsys.readouterr().out


@pytest.mark.skipif(not (SHARED_DATA / 'benchmark').is_dir(), reason='no shared data')
def test_independent_lr_images_to_the_last_bit_and_published_psnr_are_reproduced():
    for name, published in (('Set5', 28.42), ('Set14', 26.00)):
        result = benchmark('bicubic').compare(SHARED_DATA / 'benchmark' / name, 4)
        assert result['our_equal_images'] == result['images'] and result['our_largest_difference'] == 0
        assert result['psnr_y_published_protocol'] == pytest.approx(published, abs=0.01)
