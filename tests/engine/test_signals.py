import os
import signal
import threading

import pytest
from runs import TOTAL, Child, assert_same, assert_same_curves, log_text, result, run

from facd_basicsr.engine.signals import STOPPING, StopSignals
from facd_basicsr.errors import SAVED


def all_but_one_slow(signum: int) -> list:
    return [signum, *(pytest.param(own, marks=pytest.mark.slow) for own in STOPPING if own != signum)]


@pytest.mark.parametrize('signum', all_but_one_slow(signal.SIGUSR1))
def test_a_signal_ends_a_training_with_everything_saved_and_it_goes_on_as_if_nothing_had_been(
    train_opt, tmp_path, signum
):
    train_opt['logger']['save_checkpoint_freq'] = 100
    train_opt['datasets']['train']['num_worker_per_gpu'] = 1
    run(train_opt, tmp_path / 'whole')
    child = Child(train_opt, tmp_path / 'stopped', step_by_step=True)
    child.wait_for(3)
    child.kill(signum)
    child.proceed()
    child.proceed_to_the_end()
    assert child.end() == SAVED == 75
    iterations = [int(path.stem) for path in (tmp_path / 'stopped').glob('experiments/tiny/training_states/*.state')]
    assert iterations in ([3], [4])  # 4: it arrived when the fourth had begun
    line = f'{signal.Signals(signum).name}: stopped after iteration {iterations[0]}, which is saved; the same command'
    assert line in (tmp_path / 'stopped/output.txt').read_text()
    assert 'Traceback' not in (tmp_path / 'stopped/output.txt').read_text() + log_text(tmp_path / 'stopped')
    assert f'INFO: {line}' in log_text(tmp_path / 'stopped')
    run(train_opt, tmp_path / 'stopped', TOTAL, '--auto_resume')
    assert f'iter {iterations[0]}.' in log_text(tmp_path / 'stopped')
    assert_same(result(tmp_path / 'stopped'), result(tmp_path / 'whole'))
    assert_same_curves(tmp_path / 'stopped', tmp_path / 'whole')


@pytest.mark.parametrize('signum', all_but_one_slow(signal.SIGINT))
def test_a_signal_to_the_whole_process_group_leaves_the_workers_alone(train_opt, tmp_path, signum):
    """Ctrl-C in a terminal, and what SLURM does."""
    train_opt['datasets']['train'] |= {'num_worker_per_gpu': 2, 'dataset_enlarge_ratio': 20}
    child = Child(train_opt, tmp_path, 40, prepare=os.setpgrp, step_by_step=True)
    child.wait_for(3)
    os.killpg(child.process.pid, signum)
    child.proceed()
    child.proceed_to_the_end()
    assert child.end() == SAVED
    assert 'Traceback' not in (tmp_path / 'output.txt').read_text()


@pytest.mark.parametrize('signum', all_but_one_slow(signal.SIGTERM))
def test_a_second_signal_ends_the_process_at_once(train_opt, tmp_path, signum):
    child = Child(train_opt, tmp_path, step_by_step=True)
    child.wait_for(3)  # it hangs here forever, waiting for an answer
    while child.end(0.2) is None:
        child.kill(signum)
    assert child.end() == 128 + signum


def test_the_same_signal_twice_within_a_moment_is_one(train_opt, tmp_path):
    """torchrun passes on what the terminal has sent to its processes as well."""
    child = Child(train_opt, tmp_path, step_by_step=True)
    child.wait_for(3)
    child.kill(signal.SIGTERM)
    child.kill(signal.SIGINT)
    child.proceed()
    child.proceed_to_the_end()
    assert child.end() == SAVED


def signal_in_validation() -> None:
    """SIGTERM at the first image of the validation after iteration 4, the next one waits for it. One image was upscaled
    before training, to see that it fits."""
    import facd_basicsr.engine.loop
    from facd_basicsr.models import FACDModel

    test, images = FACDModel.test, []
    stops = []
    enter = facd_basicsr.engine.loop.StopSignals.__enter__

    def entered(self: StopSignals) -> StopSignals:
        stops.append(self)
        return enter(self)

    def signalled(self: FACDModel) -> None:
        images.append(len(images))
        test(self)
        if images == [0, 1]:
            os.kill(os.getpid(), signal.SIGTERM)
            while stops[0].requested is None:
                os.sched_yield()
        assert len(images) <= 2, 'another image'

    facd_basicsr.engine.loop.StopSignals.__enter__ = entered
    FACDModel.test = signalled


