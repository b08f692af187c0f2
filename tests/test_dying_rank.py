"""A rank that dies ends the job, reports the reason once, and leaves no process behind."""

import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from conftest import decoded, tiny_train_opt, write_yml
from processes import run_ranks

from facd_basicsr.data.loaders import ResumableSampler

MINUTE = 60
TORCHRUN = ('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2')

# train.py, except that one rank dies at the end of its third backward pass while DDP in the other waits for it.
DIES = """
import os, signal, sys
import facd_basicsr.train as entry
from facd_basicsr.models import FACDModel

_, guilty, how, *sys.argv[1:] = sys.argv
print('pid', os.getpid(), flush=True)
optimize_parameters = FACDModel.optimize_parameters

def die(gradient):
    if how == 'kill':
        os.kill(os.getpid(), signal.SIGKILL)
    raise ZeroDivisionError('of the guilty rank')

def optimize_or_die(self, iteration):
    if iteration == 3 and os.environ['RANK'] == guilty:
        next(self.net_g.parameters()).register_hook(die)
    optimize_parameters(self, iteration)

FACDModel.optimize_parameters = optimize_or_die
entry.main()
"""


def run_within_a_minute(*command: str | Path, cwd: Path) -> tuple[int, str]:
    """Exit code and output of a command that takes at most a minute, including start-up."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=MINUTE,
    )
    return done.returncode, done.stdout


def lines(output: str, pattern: str) -> list[str]:
    return [line for line in output.splitlines() if re.search(pattern, line)]


def tracebacks_of_ranks(output: str) -> int:
    """Number of tracebacks without torchrun's own, which is the last."""
    return output.count('Traceback (most recent call last)') - 1


@pytest.mark.parametrize(
    ('by_torchrun', 'guilty', 'how'),
    [
        (False, 1, 'raise'),
        *(pytest.param(True, guilty, how, marks=pytest.mark.slow) for how in ('raise', 'kill') for guilty in (0, 1)),
    ],
)
def test_a_rank_that_dies_ends_the_job_and_reports_the_reason_once(
    checkout, data, teacher_weights, by_torchrun, guilty, how
):
    opt = tiny_train_opt(data, teacher_weights)
    opt |= {'name': f'dies_{guilty}_{how}'}
    opt['train']['total_iter'] = 1000
    (checkout / 'dies.py').write_text(DIES)
    option_file = write_yml(opt, checkout / f'{opt["name"]}.yml')
    script = ('dies.py', guilty, how, '--launcher', 'pytorch', '-opt', option_file)
    if by_torchrun:
        code, output = run_within_a_minute(*TORCHRUN, *script, cwd=checkout)
    else:
        done = run_ranks(*script, cwd=checkout)
        code, output = done.returncode, done.stdout + done.stderr
    assert code != 0
    assert len(lines(output, '^(.rank.]: )?ZeroDivisionError: of the guilty rank$')) == (how == 'raise'), output
    assert output.count('Traceback (most recent call last)') == (how == 'raise') + by_torchrun, output
    assert len(lines(output, '^error: another rank has ended')) == 1, output
    pids = re.findall(r'^pid (\d+)$', output, re.MULTILINE)
    assert len(pids) == 2
    assert not any(Path('/proc', pid).exists() for pid in pids)
    log = next((checkout / 'experiments' / opt['name']).glob('*.log')).read_text()
    assert ('ERROR: another rank has ended' in log) == (guilty == 1)
    assert ('ZeroDivisionError: of the guilty rank' in log) == (guilty == 0 and how == 'raise')
    assert log.count('Traceback') == (guilty == 0 and how == 'raise')


@pytest.mark.slow
def test_a_damaged_image_on_one_rank_ends_all_with_one_line_that_names_it(checkout, data, teacher_weights, tmp_path):
    opt = tiny_train_opt(data, teacher_weights) | {'name': 'damaged'}
    for key, folder in (('gt', 'HR'), ('lq', 'LR')):
        (tmp_path / folder).mkdir()
        for name, image in decoded(data / f'{folder}.lmdb').items():
            cv2.imwrite(str(tmp_path / folder / f'{name}.png'), image)
        opt['datasets']['train'][f'dataroot_{key}'] = str(tmp_path / folder)
    opt['datasets']['train'] |= {'io_backend': {'type': 'disk'}, 'batch_size_per_gpu': 1}
    (_, _), (second, _), (_, _) = ResumableSampler(6, 1, 1, opt['manual_seed'], rank=1, world_size=2)
    damaged = sorted((tmp_path / 'HR').iterdir())[second]
    os.truncate(damaged, damaged.stat().st_size // 2)
    option_file = write_yml(opt, checkout / 'damaged.yml')
    script = ('facd_basicsr/train.py', '--launcher', 'pytorch', '-opt', option_file)
    code, output = run_within_a_minute(*TORCHRUN, *script, cwd=checkout)
    assert code != 0
    (line,) = lines(output, 'error: datasets.train: ')
    assert str(damaged) in line
    assert len(lines(output, '^error: another rank has ended')) == 1, output
    assert tracebacks_of_ranks(output) == 0, output
    assert len(lines(output, r'exitcode +: 2 ')) == 1, output
