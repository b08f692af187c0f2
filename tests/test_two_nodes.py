"""The command for two nodes in docs/many_processes.md, as two torchruns on this machine, and its signal handling."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, tiny_train_opt, write_yml
from processes import free_port

PAGE = (REPOSITORY / 'docs/many_processes.md').read_text()
MINUTE = 60
SETTINGS = ('--nproc_per_node=4', '--master_addr=10.0.0.1', '--master_port=29500')
OPTION_FILE = 'options/train/FACD_EDSR_x4.yml'

pytestmark = pytest.mark.slow


def torchrun(line: str, cwd: Path) -> subprocess.Popen:
    """Starts a command of the page."""
    program, *arguments = shlex.split(line)
    assert program == 'torchrun'
    return subprocess.Popen(
        [sys.executable, '-m', 'torch.distributed.run', *arguments],
        cwd=cwd,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def nodes(checkout: Path, option_files: tuple[Path, Path]) -> list[tuple[int, str]]:
    """Runs the page's two commands with one process per node; returns each node's exit code and output."""
    lines = re.findall(r'^torchrun --nnodes=2 .*$', PAGE, re.MULTILINE)
    assert [f'--node_rank={node}' in line for node, line in enumerate(lines)] == [True, True]
    here = dict(zip(SETTINGS, ('--nproc_per_node=1', '--master_addr=127.0.0.1', f'--master_port={free_port()}')))
    started = []
    for line, option_file in zip(lines, option_files):
        for written, used in {**here, OPTION_FILE: str(option_file)}.items():
            assert line.count(written) == 1
            line = line.replace(written, used)
        started.append(torchrun(line, checkout))
    outputs = [process.communicate(timeout=MINUTE)[0] for process in started]
    return [(process.returncode, output) for process, output in zip(started, outputs)]


def test_two_nodes_train_by_the_commands_of_the_page(checkout, data, teacher_weights):
    opt = tiny_train_opt(data, teacher_weights) | {'name': 'nodes'}
    option_file = write_yml(opt, checkout / 'nodes.yml')
    (first, output), (second, other) = nodes(checkout, (option_file, option_file))
    assert (first, second) == (0, 0), output + other
    assert '2 processes with batches of 3' in output
    assert output.count('iter:       4') == 1 and 'psnr_y' in output
    assert 'iter:' not in other  # only rank 0 logs
    assert (checkout / 'experiments/nodes/models/net_g_latest.pth').is_file()


@pytest.mark.parametrize('node', [0, 1])
def test_a_node_without_the_data_ends_the_other_node(checkout, data, teacher_weights, node):
    opt = tiny_train_opt(data, teacher_weights) | {'name': 'refused'}
    files = [write_yml(opt, checkout / 'nodes.yml')] * 2
    opt['datasets']['train']['dataroot_gt'] = str(checkout / 'absent.lmdb')
    files[node] = write_yml(opt, checkout / 'lacking.yml')
    found = nodes(checkout, tuple(files))
    assert all(code != 0 for code, _ in found)
    assert re.search(r'error: .*datasets\.train\.dataroot_gt: .*absent\.lmdb', found[node][1]), found[node][1]
    assert len(re.findall('^error: another rank', found[1 - node][1], re.MULTILINE)) == 1, found[1 - node][1]
    assert not (checkout / 'experiments/refused').exists()


@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_torchrun_saves_and_stops_all_ranks_after_the_same_iteration(
    checkout, data, teacher_weights, signum
):
    opt = tiny_train_opt(data, teacher_weights) | {'name': f'stopped_by_{signum.name}'}
    opt['train']['total_iter'] = opt['logger']['save_checkpoint_freq'] = 100_000
    option_file = write_yml(opt, checkout / 'signalled.yml')
    line = re.search(r'^torchrun --nproc_per_node=4 .*train.py.*$', PAGE, re.MULTILINE)[0]
    line = line.replace('--nproc_per_node=4', '--standalone --nproc_per_node=2').replace(OPTION_FILE, str(option_file))
    lines = []
    with torchrun(line, checkout) as process:
        for text in process.stdout:
            lines.append(text)
            if 'iter:       3' in text:
                process.send_signal(signum)
    output = ''.join(lines)
    assert process.returncode == 1
    iteration, other = re.findall(r'^\S.*: stopped after iteration (\d+), which is saved', output, re.MULTILINE)
    assert iteration == other
    (state,) = (checkout / 'experiments' / opt['name'] / 'training_states').glob('*.state')
    assert state.stem == iteration
