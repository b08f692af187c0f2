import json
import math
import re
from pathlib import Path

import pytest
from conftest import changed, tiny_train_opt
from runs import run, write_options

from facd_basicsr.deploy.student import read_student
from facd_basicsr.errors import UserError
from facd_basicsr.options.option_check import with_defaults
from facd_basicsr.runs.run_folder import psnr_of, read_run_folder, run_of


def at(second: float) -> str:
    return f'2026-01-02T03:04:{second:06.3f}+01:00'


def step(second: float, iteration: int, **values: float | None) -> dict:
    times = {'time': 0.1, 'data_time': 0.01}
    return {'iter': iteration, 'timestamp': at(second), 'epoch': 0, 'lr': 1e-3, **times, **values}


def validated(second: float, iteration: int, value: float | None, name: str = 'Set5', metric: str = 'psnr_y') -> dict:
    return {'iter': iteration, 'timestamp': at(second), 'set': name, 'metric': metric, 'value': value}


def event(second: float, iteration: int, kind: str, message: str = '') -> dict:
    return {'iter': iteration, 'timestamp': at(second), 'event': kind, 'message': message}


def write_metrics(folder: Path, *lines: dict) -> Path:
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return folder


@pytest.fixture
def folder(train_opt, tmp_path) -> Path:
    """A run's folder as its end leaves it, with two checkpoints."""
    (tmp_path / 'models').mkdir()
    for name in ('net_g_2.pth', 'net_g_10.pth', 'net_g_latest.pth', 'net_r_12.pth'):
        (tmp_path / 'models' / name).touch()
    write_options(tmp_path, train_opt, {'start': at(0), 'iter': 0, 'machine': 'a GPU'})
    return write_metrics(tmp_path, step(1, 4, l_sr=2.0), step(3, 12, l_sr=1.0), event(4, 12, 'finished'))


def test_options_are_those_of_the_run_and_say_what_it_ran_on(folder, train_opt):
    found = read_run_folder(folder)
    assert found.opt == with_defaults(train_opt, is_train=True)
    assert found.sessions[0].facts['machine'] == 'a GPU'


def test_every_term_and_learning_rate_is_a_curve_and_null_is_nan(folder):
    write_metrics(folder, step(1, 1, l_sr=2.5, r_1=None), {**step(2, 2, l_sr=3.0), 'lr_1': 1.0})
    curves = read_run_folder(folder).metrics.curves
    assert math.isnan(curves.pop('r_1')[1])
    assert curves == {'lr': {1: 1e-3, 2: 1e-3}, 'l_sr': {1: 2.5, 2: 3.0}, 'lr_1': {2: 1.0}}


def test_validation_is_by_set_and_metric(folder):
    write_metrics(folder, validated(1, 4, 30.0), validated(1, 4, 0.5, metric='ssim'), validated(2, 8, 31.0, 'a: b'))
    assert read_run_folder(folder).metrics.validation == {
        'Set5': {'psnr_y': {4: 30.0}, 'ssim': {4: 0.5}},
        'a: b': {'psnr_y': {8: 31.0}},
    }


def test_a_line_that_was_cut_is_left_out(folder):
    with (folder / 'metrics.jsonl').open('a') as file:
        file.write('{"iter": 16, "timestamp": "2026')
    found = read_run_folder(folder)
    assert (found.iteration, found.metrics.curves['l_sr']) == (12, {4: 2.0, 12: 1.0})


def test_sessions_have_their_times_iterations_and_ends(folder, train_opt):
    write_options(folder, train_opt, {'start': at(0), 'iter': 0}, {'start': at(20), 'iter': 4})
    stop = event(9, 7, 'stopped', 'SIGTERM: stopped after iteration 7')
    write_metrics(folder, step(1, 4), stop, step(25, 8), event(26, 9, 'warning', 'look'))
    found = read_run_folder(folder)
    assert [(session.first, session.last, session.end) for session in found.sessions] == [
        (0, 7, 'SIGTERM: stopped after iteration 7'),
        (4, 9, ''),
    ]
    assert found.duration.total_seconds() == 9 + 6
    assert [(warning.event, warning.message) for warning in found.metrics.warnings] == [('warning', 'look')]


def test_the_time_of_an_iteration_is_the_median_within_sessions(folder, train_opt):
    write_options(folder, train_opt, {'start': at(0), 'iter': 0}, {'start': at(40), 'iter': 30})
    write_metrics(folder, *(step(*line) for line in ((1, 10), (3, 20), (6, 30), (41, 31), (45, 41))))
    assert read_run_folder(folder).metrics.seconds_per_iter == pytest.approx(0.3)
    write_metrics(folder, step(1, 10))
    assert read_run_folder(folder).metrics.seconds_per_iter is None


def test_without_metrics_nothing_is_done_yet(folder):
    (folder / 'metrics.jsonl').unlink()
    found = read_run_folder(folder)
    assert (found.iteration, found.metrics.curves, found.sessions[0].end) == (0, {}, '')


def test_the_run_of_a_checkpoint_is_the_folder_around_its_models(folder):
    assert run_of(folder / 'models' / 'net_g_2.pth', 'IN').path == folder.resolve()
    assert run_of(folder / 'net_g_2.pth', 'IN') is None
    assert run_of(folder / 'models' / 'models' / 'net_g_2.pth', 'IN') is None


def test_a_finished_run_has_its_last_networks(folder):
    found = read_run_folder(folder)
    assert (found.checkpoint.name, found.checkpoint_iteration) == ('net_g_latest.pth', 12)


