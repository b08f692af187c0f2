"""Every command of ``facd`` after a run of each family of losses, with taps and regressors and without."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import changed, write_yml
from runs import run
from states import method_opt

from facd_basicsr.cli import facd

# features by regressors, features without, images alone, through a VGG, on other inputs, of an average of the student
FAMILIES = ['FACDLoss', 'FAKDLoss', 'TeacherSupervisionLoss', 'CSDLoss', 'DUKDLoss', 'DCKDLoss']


def invoke(*command: object) -> str:
    done = CliRunner().invoke(facd, list(map(str, command)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize(
    'name',
    [pytest.param(name, marks=[pytest.mark.slow] * (name in ('FAKDLoss', 'CSDLoss', 'DUKDLoss'))) for name in FAMILIES],
)
def test_every_command_takes_a_run_of_every_family_of_losses(name, train_opt, tmp_path: Path, monkeypatch):
    opt = method_opt(changed(train_opt, 'train.total_iter', 2), name, tmp_path)
    run(opt, tmp_path, 2)
    folder, train_file = tmp_path / 'experiments' / 'tiny', write_yml(opt, tmp_path / 'method.yml')
    pictures = tmp_path / 'datasets' / 'pictures'
    pictures.mkdir(parents=True)
    for ours, sets in (('GT', 'GTmod12'), ('LQ', 'LRbicx2')):
        (pictures / sets).symlink_to(Path(opt['datasets']['val']['dataroot_gt']).parent / ours)
    source = ('--run', folder, '--sets', pictures, '--force_yml', 'num_gpu=0')

    assert ('network_r' in opt) == ('network_r:' in invoke('show', '-opt', train_file, '--defaults'))
    assert 'EDSRStudent' in invoke('profile', '-opt', train_file, '--repeats', '0')
    benchmark = invoke('benchmark', *source, '--teacher', train_file, '--out', tmp_path / 'table')
    assert ('Feature PSNR' in benchmark) == ('network_r' in opt)  # of other widths than the teacher's
    assert ('no feature PSNR' in benchmark) == (name == 'FAKDLoss')
    crops = ('--size', '16', '--count', '1', '--out', tmp_path / 'crops.png')
    assert '--crop' in invoke('figure', 'crops', *source, '--teacher', train_file, *crops)
    patches = ('--patch', '8', '--out', tmp_path / 'map.png')
    assert 'teacher worse' in invoke('figure', 'teacher-map', *source, '--teacher', train_file, *patches)
    invoke('report', folder, '--out', tmp_path / 'report.html')
    assert 'data:image' in (tmp_path / 'report.html').read_text()
    invoke('export', folder / 'models' / 'net_g_latest.pth', '-o', tmp_path / 'student', '--no-fp16')
    assert (tmp_path / 'student.safetensors').is_file()
