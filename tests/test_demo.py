import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from basicsr.utils import set_random_seed
from conftest import REPOSITORY, imported_script, run, train_options
from PIL import Image
from states import LOSSES, method_opt, summed

from facd_basicsr.data.loaders import build_loaders
from facd_basicsr.losses import DistillState
from facd_basicsr.models.micro_batches import Batch
from facd_basicsr.models.safe_model import build_model
from facd_basicsr.options.option_files import load_yaml

demo = imported_script(REPOSITORY / 'demo' / 'demo.py')


@pytest.mark.parametrize('name', demo.TRAIN_PHOTOGRAPHS + demo.VAL_PHOTOGRAPHS)
def test_every_photograph_is_in_scikit_images_wheel(name):
    image = demo.gt_of(name)
    assert image.dtype == np.uint8 and image.shape[2] == 3 and image.std() > 5
    assert image.shape[0] % 2 == image.shape[1] % 2 == 0


def test_validation_photographs_are_held_out():
    assert not set(demo.TRAIN_PHOTOGRAPHS) & set(demo.VAL_PHOTOGRAPHS)


@pytest.fixture(scope='module')
def done(checkout: Path) -> subprocess.CompletedProcess[str]:
    return run('demo/demo.py', '--iterations', '2', cwd=checkout)


@pytest.fixture
def rows(done: subprocess.CompletedProcess[str], checkout: Path) -> dict[str, list[str]]:
    """The words of the table's rows, by method."""
    lines = (checkout / 'demo_output' / 'table.txt').read_text().splitlines()[2:]
    return {line.split('  ')[0]: line.split() for line in lines}


def test_the_demo_ends_with_its_table_and_picture(done, rows, checkout):
    assert done.returncode == 0, done.stderr
    out = checkout / 'demo_output'
    table = (out / 'table.txt').read_text()
    assert table in done.stdout
    assert re.match(r'x2, 2 iterations +PSNR-Y +PSNR-RGB +SSIM-Y +parameters +FLOPs +ms/image +training\n', table)
    assert list(rows) == ['bicubic', 'student alone', 'student, FACD', 'teacher']
    assert float(rows['teacher'][1]) > float(rows['bicubic'][1])  # the shipped teacher is better than bicubic
    assert rows['student alone'][5:7] == rows['student, FACD'][5:7]  # one network: parameters and FLOPs agree
    for step in ('2/4 student alone', '3/4 student, FACD'):
        assert re.search(rf'{step}: 2 of 2 in ', done.stderr)
    assert Image.open(out / 'comparison.png').size[0] > 1000
    assert {path.name for path in (out / 'experiments').iterdir()} == {'demo_Student', 'demo_FACD'}


def run_last(line: int, name: str, done: subprocess.CompletedProcess[str], checkout: Path) -> str:
    """The output of a command that the demo has printed in this line from its end."""
    python, *command = shlex.split(done.stdout.splitlines()[-line])
    assert python == sys.executable and command[:2] == ['facd_cli.py', name]
    followed = run(*command, cwd=checkout)
    assert followed.returncode == 0, followed.stderr
    return followed.stdout


def test_the_command_that_the_demo_prints_upscales_a_photograph(done, checkout):
    run_last(3, 'upscale', done, checkout)
    out = checkout / 'demo_output'
    photo = Image.open(out / 'data' / 'val_GT' / 'astronaut.png')
    assert Image.open(out / 'upscaled' / 'astronaut.png').size == (2 * photo.width, 2 * photo.height)


@pytest.mark.slow
def test_the_command_that_the_demo_prints_exports_the_student_in_int8(done, rows, checkout):
    output = run_last(1, 'export', done, checkout)
    found = re.search(r'int8: photographs_val: PSNR-Y ([\d.]+) -> ([\d.]+) dB', output)
    before, after = float(found[1]), float(found[2])
    assert before == pytest.approx(float(rows['student, FACD'][2]), abs=0.01) and abs(before - after) < 1
    int8, whole = (checkout / 'demo_output' / f'student{suffix}.onnx' for suffix in ('_int8', ''))
    assert int8.stat().st_size < 0.7 * whole.stat().st_size


@pytest.fixture(scope='module')
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(demo, 'DATA', tmp_path_factory.mktemp('demo') / 'data')
        demo.make_data()
        return demo.DATA


OWN_FILES = {
    'FACD-B': {
        'type': 'FACDLoss',
        'lambda': {'start': 32, 'end': 0, 'over': 10},
        'negatives': 'per_anchor',
        'layer_weights': [0.5, 0.3, 0.2],
    },
    'MTKD': {'sr': {'type': 'L1Loss'}, 'wavelet': {'type': 'WaveletLoss', 'target': 'teacher'}},
}


@pytest.mark.parametrize(
    'method',
    [
        pytest.param(method, marks=[pytest.mark.slow] * (method in ('CSDLoss', 'DCKDLoss')))  # by a VGG
        for method in (*sorted(LOSSES), *OWN_FILES)
    ],
)
def test_every_method_trains_on_the_demos_photographs_by_the_demos_teacher(method, demo_data, tmp_path):
    """Ten steps on one batch lower what is minimized, and the student's own distance to ground truth."""
    opt = load_yaml((REPOSITORY / 'demo' / 'FACD.yml').read_text(), 'FACD.yml')
    if method in LOSSES:
        opt = method_opt(opt, method, tmp_path)
    else:
        opt['train']['distill_opt'] = OWN_FILES[method]
        opt['network_r'] = {'type': 'DeepRegressor', 'num_layer': 1}
    if method == 'MTKD':
        del opt['taps'], opt['network_r']
    opt['teacher']['weights'] = str(demo.TEACHER_WEIGHTS)
    train_set = {'dataroot_gt': 'train_HR_sub.lmdb', 'dataroot_lq': 'train_LR_bicubic_X2_sub.lmdb'}
    for name, folders in (('train', train_set), ('val', {'dataroot_gt': 'val_GT', 'dataroot_lq': 'val_LR'})):
        opt['datasets'][name] |= {key: str(demo_data / folder) for key, folder in folders.items()}
    opt['datasets']['train'] |= {'num_worker_per_gpu': 0, 'batch_size_per_gpu': 4}
    opt = train_options(opt, tmp_path)
    set_random_seed(0)
    model = build_model(opt)
    batch = next(iter(build_loaders(opt).train))
    model.feed_data(batch)

    def state() -> DistillState:
        with torch.no_grad():
            return model.distill_state(Batch(model.lq, model.gt, model.seeds), 5)

    def distance() -> float:
        with torch.no_grad():
            return (model.net_g(model.lq) - model.gt).abs().mean().item()

    before, far = summed(model.criterion(state())).item(), distance()
    for iteration in range(1, 11):
        model.optimize_parameters(iteration)
    assert summed(model.criterion(state())).item() < before
    assert distance() < far


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
