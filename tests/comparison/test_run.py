import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import torch
from conftest import changed, write_yml

from facd_basicsr.comparison.plan import Comparison, Run, timed
from facd_basicsr.comparison.run import (
    Folder,
    _remove_numbered,
    _start,
    locked,
    read_records,
    step_times,
    threads_of,
    time_left,
    write_option_files,
)
from facd_basicsr.errors import UserError
from facd_basicsr.options import load_yaml, schema
from facd_basicsr.options.parse import options_digest


def test_a_training_that_outlives_its_comparison_keeps_a_second_one_out(tmp_path):
    folder = Folder(tmp_path / 'results')
    with locked(folder) as lock:
        training = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE, pass_fds=[lock])
    with pytest.raises(UserError, match=r'another facd compare, or a run.*, is running'), locked(folder):
        pass
    training.communicate(b'\n')
    with locked(folder):
        pass


def test_two_comparisons_do_not_work_in_one_folder(tmp_path):
    folder = Folder(tmp_path)
    with locked(folder), pytest.raises(UserError, match=r'is running'), locked(folder):
        pass


def test_trainings_share_the_processors_unless_omp_num_threads_says_otherwise(monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: {*range(8)}, raising=False)
    assert [threads_of(jobs) for jobs in (1, 2, 3, 16)] == [8, 4, 2, 1]
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    assert threads_of(2) == torch.get_num_threads()


def test_a_new_default_does_not_make_an_old_comparison_changed(train_opt, test_opt, tmp_path, monkeypatch):
    comparison = Comparison('c', (0,), 'FACD', {'FACD': train_opt}, test_opt)
    folder = Folder(tmp_path)
    write_option_files(comparison, folder)
    (run,) = comparison.runs()
    written = load_yaml(folder.option_file(run).read_text(), '')
    assert written == run.opt and 'warmup_iter' not in written['train']
    monkeypatch.setitem(schema.TRAIN, 'warmup_iter', replace(schema.TRAIN['warmup_iter'], default=5))
    write_option_files(comparison, folder)
    train_opt['train']['warmup_iter'] = 5
    with pytest.raises(UserError, match=r'methods.FACD: train.warmup_iter changed since the comparison was started'):
        write_option_files(comparison, folder)


def test_a_block_of_defaults_that_is_added_is_a_change(train_opt, test_opt, tmp_path):
    folder = Folder(tmp_path)
    write_option_files(Comparison('c', (0,), 'FACD', {'FACD': train_opt}, test_opt), folder)
    quantized = Comparison('c', (0,), 'FACD', {'FACD': changed(train_opt, 'train.quantize', {})}, test_opt)
    with pytest.raises(UserError, match=r'methods.FACD: train.quantize changed since the comparison was started'):
        write_option_files(quantized, folder)


def test_a_finished_run_keeps_its_latest_and_its_best_networks(tmp_path):
    for name in ('models/net_g_8.pth', 'models/net_g_best.pth', 'models/net_g_latest.pth', 'training_states/8.state'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    _remove_numbered(tmp_path)
    assert {path.name for path in tmp_path.rglob('*.*')} == {'net_g_best.pth', 'net_g_latest.pth'}


def test_a_run_is_scored_anew_for_a_metric_that_is_added(train_opt, test_opt, tmp_path):
    comparison = Comparison('c', (0,), ('FACD',), {'FACD': train_opt}, test_opt)
    niqe = {'type': 'calculate_niqe', 'crop_border': 2}
    more = changed(test_opt, 'val.metrics.niqe', niqe)
    with_niqe = replace(comparison, test_opt=more)
    assert (comparison.metrics, with_niqe.metrics) == ({}, {'niqe': {**niqe, 'better': 'lower'}})
    folder = Folder(tmp_path)
    (run,) = comparison.runs()
    folder.trained(run).parent.mkdir()
    folder.trained(run).touch()
    record = {'test': test_opt['datasets']}  # of before there were other metrics
    folder.record(run).write_text(json.dumps(record))
    assert list(read_records(comparison, folder)) == [record] and not list(read_records(with_niqe, folder))
    folder.record(run).write_text(json.dumps({**record, 'metrics': with_niqe.metrics}))
    assert len(list(read_records(with_niqe, folder))) == 1 and not list(read_records(comparison, folder))


def begin(run: Run, folder: Folder, root: Path, *logged: tuple[int, float]) -> None:
    """The folder of a run with these (iterations, seconds since its start) in its log, with its option file of now."""
    digest = options_digest(str(folder.option_file(run)))
    folder = root / 'experiments' / run.opt['name']
    folder.mkdir(parents=True)
    start = datetime(2026, 1, 1, tzinfo=timezone.utc)
    facts = {'start': start.isoformat(), 'iter': 0, 'option_sha256': digest}
    write_yml({**run.opt, 'run': [facts]}, folder / 'options.yml')
    lines = [
        {'iter': done, 'timestamp': (start + timedelta(seconds=seconds)).isoformat(), 'epoch': 0, 'lr': 1e-4}
        for done, seconds in logged
    ]
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))