def test_a_run_that_goes_on_has_its_newest_numbered_networks(folder, train_opt):
    write_options(folder, train_opt, {'start': at(0), 'iter': 0}, {'start': at(20), 'iter': 12})
    found = read_run_folder(folder)
    assert (found.checkpoint.name, found.checkpoint_iteration) == ('net_g_10.pth', 10)
    for name in ('net_g_v2.pth', 'net_g_4_swa2.pth', 'net_g_old_999.pth'):  # a user's own
        (folder / 'models' / name).touch()
    assert read_run_folder(folder).checkpoint_iteration == 10
    for path in folder.glob('models/net_g_*.pth'):
        path.unlink()
    assert read_run_folder(folder).checkpoint is None


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (
            None,
            r'RUN_DIR: .* has no options.yml; accepted: .*/NAME, of a version after 0.2.0 \(train.py',
        ),
        ('[1]', r'options\.yml: holds list; accepted: option keys'),
        ('a: [', r'options\.yml, line 1: .*; accepted: plain'),
        ('name: x\nscale: 2\n', r'options\.yml: model_type: missing; accepted'),
    ],
)
def test_what_is_no_run_is_refused_in_a_line(folder, text, message):
    path = folder / 'options.yml'
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_run_folder(folder)
    assert '\n' not in str(caught.value)
    with pytest.raises(UserError, match=r'RUN_DIR: no such folder: .*gone; accepted: .*experiments/NAME'):
        read_run_folder(folder / 'gone')


@pytest.mark.parametrize('entries', ['run: ~', 'run: []', 'run: [{iter: 1}]', 'run: [{start: yesterday, iter: 1}]'])
def test_options_that_do_not_say_when_the_run_started_are_refused(folder, entries):
    path = folder / 'options.yml'
    path.write_text(re.sub(r'^run:\n(.*\n)*', f'{entries}\n', path.read_text(), flags=re.MULTILINE))
    with pytest.raises(UserError, match=r'options.yml: run: does not say when the run started; accepted: as train.py'):
        read_run_folder(folder)


ENDED = [
    step(1, 1000),
    validated(2, 1000, 30),
    event(2, 1000, 'best'),
    validated(3, 1500, 29),
    validated(3, 1500, 27, 'B 100'),
    event(3, 1500, 'finished'),
]
CONTINUED = [*ENDED, step(21, 1600), validated(22, 2000, 33)]


@pytest.mark.parametrize(
    ('lines', 'name', 'expected'),
    [
        (ENDED, 'latest', {'Set5': 29, 'B 100': 27}),
        (ENDED, 'best', {'Set5': 30}),
        (ENDED, '1000', {'Set5': 30}),
        (ENDED, '1500', {'Set5': 29, 'B 100': 27}),
        (ENDED, '500', {}),
        (ENDED, 'first_try', {}),
        (ENDED[:4], 'latest', {}),  # it has not ended: the file is of an earlier run
        (CONTINUED, 'latest', {'Set5': 29, 'B 100': 27}),
        (CONTINUED, 'best', {'Set5': 30}),
        ([*CONTINUED, event(23, 2000, 'best')], 'best', {'Set5': 33}),
        ([validated(1, 8, None), validated(1, 8, 27, 'B 100'), event(2, 8, 'finished')], 'latest', {'B 100': 27}),
        ([event(2, 8, 'best')], 'best', {}),  # its validation is to be done again
        ([], 'latest', {}),
    ],
)
def test_a_checkpoint_has_the_psnr_of_the_validation_at_its_iteration(folder, lines, name, expected):
    write_metrics(folder, *lines)
    assert psnr_of(folder / 'models' / f'net_g_{name}.pth') == expected


@pytest.mark.parametrize(('key', 'value'), [('val.metrics.psnr_y.test_y_channel', False), ('val', None)])
def test_psnr_of_rgb_and_checkpoints_elsewhere_are_not_taken(folder, train_opt, key, value):
    write_metrics(folder, *ENDED)
    assert psnr_of(folder / 'net_g_latest.pth') == {}
    write_options(folder, changed(train_opt, key, value), {'start': at(0), 'iter': 0})
    assert psnr_of(folder / 'models' / 'net_g_latest.pth') == {}


@pytest.fixture(scope='module')
def trained(data: Path, teacher_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that keeps its best, validated at 2, 4 and 5, with its logs and curves deleted."""
    root = tmp_path_factory.mktemp('run')
    opt = tiny_train_opt(data, teacher_weights)
    opt['logger'] |= {'keep_best': True, 'print_freq': 3, 'use_tb_logger': False}
    opt['val']['val_freq'] = 2
    run(opt, root, 5, '--force_yml', 'network_g:res_scale=0.1', 'val:metrics:psnr_y:crop_border=3')
    folder = root / 'experiments' / 'tiny'
    for path in folder.glob('*.log'):
        path.unlink()
    return folder


def test_each_checkpoint_of_a_run_has_its_validation(trained):
    curve = read_run_folder(trained).metrics.validation['val']['psnr_y']
    assert list(curve) == [2, 4, 5] and len({round(value, 3) for value in curve.values()}) == 3
    for name, value in {'2': curve[2], '4': curve[4], 'latest': curve[5], 'best': max(curve.values())}.items():
        assert psnr_of(trained / 'models' / f'net_g_{name}.pth') == {'val': value}


def test_the_student_of_a_run_is_the_network_that_the_command_line_made(trained):
    description = read_student(trained / 'models' / 'net_g_latest.pth').description
    assert description.arguments['res_scale'] == 0.1
    assert description.option_file == 'opt.yml' and len(description.option_sha256) == 64
