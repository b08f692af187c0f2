"""``facd benchmark`` as a user runs it."""

import csv
import json
import math
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from basicsr.archs import build_network
from basicsr.metrics import calculate_niqe
from conftest import METRICS, STUDENT, changed, run, write_yml
from states import method_opt

from facd_basicsr.errors import UserError
from facd_basicsr.options import parser
from facd_basicsr.runtime.metrics import bicubic
from facd_basicsr.test import test as evaluate
from facd_basicsr.tools.benchmark import benchmark


@pytest.fixture
def files(test_opt, train_opt, tmp_path) -> dict[str, str]:
    """Paths of the test files of two untrained students, the second wider, and of a train file."""
    paths = {}
    for name, num_feat in (('student_a', 4), ('wide_b', 6)):
        network = {**STUDENT, 'num_feat': num_feat}
        checkpoint = tmp_path / f'net_g_{name}.pth'
        torch.save({'params': build_network(network).state_dict()}, checkpoint)
        opt = changed(changed(test_opt, 'name', name), 'network_g', network)
        opt['path']['pretrain_network_g'] = str(checkpoint)
        paths[name] = str(write_yml(opt, tmp_path / f'{name}.yml'))
    return paths | {'train': str(write_yml(train_opt, tmp_path / 'train.yml'))}


def test_the_command_prints_the_table_and_writes_its_files(files, checkout, tmp_path):
    student, wide, train = files.values()
    options = ('-opt', student, '-opt', wide, '--teacher', train, '--out', tmp_path / 'out')
    override = ('--force_yml', 'manual_seed=1', 'num_gpu=0')
    done = run('-m', 'facd_basicsr.cli', 'benchmark', *options, *override, cwd=checkout)
    assert done.returncode == 0, done.stderr
    for text in ('PSNR-Y', 'bicubic', 'student_a', 'wide_b', 'teacher', 'Feature PSNR', 'student_a: no feature PSNR'):
        assert text in done.stdout, text
    assert 'Network [' not in done.stderr and '\r' not in done.stderr
    out = tmp_path / 'out'
    assert {path.name for path in out.iterdir()} == {'table.md', 'table.tex', 'per_image.csv', 'results.json'}
    assert '| bicubic | - |' in (out / 'table.md').read_text()
    tex = (out / 'table.tex').read_text()
    assert r'student\_a' in tex and tex.count(r'\begin{tabular}') == tex.count(r'\end{tabular}') == 2

    results = json.loads((out / 'results.json').read_text())
    assert [method['name'] for method in results['methods']] == ['bicubic', 'student_a', 'wide_b', 'teacher']
    assert results['force_yml'] == ['manual_seed=1', 'num_gpu=0'] and results['sets'] == {'pictures': 2}
    rows = list(csv.DictReader((out / 'per_image.csv').open()))
    assert len(rows) == len(results['images']) == 4 * 2
    values = [float(row['psnr_y']) for row in rows if row['method'] == 'wide_b']
    assert sum(values) / 2 == pytest.approx(results['means']['wide_b']['pictures']['psnr_y'])
    compared = {row['method'] for row in rows if row['feature_psnr']}
    assert compared == {'wide_b'}  # the narrow one has no regressors next to its checkpoint


@pytest.mark.parametrize('name', ['TeacherSupervisionLoss', 'CSDLoss', 'IACDLoss', 'LFDLoss'])
def test_the_teacher_of_any_loss_has_a_row_and_feature_psnr_only_where_there_are_taps(name, files, train_opt, tmp_path):
    opt = method_opt(train_opt, name, tmp_path)
    train_file = str(write_yml(opt, tmp_path / 'method.yml'))
    benchmark([files['wide_b']], [], train_file, tmp_path / 'out')
    table = (tmp_path / 'out/table.md').read_text()
    assert '| teacher |' in table and ('Feature PSNR' in table) == ('taps' in opt)