def test_the_time_left_is_that_of_all_runs_at_the_pace_of_their_methods(train_opt, test_opt, tmp_path, monkeypatch):
    monkeypatch.setattr('facd_basicsr.comparison.run.root_path', lambda: tmp_path)
    train_opt['train']['total_iter'] = 100
    comparison = Comparison('c', (0, 1), 'A', {'A': train_opt, 'B': train_opt}, test_opt)
    folder = Folder(tmp_path / 'results')
    write_option_files(comparison, folder)
    first, second, *_ = comparison.runs()
    begin(second, folder, tmp_path, (100, 5))  # of another comparison: this one has not started it
    assert time_left(comparison, folder, jobs=1) is None
    folder.output(first).write_text('started')
    assert time_left(comparison, folder, jobs=1) is None
    begin(first, folder, tmp_path, (40, 80))  # 2 s an iteration, for all methods as far as is known
    assert time_left(comparison, folder, jobs=1) == pytest.approx(2 * (60 + 100 + 100 + 100))
    assert time_left(comparison, folder, jobs=2) == pytest.approx(360)
    assert time_left(comparison, folder, jobs=4) == pytest.approx(200)  # the longest run
    folder.trained(first).write_text('{}')
    shutil.rmtree(tmp_path / 'experiments' / second.opt['name'])
    begin(second, folder, tmp_path, (25, 9000), (50, 9150))  # 6 s, once a teacher's cache was made
    folder.output(second).write_text('started')
    assert time_left(comparison, folder, jobs=1) == pytest.approx(6 * 50 + 2 * 100 + 6 * 100)


def test_a_run_continues_its_own_experiment_and_none_that_was_begun_with_other_options(
    train_opt, test_opt, tmp_path, monkeypatch
):
    monkeypatch.setattr('facd_basicsr.comparison.run.root_path', lambda: tmp_path)
    commands = []
    monkeypatch.setattr('facd_basicsr.comparison.run.subprocess.Popen', lambda command, **_: commands.append(command))
    folder = Folder(tmp_path / 'results')

    def started(opt: dict) -> bool:
        """Whether it resumes."""
        comparison = Comparison('c', (0,), 'A', {'A': opt}, test_opt)
        write_option_files(comparison, folder)
        (run,) = comparison.runs()
        _start(run, folder, 0, 1, 0)
        return commands[-1][-1] == '--auto_resume'

    assert not started(train_opt)
    (run,) = Comparison('c', (0,), 'A', {'A': train_opt}, test_opt).runs()
    begin(run, folder, tmp_path, (2, 1))
    assert started(train_opt)
    for path in folder.root.glob('*/A_seed*'):  # as the message on changed options says
        path.unlink()
    other = changed(train_opt, 'train.optim_g.lr', 0.01)
    assert not started(other)  # and ended before it has moved the old experiment aside
    assert not started(other)


def test_step_times_are_measured_once(train_opt, test_opt, tmp_path):
    comparison = Comparison('c', (7,), 'A', {'A': train_opt, 'B': train_opt}, test_opt)
    folder = Folder(tmp_path / 'c')
    own = Folder(folder.root / 'step_times')
    (own.root / 'runs').mkdir(parents=True)
    kept = [
        (run, {'method': run.method, 'seconds_per_iter': 0.1 * run.seed, 'test': {}})
        for run in timed(comparison).runs()
    ]
    for run, record in kept:
        own.trained(run).write_text('{}')
        own.record(run).write_text(json.dumps(record))

    def measured_again(run: Run, trained: dict) -> dict:
        raise AssertionError(run.name)

    assert [run.name for run, _ in kept] == [
        'A_seed0',
        'B_seed0',
        'A_seed1',
        'B_seed1',
        'A_seed2',
        'B_seed2',
    ]  # in turns
    for others in (comparison, replace(comparison, seeds=(8,), test_opt={**test_opt, 'datasets': {'test': {}}})):
        assert step_times(others, folder, 2, measured_again) == [record for _, record in kept]
