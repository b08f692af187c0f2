"""docs/slurm/train.sbatch runs as under SLURM, with mocks of ``srun`` and ``scontrol``."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, tiny_train_opt, write_yml
from processes import free_port

SCRIPT = REPOSITORY / 'docs/slurm/train.sbatch'

# Starts two tasks with SLURM's variables. SLURM signals tasks itself; the mock forwards its own signals.
SRUN = f"""#!{sys.executable}
import os, pathlib, signal, subprocess, sys

pathlib.Path('srun_pid').write_text(str(os.getpid()))
options = [word for word in sys.argv[1:4] if word.startswith('--')]
assert options == ['--kill-on-bad-exit=0', '--wait=30'], options
slurm = {{'SLURM_NTASKS': '2', 'SLURM_NODELIST': 'node[1-2]'}}
tasks = []
signal.signal(signal.SIGUSR1, lambda *_: [task.send_signal(signal.SIGUSR1) for task in tasks])
for rank in '01':
    tasks.append(subprocess.Popen(sys.argv[3:], env={{**os.environ, **slurm, 'SLURM_PROCID': rank}}))
codes = [task.wait() for task in tasks]
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""

SCONTROL = """#!/bin/sh
case "$*" in
    'show hostname node[1-2]') printf '127.0.0.1\\nnode2\\n' ;;
    *) echo "$*" >> scontrol_calls ;;
esac
"""


@pytest.fixture(scope='module')
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the mocks."""
    folder = tmp_path_factory.mktemp('slurm')
    for name, text in (('srun', SRUN), ('scontrol', SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def sbatch(
    slurm: Path, checkout: Path, option_file: Path, on_line: Callable[[str], None] = lambda line: None
) -> tuple[int, str]:
    """Runs the script from the checkout; ``on_line`` receives each line of its output."""
    script = shutil.copy(SCRIPT, slurm / 'slurm_script')  # SLURM copies the script too, so that its folder is unknown
    env = {
        **os.environ,
        'PATH': f'{slurm}:{os.environ["PATH"]}',
        'PYTHON': sys.executable,
        'OMP_NUM_THREADS': '1',
        'SLURM_JOB_ID': '17',
        'MASTER_PORT': str(free_port()),
    }
    command = ['bash', str(script), str(option_file)]
    with subprocess.Popen(
        command, cwd=checkout, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as job:
        lines = []
        for line in job.stdout:
            lines.append(line)
            on_line(line)
    return job.returncode, ''.join(lines)


def test_bash_parses_the_script():
    done = subprocess.run(['bash', '-n', str(SCRIPT)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, '')


@pytest.mark.slow  # four times Python's start, twice that of two ranks
def test_a_job_at_its_time_limit_saves_and_is_requeued_and_its_second_run_finishes(
    slurm, checkout, data, teacher_weights
):
    opt = tiny_train_opt(data, teacher_weights)
    opt |= {'name': 'by_slurm'}
    opt['train']['total_iter'] = 100_000
    opt['logger']['save_checkpoint_freq'] = 100_000
    option_file = write_yml(opt, checkout / 'slurm.yml')
    signalled = []

    def at_time_limit(line: str) -> None:
        if 'iter:       3' in line and not signalled:
            signalled.append(line)
            os.kill(int((checkout / 'srun_pid').read_text()), signal.SIGUSR1)

    code, output = sbatch(slurm, checkout, option_file, at_time_limit)
    assert code == 75, output
    (iteration, other) = re.findall(r'^\S.*: stopped after iteration (\d+), which is saved', output, re.MULTILINE)
    assert iteration == other  # the same for both ranks
    assert '2 processes' in output
    assert (checkout / 'scontrol_calls').read_text() == 'requeue 17\n'
    (state,) = (checkout / 'experiments/by_slurm/training_states').glob('*.state')
    assert state.stem == iteration

    total = int(iteration) + 2
    option_file.write_text(yaml.safe_dump({**opt, 'train': {**opt['train'], 'total_iter': total}}))
    code, output = sbatch(slurm, checkout, option_file)
    assert code == 0, output
    assert re.search(rf'Resuming from .*/{iteration}\.state', output)
    assert 'Resume is not exact' not in output
    assert (checkout / f'experiments/by_slurm/training_states/{total}.state').is_file()
    assert (checkout / 'scontrol_calls').read_text() == 'requeue 17\n'  # not requeued again


@pytest.mark.slow
def test_a_failed_job_is_not_requeued(slurm, checkout, data, teacher_weights):
    (checkout / 'scontrol_calls').unlink(missing_ok=True)
    opt = tiny_train_opt(data, teacher_weights) | {'scale': 'two'}
    code, output = sbatch(slurm, checkout, write_yml(opt, checkout / 'wrong.yml'))
    assert code == 2, output
    assert not (checkout / 'scontrol_calls').exists()
