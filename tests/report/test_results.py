import shutil
from pathlib import Path

import cv2
import pytest
import torch
import yaml
from conftest import changed, tiny_test_opt, tiny_train_opt, write_yml
from runs import run as train
from torch import Tensor, nn

from facd_basicsr.evaluation.test_sets import build_sets
from facd_basicsr.report.page import page
from facd_basicsr.report.results import results_of
from facd_basicsr.runs.run_folder import read_run_folder
from facd_basicsr.tools.benchmark import benchmark


@pytest.fixture(scope='module')
def distilled(data, teacher_weights, tmp_path_factory):
    """The root of a run by FACD without TensorBoard, that was stopped after 4 of 8 iterations and resumed."""
    root = tmp_path_factory.mktemp('distilled')
    opt = changed(tiny_train_opt(data, teacher_weights), 'logger.use_tb_logger', False)
    train(opt, root, 4)
    train(opt, root, 8, '--auto_resume')
    return root


@pytest.fixture
def folder(distilled, tmp_path):
    return shutil.copytree(distilled / 'experiments' / 'tiny', tmp_path / 'tiny')


def too_small(path: Path) -> None:
    cv2.imwrite(str(path), cv2.imread(str(path))[:20])


def rewrite(folder, old: str, new: str) -> None:
    """Replaces text in the options, as if the run had been another."""
    path = folder / 'options.yml'
    path.write_text(path.read_text().replace(old, new))


def test_the_figures_are_those_of_benchmark(folder, data, tmp_path):
    results = results_of(read_run_folder(folder))
    opt = changed(tiny_test_opt(data), 'path.pretrain_network_g', str(folder / 'models' / 'net_g_latest.pth'))
    opt['datasets']['test_1']['name'] = 'val'
    train_file = str(folder / 'options.yml')
    expected = benchmark([str(write_yml(opt, tmp_path / 'test.yml'))], [], train_file, tmp_path / 'out')
    quality = {'psnr_y', 'ssim_y', 'psnr_rgb'}
    expected = {
        name.replace('tiny_test', 'student'): {
            metric: value for metric, value in means['val'].items() if metric in quality
        }
        for name, means in expected.items()
    }
    assert {name: means['val'] for name, means in results.mean.items()} == expected
    assert (list(expected), results.notes) == (['bicubic', 'student', 'teacher'], [])


def add_lpips(folder: Path, block: dict) -> None:
    """As if the run had been validated by LPIPS too."""
    opt = yaml.safe_load((folder / 'options.yml').read_text())
    opt['val']['metrics']['lpips'] = {**block, 'net': 'alex', 'better': 'lower'}
    write_yml(opt, folder / 'options.yml')


def test_lpips_of_the_run_is_in_the_table_as_benchmark_has_it(folder, data, lpips, tmp_path):
    add_lpips(folder, lpips)
    run = read_run_folder(folder)
    results = results_of(run)
    assert results.table.header[-1] == 'lpips' and results.notes == []
    opt = changed(tiny_test_opt(data), 'path.pretrain_network_g', str(folder / 'models' / 'net_g_latest.pth'))
    opt['val']['metrics']['lpips'] = lpips
    expected = benchmark([str(write_yml(opt, tmp_path / 'test.yml'))], [], None, tmp_path / 'out')
    assert results.mean['student']['val']['lpips'] == expected['tiny_test']['pictures']['lpips']
    assert 'PSNR in dB and SSIM, lpips (lower is better) on the run' in page(run, results)


def test_lpips_that_cannot_be_had_here_is_a_note_beside_the_table(folder):
    add_lpips(folder, {'type': 'calculate_lpips', 'crop_border': 2, 'weights': '/absent/alexnet.pth'})
    results = results_of(read_run_folder(folder))
    assert results.table.header[-1] == 'PSNR-RGB'
    (note,) = results.notes
    assert note.startswith('No lpips in the table: val.metrics.lpips.')


