import math

import pytest

from facd_basicsr.runs.train_log import read_log, read_logs

OPTIONS = """
  name: tiny
  train:[
    total_iter: 20
  ]
  val:[
    val_freq: 4
    metrics:[
      psnr_y:[
        type: calculate_psnr
      ]
    ]
  ]
"""


def record(second: int, message: str, level: str = 'INFO') -> str:
    return f'2026-01-02 03:04:{second:02d},500 {level}: {message}\n'


def begun(second: int, options: str = OPTIONS) -> str:
    versions = record(second, 'Python 3.12.1, torch 2.9.0, torchvision 0.24.0, basicsr 1.4.2')
    return versions + record(second, 'Machine: a GPU, 4 CPU threads.') + record(second, options)


def line(second: int, iteration: int, terms: str = 'l_sr: 1.0000e+00 ', rates: str = '1.000e-03,') -> str:
    times = '[eta: 1 day, 2:00:00, time (data): 0.300 (0.010)] '
    return record(second, f'[tiny..][epoch:  0, iter:{iteration:8,d}, lr:({rates})] {times}{terms}')


def validated(second: int, value: float, name: str = 'Set5') -> str:
    return record(second, f'Validation {name}\n\t # psnr_y: {value:.4f}\tBest: 31.0000 @ 4 iter\n')


def test_every_term_of_a_line_is_read():
    log = read_log(begun(0) + line(1, 1_000, 'l_sr: 2.5000e+00 l_facd: 5.0000e-01 alpha: 7.5000e-01 r_1: nan '))
    assert {name: curve[1000] for name, curve in log.curves.items() if name != 'r_1'} == {
        'lr': 1e-3,
        'l_sr': 2.5,
        'l_facd': 0.5,
        'alpha': 0.75,
    }
    assert math.isnan(log.curves['r_1'][1000])


def test_groups_of_parameters_have_their_learning_rates():
    log = read_log(begun(0) + line(1, 1, rates='1.000e-03,2.000e-04,'))
    assert (log.curves['lr_1'], log.curves['lr_2']) == ({1: 1e-3}, {1: 2e-4})


def test_lines_before_the_first_versions_and_of_others_are_passed_over():
    log = read_log('no log at all\n' + line(0, 3) + begun(1) + record(2, 'Model [FACDModel] is created.'))
    assert (log.curves, len(log.sessions), log.sessions[0].machine) == ({}, 1, 'a GPU, 4 CPU threads')


def test_a_last_line_that_was_cut_short_is_not_read():
    whole = begun(0) + line(1, 1) + line(2, 2, 'l_sr: 1.2345e-02 ')
    cut = whole[: whole.rindex('e-02')]
    assert read_log(cut).curves['l_sr'] == {1: 1.0}


@pytest.mark.parametrize('cut', ['l_sr: 5.6277e+', 'l_sr: 5.6277e+0', 'l_sr: 5.62', 'l_sr:', 'l_sr'])
def test_an_earlier_log_that_was_cut_short_ends_at_its_last_line(cut, tmp_path):
    killed, resumed = tmp_path / 'train_1.log', tmp_path / 'train_2.log'
    killed.write_text(begun(0) + line(1, 1) + line(2, 2, cut).rstrip('\n'))
    resumed.write_text(begun(10) + record(11, 'Resuming from x: epoch 0, iter 1.') + line(12, 3))
    log = read_logs([killed, resumed])
    assert (log.curves['l_sr'], len(log.sessions)) == ({1: 1.0, 3: 1.0}, 2)


def test_a_figure_that_a_full_disk_cut_and_the_next_record_goes_on_with_is_not_read():
    cut = line(2, 2, 'l_facd: 2.0000e+00 l_sr: 5.6277e+').rstrip('\n') + record(3, 'disk: full', 'ERROR')
    validation = record(4, 'Validation Set5\n\t # a: 30.1234\tBest: 3').rstrip('\n') + record(5, 'x')
    log = read_log(begun(0) + line(1, 1) + cut + validation)
    assert (log.curves['l_sr'], log.curves['l_facd']) == ({1: 1.0}, {2: 2.0})
    assert (log.validation['Set5'], log.best) == ({}, {'Set5': {}})


