import subprocess
import sys

import pytest

from facd_basicsr.comparison.run import Folder, locked
from facd_basicsr.errors import UserError


def test_a_training_that_outlives_its_comparison_keeps_a_second_one_out(tmp_path):
    folder = Folder(tmp_path / 'results')
    with locked(folder) as lock:
        training = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE, pass_fds=[lock])
    with pytest.raises(UserError, match=r'another facd compare, or a training.*, is at work'), locked(folder):
        pass
    training.communicate(b'\n')
    with locked(folder):
        pass


def test_two_comparisons_do_not_work_in_one_folder(tmp_path):
    folder = Folder(tmp_path)
    with locked(folder), pytest.raises(UserError, match=r'is at work'), locked(folder):
        pass
