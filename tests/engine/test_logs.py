import logging
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from facd_basicsr.engine.logs import DeferredLog, tensorboard
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


def test_tensorboard_shows_what_came_after_the_checkpoint_once(tmp_path):
    opt = {'name': 'run', 'root_path': str(tmp_path), 'logger': {'use_tb_logger': True}}
    for start, value in ((0, 1.0), (2, 2.0)):
        writer = tensorboard(opt, start)
        for step in range(start + 1, 5):
            writer.add_scalar('l', value, step)
        writer.close()
    assert scalars(tmp_path / 'tb_logger' / 'run') == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]


def test_tensorboard_is_left_alone_if_not_asked_for(tmp_path):
    assert tensorboard({'name': 'run', 'root_path': str(tmp_path), 'logger': {'use_tb_logger': False}}, 0) is None
    assert tensorboard({'name': 'debug_run', 'root_path': str(tmp_path), 'logger': {'use_tb_logger': True}}, 0) is None
    assert list(tmp_path.iterdir()) == []
