import math
from pathlib import Path

import pytest
from conftest import changed, tiny_train_opt, write_yml
from runs import run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from facd_basicsr.deploy.student import read_student
from facd_basicsr.runs.run_folder import psnr_of


@pytest.fixture(scope='module')
def trained(data: Path, teacher_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """The models of a run that keeps its best, and the PSNR-Y of its validations at 2, 4 and 5."""
    root = tmp_path_factory.mktemp('run')
    opt = tiny_train_opt(data, teacher_weights)
    opt['logger'] |= {'keep_best': True, 'print_freq': 3}
    opt['val']['val_freq'] = 2
    run(opt, root, 5, '--force_yml', 'network_g:res_scale=0.1', 'val:metrics:psnr_y:crop_border=3')
    events = EventAccumulator(str(root / 'tb_logger' / 'tiny'))
    events.Reload()
    return root / 'experiments' / 'tiny' / 'models', [e.value for e in events.Scalars('metrics/val/psnr_y')]


def test_the_figures_of_a_training_are_those_of_its_validations(trained):
    models, (at_2, at_4, at_5) = trained
    best = max(at_2, at_4, at_5)
    assert len({round(value, 3) for value in (at_2, at_4, at_5)}) == 3
    assert psnr_of(models / 'net_g_latest.pth') == {'val': pytest.approx(at_5, abs=1e-4)}
    assert psnr_of(models / 'net_g_best.pth') == {'val': pytest.approx(best, abs=1e-4)}
    for iteration, value in {2: at_2, 4: at_4, 5: at_5}.items():
        known = {'val': pytest.approx(value, abs=1e-4)} if value == best else {}
        assert psnr_of(models / f'net_g_{iteration}.pth') == known


def test_the_student_of_a_run_is_the_network_that_the_command_line_made(trained):
    models, _ = trained
    assert read_student(models / 'net_g_latest.pth').description.arguments['res_scale'] == 0.1


def line(text: str) -> str:
    return f'2026-11-25 18:06:09,550 INFO: {text}\n'


def validated(psnr: float, best: float, iteration: int, name: str = 'Set5') -> str:
    return line(
        f'Validation {name}\n\t # psnr_rgb: 1.0000\tBest: 9.0000 @ 9 iter\n'
        f'\t # psnr_y: {psnr:.4f}\tBest: {best:.4f} @ {iteration} iter\n'
    )


SAVED, LATEST = line('Saving models and training states.'), line('Save the latest model.')
BEST = line('Saving the best models: psnr_y of Set5 is 1.')
ITERATION = line('[run..][epoch:  0, iter:   1,000, lr:(1e-3,)] [eta: 0:00:00] l_pix: 1.0000e+00')
ENDED = [
    ITERATION,
    SAVED,
    validated(30, 30, 1000),
    BEST,
    LATEST,
    validated(29, 30, 1000),
    validated(27, 27, 1500, 'B 100'),
]


@pytest.mark.parametrize(
    ('logs', 'name', 'figures'),
    [
        ([ENDED], 'latest', {'Set5': 29, 'B 100': 27}),
        ([ENDED], 'best', {'Set5': 30}),
        ([ENDED], '1000', {'Set5': 30}),
        ([ENDED], '1500', {'B 100': 27}),
        ([ENDED], '500', {}),
        ([ENDED[:4]], 'latest', {}),  # it has not ended: the file is of an earlier run
        ([[ITERATION, LATEST]], 'latest', {}),  # stopped before it was validated
        ([ENDED[:-1], [LATEST, validated(31, 31, 1500)]], 'latest', {'Set5': 31}),  # and that was made up for
        ([ENDED, [ITERATION, validated(33, 33, 2000), ITERATION]], 'latest', {'Set5': 29, 'B 100': 27}),  # extended
        ([ENDED, [ITERATION, validated(33, 33, 2000), BEST]], 'best', {'Set5': 33}),
        ([ENDED, [ITERATION, validated(33, 33, 2000)]], '1000', {}),  # no longer the best that is logged
        ([[ITERATION, validated(30, 30, 8), validated(31, 31, 9), BEST]], 'best', {'Set5': 31}),  # both since ITERATION
        ([[BEST, ITERATION, validated(30, 30, 8)]], 'best', {}),
        ([], 'latest', {}),
        ([ENDED], 'first_try', {}),
        ([[LATEST, validated(math.nan, 30, 8), validated(27, 27, 8, 'B 100')]], 'latest', {'B 100': 27}),
    ],
)
def test_only_a_figure_that_is_certain_is_given(logs, name, figures, train_opt, tmp_path):
    (tmp_path / 'models').mkdir()
    write_yml(train_opt, tmp_path / 'opt.yml')
    for number, lines in enumerate(logs):
        (tmp_path / f'train_tiny_{number}.log').write_text('banner\n' + ''.join(lines))
    assert psnr_of(tmp_path / 'models' / f'net_g_{name}.pth') == figures


def test_psnr_of_rgb_and_checkpoints_elsewhere_have_no_figure(train_opt, tmp_path):
    (tmp_path / 'models').mkdir()
    (tmp_path / 'train_tiny_0.log').write_text(''.join(ENDED))
    latest = tmp_path / 'models' / 'net_g_latest.pth'
    assert psnr_of(latest) == {}  # without the option file nothing says what the metric is
    write_yml(changed(train_opt, 'val.metrics.psnr_y.test_y_channel', False), tmp_path / 'opt.yml')
    assert psnr_of(latest) == {}
    write_yml(changed(train_opt, 'val', ...), tmp_path / 'opt.yml')
    assert psnr_of(latest) == {}
    write_yml(train_opt, tmp_path / 'opt.yml')
    assert psnr_of(latest) == {'Set5': 29, 'B 100': 27}
    write_yml({}, tmp_path / 'other.yml')
    assert psnr_of(latest) == {}  # nothing says which of both is the run's
    (tmp_path / 'other.yml').unlink()
    assert psnr_of(tmp_path / 'net_g_latest.pth') == {}