def test_the_last_validation_of_the_run_is_the_table(folder):
    run = read_run_folder(folder)
    results = results_of(run)
    logged = {metric: curve[8] for metric, curve in run.metrics.validation['val'].items()}
    assert results.mean['student']['val'] == pytest.approx(logged, abs=1e-4)
    assert [list(curve) for curve in run.metrics.validation['val'].values()] == [[4, 8]] * 3


def test_a_resumed_run_has_one_curve(folder):
    run = read_run_folder(folder)
    assert [(session.first, session.last, session.end) for session in run.sessions] == [
        (0, 4, 'finished'),
        (4, 8, 'finished'),
    ]
    curves = run.metrics.curves
    assert set(curves) == {'lr', 'l_sr', 'l_facd', 'alpha', 'r_1', 'r_2', 'r_3'}
    assert all(sorted(curve) == list(range(1, 9)) for curve in curves.values())


def test_crops_have_every_view(folder):
    results = results_of(read_run_folder(folder))
    assert [crop.title for crop in results.crops[:2]] in (['val/0', 'val/1'], ['val/1', 'val/0'])
    for crop in results.crops:
        assert [name for name, _, _ in crop.views] == ['bicubic', 'student', 'teacher', 'HR']
        assert crop.size == 32 - 2 * 2
        assert len({image for _, _, image in crop.views}) == 4


def test_every_network_sees_every_image_once(folder, monkeypatch):
    calls = []
    run = nn.Module._wrapped_call_impl

    def noted(net: nn.Module, lq: Tensor) -> Tensor:
        if not lq.is_meta:  # where the sizes that a network takes are probed
            calls.append(type(net).__name__)
        return run(net, lq)

    monkeypatch.setattr(nn.Module, '__call__', noted)
    results_of(read_run_folder(folder))
    assert {name: calls.count(name) for name in ('EDSRStudent', 'Teacher')} == {'EDSRStudent': 2, 'Teacher': 2}


@pytest.mark.parametrize('damage', [lambda path: path.write_bytes(path.read_bytes()[:100]), Path.unlink, too_small])
def test_with_a_damaged_image_there_are_curves_and_its_name(damage, folder, data, tmp_path, monkeypatch):
    copy = shutil.copytree(data / 'GT', tmp_path / 'GT')
    rewrite(folder, str(data / 'GT'), str(copy))
    run = read_run_folder(folder)

    def damaged_after_the_check(opt: dict) -> dict:
        sets = build_sets(opt)
        damage(copy / '1.png')
        return sets

    monkeypatch.setattr('facd_basicsr.report.results.build_sets', damaged_after_the_check)
    found = results_of(run)
    assert (found.table, found.crops, found.mean) == (None, [], {})
    (note,) = found.notes
    assert note.startswith('No table and no crops: datasets: ') and str(copy / '1.png') in note
    text = page(run, found)
    assert str(copy / '1.png') in text and 'id="crops"' not in text and text.count('<svg') == 8


def test_a_network_of_somebody_else_reads_no_file(folder, tmp_path, monkeypatch):
    run = read_run_folder(folder)
    for block in (run.opt['network_g'], run.opt['teacher']['network']):
        block['rgb_mean'] = 'a.pth'
        notes = results_of(run).notes
        assert len(notes) == 1 and ".rgb_mean: 'a.pth'; accepted: " in notes[0]
        del block['rgb_mean']


def test_without_data_there_are_curves_and_a_reason(folder, data):
    rewrite(folder, str(data / 'LQ'), '/gone/LQ')
    run = read_run_folder(folder)
    results = results_of(run)
    assert (results.table, results.crops) == (None, [])
    assert results.notes[0].startswith('No table and no crops: datasets.val.dataroot_lq: no such folder: /gone/LQ')
    text = page(run, results)
    assert results.notes[0] in text and 'id="crops"' not in text and text.count('<svg') == 8


def test_a_relative_path_that_is_not_there_says_what_it_is_relative_to(folder, data):
    rewrite(folder, str(data / 'GT'), 'gone/GT')
    (note,) = results_of(read_run_folder(folder)).notes
    assert note.endswith('(paths are relative to the folder that facd report is run in).')


