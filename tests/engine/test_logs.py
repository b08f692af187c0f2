import json
import logging
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from facd_basicsr.engine.checkpoint import Position
from facd_basicsr.engine.logs import METRICS_FILE, DeferredLog, RunLog, read_metrics
from facd_basicsr.errors import Stopped, UserError


def test_the_file_gets_what_was_logged_before_it_was_opened_in_order_and_once(tmp_path):
    with DeferredLog(rank=0, console=False) as log:
        log.info('before')
        log.write_to(tmp_path / 'run.log')
        logging.getLogger('basicsr').info('after')
    log.logger.info('outside')
    lines = (tmp_path / 'run.log').read_text().splitlines()
    assert [line.split('INFO: ')[1] for line in lines] == ['before', 'after']


@pytest.mark.parametrize('opened', [False, True])
def test_a_failure_leaves_no_handler_behind(tmp_path, opened):
    DeferredLog(rank=0)  # BasicSR's own console handler is there from the first use on
    handlers = list(logging.getLogger('basicsr').handlers)
    with pytest.raises(RuntimeError), DeferredLog(rank=0, console=False) as log:
        if opened:
            log.write_to(tmp_path / 'run.log')
        raise RuntimeError
    assert logging.getLogger('basicsr').handlers == handlers


def test_a_silent_log_leaves_the_handlers_that_it_found_at_their_levels():
    handlers = DeferredLog(rank=0).logger.handlers
    levels = [handler.level for handler in handlers]
    with DeferredLog(rank=0, console=False):
        assert {handler.level for handler in handlers[: len(levels)]} == {logging.CRITICAL}
    assert [handler.level for handler in handlers] == levels


def test_other_ranks_write_no_file(tmp_path):
    with DeferredLog(rank=1, console=False) as log:
        log.write_to(tmp_path / 'run.log')
    assert list(tmp_path.iterdir()) == []


def ended_by(error: Exception, folder: Path) -> str:
    """The log file of a run that an error has ended."""
    with pytest.raises(type(error)), DeferredLog(rank=0, console=False) as log:
        log.write_to(folder / 'run.log')
        raise error
    return (folder / 'run.log').read_text()


def test_the_file_ends_with_what_ended_the_run(tmp_path):
    assert ended_by(UserError('no room'), tmp_path).endswith('ERROR: no room\n')
    assert ended_by(Stopped('SIGTERM'), tmp_path).endswith('INFO: SIGTERM\n')
    crash = ended_by(ZeroDivisionError('a bug'), tmp_path)
    assert 'ERROR: The run has crashed.\nTraceback' in crash and crash.endswith('ZeroDivisionError: a bug\n')
    assert 'no room' in crash  # the file of the same second was not started over


def test_a_full_disk_is_an_error_and_not_a_page_for_every_line(tmp_path):
    with pytest.raises(OSError, match='No space left'), DeferredLog(rank=0, console=False) as log:
        log.write_to(Path('/dev/full'))
        log.info('a line')


def scalars(folder: Path) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars('l')]


def options(folder: Path) -> dict:
    """What the log reads of a run's options."""
    return {
        'name': 'run',
        'root_path': str(folder),
        'path': dict.fromkeys(('experiments_root', 'log'), str(folder)),
        'logger': {'use_tb_logger': True, 'wandb': None},
        'train': {'total_iter': 4},
        'stage_begin': 0,
        'val': {'val_freq': 2},
    }


def started(folder: Path, iteration: int = 0, **changes: object) -> RunLog:
    """The log of a run in ``folder``, started after an iteration."""
    log = RunLog(rank=0, console=False)
    log.start({**options(folder), **changes}, Position(iteration))
    return log


def lines(folder: Path) -> list[dict]:
    """The lines of ``metrics.jsonl`` without their times."""
    found = list(read_metrics(folder / METRICS_FILE))
    for line in found:
        del line['timestamp']
    return found


def test_tensorboard_shows_what_came_after_the_checkpoint_once(tmp_path):
    for start, value in ((0, 1.0), (2, 2.0)):
        writer = started(tmp_path, start).tb_logger
        for step in range(start + 1, 5):
            writer.add_scalar('l', value, step)
        writer.close()
    assert scalars(tmp_path / 'tb_logger' / 'run') == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]


