"""A run that is killed at any moment and resumed ends with the same weights as an uninterrupted one."""

import random
import signal
import time
from pathlib import Path

import pytest
from runs import TOTAL, Child, assert_same, assert_same_curves, metric_lines, result, with_stages


def with_frequent_checkpoints(opt: dict) -> dict:
    """Saves every second iteration, within and at the end of epochs of three iterations; keeps two checkpoints."""
    opt['datasets']['train'] |= {'dataset_enlarge_ratio': 3, 'batch_size_per_gpu': 6}
    opt['train']['ema_decay'] = 0.9
    opt['val']['val_freq'] = 4
    opt['logger'] |= {'save_checkpoint_freq': 2, 'keep_last': 2}
    return opt


def killed_and_resumed(opt: dict, folder: Path, times: int, generator: random.Random) -> None:
    """Compares ``times`` runs, each killed at a random moment and resumed, with an uninterrupted one."""
    Child(opt, folder / 'first', 1).end()  # the first process starts the server that others are forked from
    start = time.monotonic()
    uninterrupted = Child(opt, folder / 'uninterrupted', TOTAL)
    uninterrupted.wait_for(1)
    set_up = time.monotonic() - start
    assert uninterrupted.end() == 0, (folder / 'uninterrupted' / 'output.txt').read_text()
    iteration = (time.monotonic() - start - set_up) / TOTAL
    expected = result(folder / 'uninterrupted')
    for number in range(times):
        root = folder / f'killed_{number}'
        child = Child(opt, root, TOTAL, '--auto_resume')
        after = generator.randrange(TOTAL)
        child.wait_for(after)
        child.end(generator.uniform(0, iteration if after else set_up))
        child.kill()
        assert child.end() in (-signal.SIGKILL, 0)
        resumed = Child(opt, root, TOTAL, '--auto_resume')
        assert resumed.end() == 0, (after, (root / 'output.txt').read_text())
        assert_same(result(root), expected)
        assert_same_curves(root, folder / 'uninterrupted')
        assert metric_lines(root) == metric_lines(folder / 'uninterrupted')
        states = {path.name for path in (root / 'experiments/tiny/training_states').iterdir()}
        assert states == {'6.state', '8.state', 'latest'}
        assert not list(folder.rglob('*_archived_*'))


def test_a_run_killed_at_random_moments_and_resumed_has_the_same_weights(train_opt, tmp_path):
    killed_and_resumed(with_frequent_checkpoints(train_opt), tmp_path, 2, random.Random(0))


@pytest.mark.slow  # tests/test_recipes.py kills one within a stage and at a border
def test_a_run_of_stages_killed_at_random_moments_and_resumed_has_the_same_weights(train_opt, tmp_path):
    killed_and_resumed(with_stages(with_frequent_checkpoints(train_opt)), tmp_path, 2, random.Random(1))


@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 1])
def test_a_run_killed_at_fifty_random_moments_and_resumed_has_the_same_weights(train_opt, tmp_path, workers):
    train_opt['datasets']['train']['num_worker_per_gpu'] = workers
    killed_and_resumed(with_frequent_checkpoints(train_opt), tmp_path, 50, random.Random())