def test_a_signal_during_validation_ends_it_with_everything_saved(train_opt, tmp_path):
    train_opt['logger']['save_checkpoint_freq'] = 100
    train_opt['val']['val_freq'] = 4
    run(train_opt, tmp_path / 'whole')
    child = Child(train_opt, tmp_path / 'stopped', prepare=signal_in_validation)
    assert child.end() == SAVED, (tmp_path / 'stopped/output.txt').read_text()
    assert 'SIGTERM: stopped after iteration 4' in log_text(tmp_path / 'stopped')
    assert 'Validation val' not in log_text(tmp_path / 'stopped')
    run(train_opt, tmp_path / 'stopped', TOTAL, '--auto_resume')
    assert log_text(tmp_path / 'stopped').count('Validation val') == 2
    assert_same(result(tmp_path / 'stopped'), result(tmp_path / 'whole'))
    assert_same_curves(tmp_path / 'stopped', tmp_path / 'whole')


def test_a_crash_is_in_the_log_and_its_exit_code_is_not_zero(train_opt, tmp_path):
    child = Child(train_opt, tmp_path, prepare=break_the_third_step)
    assert child.end() == 1
    for text in (log_text(tmp_path), (tmp_path / 'output.txt').read_text()):
        assert text.count('ZeroDivisionError: the third step') == 1
        assert text.count('Traceback') == 1
    assert 'iter:       2' in log_text(tmp_path)


@pytest.mark.parametrize(
    ('ending', 'options'),
    [
        ('signal', {'persistent_workers': True}),
        pytest.param('signal', {'prefetch_mode': 'cpu'}, marks=pytest.mark.slow),
        pytest.param('crash', {'persistent_workers': True}, marks=pytest.mark.slow),
        ('crash', {'prefetch_mode': 'cpu'}),
    ],
)
def test_workers_end_with_the_training_however_it_ends(train_opt, tmp_path, options, ending):
    train_opt['datasets']['train'] |= {'num_worker_per_gpu': 2, 'dataset_enlarge_ratio': 20, **options}
    if ending == 'crash':
        child = Child(train_opt, tmp_path, prepare=break_the_third_step)
    else:
        child = Child(train_opt, tmp_path, 40, step_by_step=True)
        child.wait_for(3)
        child.kill(signal.SIGTERM)
        child.proceed()
        child.proceed_to_the_end()
    assert child.end() == {'signal': SAVED, 'crash': 1}[ending]


def test_a_signal_during_the_set_up_ends_it(train_opt, tmp_path):
    child = Child(train_opt, tmp_path, prepare=signal_in_set_up)
    assert child.end() == SAVED
    assert (tmp_path / 'output.txt').read_text().splitlines()[-1].startswith('SIGUSR1: stopped; the same command')
    assert not (tmp_path / 'experiments').exists()


def signal_in_set_up() -> None:
    from facd_basicsr.models import FACDModel

    setup_optimizers = FACDModel.setup_optimizers

    def signalled(self: FACDModel) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        setup_optimizers(self)

    FACDModel.setup_optimizers = signalled


def break_the_third_step() -> None:
    from facd_basicsr.models import FACDModel

    step = FACDModel.optimize_parameters

    def broken(self: FACDModel, current_iter: int) -> None:
        if current_iter == 3:
            raise ZeroDivisionError('the third step')
        step(self, current_iter)

    FACDModel.optimize_parameters = broken


def test_handlers_are_put_back():
    before = [signal.getsignal(signum) for signum in STOPPING]
    with StopSignals() as stop:
        assert [signal.getsignal(signum) for signum in STOPPING] != before
        assert stop.requested is None
    assert [signal.getsignal(signum) for signum in STOPPING] == before


def test_outside_the_main_thread_it_does_nothing():
    errors = []

    def enter() -> None:
        try:
            with StopSignals():
                pass
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert errors == []