def test_a_network_that_takes_no_color_images_is_refused_in_a_line_and_no_folder_is_made(files, test_opt, tmp_path):
    network = {'type': 'SRVGGNetCompact', 'num_in_ch': 1, 'num_out_ch': 1, 'num_feat': 4, 'num_conv': 1, 'upscale': 2}
    opt = changed(test_opt, 'network_g', network)
    opt['path']['pretrain_network_g'] = str(tmp_path / 'gray.pth')
    torch.save({'params': build_network(network).state_dict()}, tmp_path / 'gray.pth')
    with pytest.raises(UserError, match=r'tiny_test: .*SRVGGNetCompact does not take LQ of 16 x 16 with 3 channels'):
        benchmark([str(write_yml(opt, tmp_path / 'gray.yml'))], [], None, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_its_metrics_equal_those_of_test_py(files, tmp_path):
    mean = benchmark([files['wide_b']], [], None, tmp_path / 'out')
    args = parser(is_train=False).parse_args(['-opt', files['wide_b']])
    assert mean['wide_b']['pictures'] == pytest.approx(evaluate(args, tmp_path, console=False)['pictures'], abs=1e-4)


def test_an_error_creates_no_folder(files, tmp_path):
    with pytest.raises(UserError, match=r'no such file: absent.pth; docs/teachers.md'):
        benchmark([files['wide_b']], ['teacher:weights=absent.pth'], files['train'], tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
    with pytest.raises(UserError, match=r'--out: .*student_a.yml is a file; accepted: a folder'):
        benchmark([files['wide_b']], [], None, tmp_path / 'student_a.yml')


def test_a_gray_image_is_scored_as_test_py_scores_it_or_as_gray(files, data, tmp_path):
    for folder in ('GT', 'LQ'):
        shutil.copytree(data / folder, tmp_path / folder)
        for path in (tmp_path / folder).iterdir():
            cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    opt = yaml.safe_load(Path(files['wide_b']).read_text())
    opt['datasets']['test_1'] |= {'dataroot_gt': str(tmp_path / 'GT'), 'dataroot_lq': str(tmp_path / 'LQ')}
    option_file = str(write_yml(opt, tmp_path / 'gray.yml'))
    as_test_py = evaluate(parser(is_train=False).parse_args(['-opt', option_file]), root=tmp_path, console=False)[
        'pictures'
    ]
    as_color = benchmark([option_file], [], None, tmp_path / 'color')['wide_b']['pictures']
    as_gray = benchmark([option_file], [], None, tmp_path / 'gray', gray=True)['wide_b']['pictures']
    assert as_color['psnr_y'] == pytest.approx(as_test_py['psnr_y'], abs=1e-4)
    assert as_color['ssim_y'] == pytest.approx(as_test_py['ssim_y'], abs=1e-6)
    assert as_color['psnr_y'] - as_gray['psnr_y'] == pytest.approx(20 * math.log10(255 / 219), abs=1e-4)
    for folder, words in (('color', 'scored as color, as in test.py'), ('gray', 'scored as gray, as in published')):
        assert f'pictures/0: one-channel image, {words}' in (tmp_path / folder / 'table.md').read_text(encoding='utf-8')


def test_a_set_without_gt_is_compared_by_niqe(files, tmp_path):
    (tmp_path / 'photographs').mkdir()
    rng = np.random.default_rng(0)
    for i in range(2):
        cv2.imwrite(str(tmp_path / 'photographs' / f'{i}.png'), rng.integers(0, 256, (60, 110, 3), dtype=np.uint8))
    single = {'name': 'lq', 'type': 'SingleImageDataset', 'dataroot_lq': str(tmp_path / 'photographs')}
    option_files = [files['student_a'], files['wide_b']]
    for path in option_files:
        opt = yaml.safe_load(Path(path).read_text())
        opt['val']['metrics'] = None
        opt['datasets']['test_2'] = {**single, 'io_backend': {'type': 'disk'}}
        write_yml(opt, Path(path))
    mean = benchmark(option_files, [], None, tmp_path / 'out')
    assert {name: set(values) for name, values in mean['wide_b'].items()} == {
        'pictures': {'psnr_y', 'ssim_y', 'psnr_rgb'},
        'lq': {'niqe'},
    }
    image = bicubic(cv2.imread(str(tmp_path / 'photographs' / '0.png')), 2)
    rows = list(csv.DictReader((tmp_path / 'out' / 'per_image.csv').open()))
    assert [
        float(row['niqe']) for row in rows if (row['method'], row['set'], row['image']) == ('bicubic', 'lq', '0')
    ] == [calculate_niqe(image, crop_border=2)]
    lower = min(mean[method]['lq']['niqe'] for method in ('student_a', 'wide_b'))  # is bold
    assert f'**{lower:.3f}**' in (tmp_path / 'out' / 'table.md').read_text(encoding='utf-8')

    (tmp_path / 'photographs' / '2.png').write_bytes(
        (Path(opt['datasets']['test_1']['dataroot_lq']) / '0.png').read_bytes()
    )
    with pytest.raises(
        UserError, match=r'val.metrics.niqe: datasets.test_2: 2.png: calculate_niqe .* 48x32 pixels; acc'
    ):
        benchmark(option_files, [], None, tmp_path / 'absent')
    assert not (tmp_path / 'absent').exists()


def test_metrics_beside_psnr_and_ssim_have_columns_and_the_lower_of_lpips_is_bold(files, lpips, tmp_path):
    option_files = [files['student_a'], files['wide_b']]
    override = f'val:metrics:lpips={yaml.safe_dump(lpips, default_flow_style=True, width=1000).strip()}'
    mean = benchmark(option_files, [override], None, tmp_path / 'out')
    assert all(list(mean[method]['pictures']) == sorted({**METRICS, 'lpips': lpips}) for method in mean)
    table = (tmp_path / 'out' / 'table.md').read_text(encoding='utf-8')
    assert table.startswith('PSNR in dB and SSIM, lpips (lower is better), x2\n')
    low, high = sorted(mean[method]['pictures']['lpips'] for method in ('student_a', 'wide_b'))
    assert f'**{low:.4f}** |' in table and f' {high:.4f} |' in table
    rows = list(csv.DictReader((tmp_path / 'out' / 'per_image.csv').open()))
    assert list(rows[0]) == ['method', 'set', 'image', 'psnr_y', 'ssim_y', 'psnr_rgb', 'lpips']
    values = [float(row['lpips']) for row in rows if row['method'] == 'wide_b']
    assert np.mean(values) == pytest.approx(mean['wide_b']['pictures']['lpips'])
    results = json.loads((tmp_path / 'out' / 'results.json').read_text())
    assert results['metrics'] == {'lpips': {**lpips, 'net': 'alex', 'better': 'lower'}}
    args = parser(is_train=False).parse_args(['-opt', files['wide_b'], '--force_yml', override])
    assert evaluate(args, tmp_path, console=False)['pictures']['lpips'] == pytest.approx(np.mean(values), rel=1e-3)


def test_a_metric_with_the_name_of_a_column_is_refused(files, lpips, tmp_path):
    override = f'val:metrics:image={yaml.safe_dump(lpips, default_flow_style=True, width=1000).strip()}'
    with pytest.raises(UserError, match=r'^val.metrics.image: calculate_lpips, but image is another column; acc'):
        benchmark([files['wide_b']], [override], None, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_sets_are_in_the_order_of_test_py(files, tmp_path):
    opt = yaml.safe_load(Path(files['wide_b']).read_text())
    opt['datasets'] = {'test_2': {**opt['datasets']['test_1'], 'name': 'second'}, **opt['datasets']}
    mean = benchmark([str(write_yml(opt, tmp_path / 'two.yml'))], [], None, tmp_path / 'out')
    assert list(mean['bicubic']) == ['pictures', 'second']
