import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from facd_basicsr.comparison.plan import Comparison
from facd_basicsr.comparison.run import Folder, locked, threads_of, write_option_files
from facd_basicsr.errors import UserError
from facd_basicsr.options import load_yaml, schema


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
    monkeypatch.setattr(os, 'cpu_count', lambda: 8)
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