def test_tensorboard_is_left_alone_if_not_asked_for(tmp_path):
    assert started(tmp_path, logger={'use_tb_logger': False, 'wandb': None}).tb_logger is None
    assert started(tmp_path, name='debug_run').tb_logger is None
    assert not (tmp_path / 'tb_logger').exists()


def test_metrics_have_a_line_for_each_iteration_validation_and_event(tmp_path):
    with RunLog(rank=0, console=False) as log:
        log.start(options(tmp_path), Position())
        log.warning('look')
        log.iteration(0, [1e-3], {'time': 0.5, 'data_time': 0.25, 'l_pix': 2.0, 'r_1': float('nan')})
        log.iteration(1, [1e-3, 2e-3], {'time': 0.5})
        log.validation('Set5', {'psnr_y': float('inf'), 'ssim_y': 0.5})
        log.event('finished')
    assert lines(tmp_path) == [
        {'iter': 0, 'event': 'warning', 'message': 'look'},
        {'iter': 0, 'epoch': 0, 'lr': 1e-3, 'time': 0.5, 'data_time': 0.25, 'l_pix': 2.0, 'r_1': None},
        {'iter': 0, 'epoch': 1, 'lr_1': 1e-3, 'lr_2': 2e-3, 'time': 0.5},
        {'iter': 0, 'set': 'Set5', 'metric': 'psnr_y', 'value': None},
        {'iter': 0, 'set': 'Set5', 'metric': 'ssim_y', 'value': 0.5},
        {'iter': 0, 'event': 'finished', 'message': ''},
    ]
    assert 'NaN' not in (tmp_path / METRICS_FILE).read_text()


def test_earlier_warnings_are_in_the_metrics_too_and_no_handler_is_left(tmp_path):
    handlers = list(logging.getLogger('basicsr').handlers)
    with RunLog(rank=0, console=False) as log:
        log.info('not this')
        log.warning('early')
        log.start(options(tmp_path), Position(3))
    assert lines(tmp_path) == [{'iter': 3, 'event': 'warning', 'message': 'early'}]
    assert logging.getLogger('basicsr').handlers == handlers


@pytest.mark.parametrize(
    ('iteration', 'changes', 'kept'),
    [
        (2, {}, ['e1', 'e2', 'x3']),  # validated again
        (3, {}, ['e1', 'e2', 'v2', 'e3', 'v3', 'x3']),
        (2, {'val': None}, ['e1', 'e2', 'v2', 'x3']),
        (3, {'train': {'total_iter': 3}}, ['e1', 'e2', 'v2', 'e3', 'x3']),  # the end validates
        (3, {'train': {'total_iter': 1}, 'stage_begin': 2}, ['e1', 'e2', 'v2', 'e3', 'x3']),  # and that of a stage
        (0, {}, ['x3']),
    ],
)
def test_what_is_done_again_after_a_resume_is_removed_and_events_stay(tmp_path, iteration, changes, kept):
    written = []
    for name in ('e1', 'e2', 'v2', 'e3', 'v3', 'x3', 'e4'):
        kind = {'e': {'epoch': 0}, 'v': {'set': 'a'}, 'x': {'event': 'warning'}}[name[0]]
        written.append(json.dumps({'iter': int(name[1]), 'timestamp': name, **kind}) + '\n')
    (tmp_path / METRICS_FILE).write_text(''.join(written) + '{"iter": 5, "timest')
    started(tmp_path, iteration, **changes)
    assert [line['timestamp'] for line in read_metrics(tmp_path / METRICS_FILE)] == kept


@pytest.mark.parametrize(
    ('error', 'event', 'message'),
    [
        (UserError('disk: full'), 'error', 'disk: full'),
        (Stopped('SIGTERM'), 'stopped', 'SIGTERM'),
        (KeyError('x'), 'error', "'x'"),
    ],
)
def test_the_metrics_end_with_what_ended_the_run(tmp_path, error, event, message):
    with pytest.raises(type(error)), started(tmp_path):
        raise error
    assert lines(tmp_path) == [{'iter': 0, 'event': event, 'message': message}]


def test_other_ranks_write_no_metrics(tmp_path):
    with RunLog(rank=1, console=False) as log:
        log.start({'path': {'log': str(tmp_path)}, 'name': 'run'}, Position())
        log.event('finished')
    assert list(tmp_path.iterdir()) == []