@pytest.mark.parametrize(
    ('lines', 'iterations'),
    [
        (line(1, 4) + validated(2, 30) + line(3, 8) + validated(4, 31), [4, 8]),  # as often as it is logged
        (line(1, 3) + validated(2, 30) + line(3, 6) + validated(4, 31), [4, 8]),  # less often
        (validated(1, 30) + validated(2, 31) + line(3, 10), [4, 8]),  # more often
        (
            line(1, 4) + validated(2, 30) + record(3, 'End of training. Time consumed: 0:00:09') + validated(4, 31),
            [4, 20],
        ),
    ],
)
def test_validations_are_given_their_iterations(lines, iterations):
    assert list(read_log(begun(0) + lines).validation['Set5']['psnr_y']) == iterations


def test_sets_are_validated_at_the_same_iteration():
    log = read_log(begun(0) + line(1, 4) + validated(2, 30) + validated(3, 28, 'a set: with spaces'))
    assert log.validation == {'Set5': {'psnr_y': {4: 30.0}}, 'a set: with spaces': {'psnr_y': {4: 28.0}}}


def test_what_came_after_the_state_that_was_resumed_is_left_out():
    first = (
        begun(0)
        + line(1, 4, 'l_sr: 4.0000e+00 ')
        + validated(2, 30)
        + line(3, 8, 'l_sr: 9.0000e+00 ')
        + validated(4, 39)
    )
    resumed = begun(10) + record(11, 'Resuming from x/4.state (saved 2026-01-02 03:04:02): epoch 0, iter 4.')
    log = read_log(first + resumed + validated(12, 30) + line(13, 5, 'l_sr: 3.0000e+00 '))
    assert log.curves['l_sr'] == {4: 4.0, 5: 3.0}
    assert log.validation['Set5']['psnr_y'] == {4: 30.0}
    assert [(session.first, session.last) for session in log.sessions] == [(0, 8), (4, 5)]
    assert log.duration.total_seconds() == 4 + 3


def test_a_start_without_a_state_forgets_what_was_before():
    log = read_log(begun(0) + line(1, 4) + begun(10) + line(11, 2))
    assert log.curves['l_sr'] == {2: 1.0}


@pytest.mark.parametrize(
    ('last', 'end', 'iteration'),
    [
        (record(5, 'End of training. Time consumed: 0:00:09') + record(6, 'Save the latest model.'), 'finished', 20),
        (
            record(
                5, 'SIGTERM: stopped after iteration 7, which is saved; the same command with --auto_resume continues.'
            ),
            'SIGTERM: stopped after iteration 7',
            7,
        ),
        (record(5, 'disk: full; fix it', 'ERROR'), 'disk: full; fix it', 4),
        (
            record(5, 'The run has crashed.\nTraceback:\n  x\nKeyError: 1', 'ERROR'),
            'The run has crashed. KeyError: 1',
            4,
        ),
        (record(5, 'a warning', 'WARNING'), '', 4),
    ],
)
def test_how_a_session_ended_is_said(last, end, iteration):
    log = read_log(begun(0) + line(1, 4) + last)
    assert (log.sessions[-1].end, log.iteration) == (end, iteration)


def test_warnings_and_errors_are_kept():
    log = read_log(begun(0) + record(1, 'one', 'WARNING') + line(2, 1) + record(3, 'two\nlines', 'ERROR'))
    assert [(level, message) for _, level, message in log.complaints] == [('WARNING', 'one'), ('ERROR', 'two\nlines')]


def test_the_time_of_an_iteration_is_the_median_within_sessions():
    resumed = begun(40) + record(40, 'Resuming from x: epoch 0, iter 30.')
    log = read_log(begun(0) + line(1, 10) + line(3, 20) + line(6, 30) + resumed + line(41, 31) + line(45, 41))
    assert log.seconds_per_iter == pytest.approx(0.3)
    assert read_log(begun(0) + line(1, 10)).seconds_per_iter is None


def test_a_log_of_nothing_is_no_error():
    assert (read_log('').iteration, read_log('').sessions) == (0, [])
