import os
import subprocess
import sys

import pytest
import torch

from facd_basicsr.comparison.run import Folder, locked, threads_of
from facd_basicsr.errors import UserError


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
