import logging

import pytest

from facd_basicsr.engine.logs import DeferredLog


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