def test_without_the_teacher_there_are_the_others_and_a_reason(folder, teacher_weights):
    rewrite(folder, str(teacher_weights), '/gone/teacher.pth')
    results = results_of(read_run_folder(folder))
    assert list(results.mean) == ['bicubic', 'student']
    assert results.notes == [
        'No teacher in table and crops: teacher.weights: /gone/teacher.pth is not available: '
        'no such file: /gone/teacher.pth.'
    ]


def test_a_teacher_by_address_is_not_downloaded(folder, teacher_weights):
    rewrite(folder, str(teacher_weights), 'https://example.invalid/teacher.pth')
    (note,) = results_of(read_run_folder(folder)).notes
    assert 'https://example.invalid/teacher.pth is not available' in note


def test_sets_that_training_held_in_memory_are_read_from_their_files(folder):
    expected = results_of(read_run_folder(folder)).mean
    rewrite(folder, 'type: disk', 'type: memory')
    assert results_of(read_run_folder(folder)).mean == expected


def test_a_model_that_is_not_known_here_says_so(folder):
    rewrite(folder, 'model_type: FACDModel', 'model_type: MyModel')
    (note,) = results_of(read_run_folder(folder)).notes
    assert 'model_type: MyModel has its own test(), or is not installed' in note


def test_a_run_without_checkpoints_says_so(folder):
    shutil.rmtree(folder / 'models')
    (note,) = results_of(read_run_folder(folder)).notes
    assert 'has no net_g_*.pth; accepted: a run with a checkpoint' in note


def test_a_checkpoint_of_another_network_says_so(folder):
    torch.save({'params': {'x': torch.zeros(1)}}, folder / 'models' / 'net_g_latest.pth')
    (note,) = results_of(read_run_folder(folder)).notes
    assert 'does not fit EDSRStudent' in note


def test_a_run_without_a_validation_set_says_so(folder):
    run = read_run_folder(folder)
    del run.opt['datasets']['val']
    end = 'accepted: a run with a validation set of pairs.'
    assert results_of(run).notes == [f'No table and no crops: datasets.val: missing; {end}']
    run.opt['datasets']['val_2'] = {'type': 'SingleImageDataset', 'dataroot_lq': 'x', 'io_backend': {'type': 'disk'}}
    assert results_of(run).notes == [f'No table and no crops: datasets.val: has no ground truth; {end}']


def test_a_facd_model_without_a_teacher_is_reported(data, teacher_weights, tmp_path):
    opt = tiny_train_opt(data, teacher_weights)
    for key in ('teacher', 'taps', 'network_r'):
        del opt[key]
    opt['train']['distill_opt'] = {'type': 'L1Loss', 'target': 'gt'}
    train(opt, tmp_path, 2)
    run = read_run_folder(tmp_path / 'experiments' / 'tiny')
    results = results_of(run)
    assert (list(results.mean), results.notes) == (['bicubic', 'student'], [])
    assert 'EDSRStudent, x2, FACDModel without a teacher' in page(run, results)


def test_a_student_alone_is_scored_by_its_average_over_iterations(data, teacher_weights, tmp_path):
    opt = tiny_train_opt(data, teacher_weights) | {'model_type': 'SRModel'}
    for key in ('teacher', 'taps', 'network_r'):
        del opt[key]
    del opt['train']['distill_opt']
    opt['train'] |= {'ema_decay': 0.5, 'pixel_opt': {'type': 'L1Loss'}}
    train(opt, tmp_path, 4)
    run = read_run_folder(tmp_path / 'experiments' / 'tiny')
    results = results_of(run)
    logged = {
        metric: curve[4] for metric, curve in run.metrics.validation['val'].items()
    }  # which is of the average too
    assert results.mean['student (EMA)']['val'] == pytest.approx(logged, abs=1e-4)
    assert (list(results.mean), set(run.metrics.curves)) == (['bicubic', 'student (EMA)'], {'lr', 'l_pix'})
    assert 'EDSRStudent, x2, SRModel without a teacher' in page(run, results)
