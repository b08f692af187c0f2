import errno
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from basicsr.metrics import calculate_psnr
from basicsr.utils.registry import METRIC_REGISTRY
from conftest import write_yml
from runs import TOTAL, Child, assert_same, limit_files_to, log_text, result, run

from facd_basicsr.engine.checkpoint import reraise_disk_full, state_iterations
from facd_basicsr.errors import UserError
from facd_basicsr.files import atomic
from facd_basicsr.files.download import sha256_of
from facd_basicsr.options import load_yaml


def states(root: Path) -> list[int]:
    return sorted(state_iterations(root / 'experiments/tiny/training_states'))


def networks(root: Path, label: str = 'g') -> list[str]:
    return sorted(path.stem.split('_')[2] for path in (root / 'experiments/tiny/models').glob(f'net_{label}_*.pth'))


def test_a_state_says_all_that_training_goes_on_from_and_latest_names_it(train_opt, tmp_path):
    run(train_opt, tmp_path, 4)
    state = result(tmp_path, 4)
    assert (state['iter'], state['epoch'], state['batches']) == (4, 1, 2)
    models = tmp_path / 'experiments/tiny/models'
    assert state['networks'] == {name: sha256_of(models / name) for name in ('net_g_4.pth', 'net_r_4.pth')}
    assert [sorted(random) for random in state['random']] == [['numpy', 'python', 'torch']]
    assert state['data'] == {'images': 6, 'samples': 6, 'batch_size': 3, 'world_size': 1, 'seed': 7}
    assert state['best_metric_results'] == {}  # written before the validation of its iteration
    assert state['nonfinite'] == {'in_a_row': 0, 'skipped': 0} and state['scaler'] == {}
    folder = tmp_path / 'experiments/tiny/training_states'
    assert (folder / 'latest').read_text() == '4.state\n'
    assert not list(tmp_path.rglob('.partial_*'))


def test_the_scale_of_fp16_is_resumed(train_opt, tmp_path):
    train_opt['train']['precision'] = 'fp16'
    run(train_opt, tmp_path / 'whole')
    run(train_opt, tmp_path / 'stopped', 3)
    run(train_opt, tmp_path / 'stopped', TOTAL, '--auto_resume')
    assert_same(result(tmp_path / 'stopped'), result(tmp_path / 'whole'))
    assert result(tmp_path / 'whole')['scaler']['_growth_tracker'] == TOTAL


def test_the_last_checkpoints_are_kept(train_opt, tmp_path):
    train_opt['logger'] |= {'save_checkpoint_freq': 1, 'keep_last': 2}
    run(train_opt, tmp_path)
    assert states(tmp_path) == [7, 8]
    assert networks(tmp_path, 'g') == networks(tmp_path, 'r') == ['7', '8', 'latest']


def test_all_are_kept_by_default(train_opt, tmp_path):
    run(train_opt, tmp_path)
    assert states(tmp_path) == [2, 4, 6, 8]


def test_another_continuation_of_a_run_does_not_lose_its_checkpoints_to_the_older_one(train_opt, tmp_path):
    run(train_opt, tmp_path)
    train_opt['logger']['keep_last'] = 1
    train_opt['path']['resume_state'] = str(tmp_path / 'experiments/tiny/training_states/2.state')
    run(train_opt, tmp_path, 4)
    assert states(tmp_path) == [4, 6, 8]
    repeats = load_yaml((tmp_path / 'experiments/tiny/options.yml').read_text(), '')
    assert repeats['path']['resume_state'] is None and repeats['run'][-1]['iter'] == 2
    train_opt['path']['resume_state'] = None
    run(train_opt, tmp_path, 5, '--auto_resume')
    assert 'training_states/4.state' in log_text(tmp_path) and 'training_states/8.state' not in log_text(tmp_path)


def test_the_best_networks_are_kept_though_later_ones_are_worse(train_opt, tmp_path):
    train_opt['logger'] |= {'keep_best': True, 'save_checkpoint_freq': 1}
    train_opt['val']['val_freq'] = 1
    train_opt['train']['optim_g']['lr'] = 0.05  # some steps make it worse
    run(train_opt, tmp_path)
    best = result(tmp_path)['best_metric_results']['val']['psnr_y']
    log = log_text(tmp_path)
    last = [line for line in log.splitlines() if 'Saving the best models: psnr_y of val is' in line][-1]
    found = torch.load(tmp_path / 'experiments/tiny/models/net_g_best.pth', weights_only=True)
    iteration = log.split(last)[0].count('Validation val')
    same = torch.load(tmp_path / f'experiments/tiny/models/net_g_{iteration}.pth', weights_only=True)
    assert_same(found, same)
    assert best['iter'] == iteration
    assert networks(tmp_path, 'r')[-2:] == ['best', 'latest']


def test_a_run_that_is_extended_remembers_the_best_of_its_last_validation(train_opt, tmp_path, monkeypatch):
    train_opt['logger']['keep_best'] = True
    monkeypatch.setitem(METRIC_REGISTRY._obj_map, 'own', lambda img, img2: calculate_psnr(img, img2, 2))
    worse_with_every_step = {'type': 'own', 'better': 'lower'}
    train_opt['val']['metrics'] = {'psnr_y': worse_with_every_step}
    run(train_opt, tmp_path, 3)
    networks = (tmp_path / 'experiments/tiny/models/net_g_best.pth').read_bytes()
    best = result(tmp_path, 3)['best_metric_results']
    assert best['val']['psnr_y']['iter'] == 3
    run(train_opt, tmp_path, 5, '--auto_resume')
    assert result(tmp_path, 5)['best_metric_results'] == best
    assert (tmp_path / 'experiments/tiny/models/net_g_best.pth').read_bytes() == networks


def killed_at_step(step: int) -> None:
    """Ends the process before its ``step``-th opening, flushing, naming or removing of a file of a checkpoint."""
    steps = iter(range(1, step))

    def counted(function, *args: object, **kwargs: object) -> object:
        if next(steps, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    os.fsync = partial(counted, os.fsync)
    Path.replace = lambda path, target, replace=Path.replace: counted(replace, path, target)
    Path.unlink = lambda path, missing_ok=False, unlink=Path.unlink: counted(unlink, path, missing_ok)
    write = atomic.atomic_write
    atomic.atomic_write = partial(counted, write)


def killed_at_every(steps: range, opt: dict, folder: Path) -> None:
    opt['logger'] |= {'save_checkpoint_freq': 2, 'keep_last': 1}
    whole = Child(opt, folder / 'whole', 6)
    assert whole.end() == 0
    killed = 0
    for step in steps:
        root = folder / f'{step}'
        child = Child(opt, root, 6, '--auto_resume', prepare=partial(killed_at_step, step))
        killed += child.end() == -signal.SIGKILL
        run(opt, root, 6, '--auto_resume')
        assert_same(result(root, 6), result(folder / 'whole', 6))
        assert states(root) == [6] and networks(root) == ['6', 'latest']
        assert not list(root.rglob('.partial_*'))
    assert killed == len(steps)


def test_a_run_killed_in_the_middle_of_a_save_has_the_same_weights(train_opt, tmp_path):
    killed_at_every(range(2, 40, 20), train_opt, tmp_path)


@pytest.mark.slow
def test_a_run_killed_at_any_step_of_three_saves_has_the_same_weights(train_opt, tmp_path):
    killed_at_every(range(1, 46), train_opt, tmp_path)


def test_a_full_disk_ends_the_run_in_a_line_and_leaves_the_last_checkpoint_whole(train_opt, tmp_path):
    run(train_opt, tmp_path, 2)
    size = (tmp_path / 'experiments/tiny/training_states/2.state').stat().st_size
    child = Child(train_opt, tmp_path, TOTAL, '--auto_resume', prepare=partial(limit_files_to, size // 2))
    assert child.end() == 2
    last_line = (tmp_path / 'output.txt').read_text().splitlines()[-1]
    assert last_line.startswith(f'error: {tmp_path}/experiments/tiny/training_states/4.state: File too large; 2.state')
    assert 'complete' in last_line
    assert 'Traceback' not in (tmp_path / 'output.txt').read_text()
    run(train_opt, tmp_path, TOTAL, '--auto_resume')
    assert states(tmp_path) == [2, 4, 6, 8]


# In namespaces of its own, where everyone may mount: a disk of a megabyte, and a run until it is full.
FULL_DISK = """
set -e
mount -t tmpfs -o size=1m tmpfs "$1"
cp "$2" "$1/opt.yml"
"$3" -c '
import sys
from pathlib import Path
from facd_basicsr.errors import run_command
from facd_basicsr.options import parser
from facd_basicsr.train import train
train_it = lambda: train(parser().parse_args(["-opt", "opt.yml"]), root=Path("."))
import os
os.chdir(sys.argv[1])
run_command(train_it)
' "$1" || echo "exit code $?"
cp -r "$1/experiments" "$4"
"""


@pytest.mark.slow
def test_a_disk_that_is_really_full_ends_the_run_in_a_line_and_leaves_the_last_checkpoint_whole(train_opt, tmp_path):
    if shutil.which('unshare') is None or subprocess.run(['unshare', '-rm', 'true']).returncode:
        pytest.skip('no namespaces here')
    train_opt['train']['total_iter'] = 1000
    (tmp_path / 'disk').mkdir()
    path = write_yml(train_opt, tmp_path / 'many.yml')
    arguments = [tmp_path / 'disk', path, sys.executable, tmp_path / 'kept']
    script = ['unshare', '-rm', 'sh', '-c', FULL_DISK, 'sh', *map(str, arguments)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert 'exit code 2' in done.stdout, done.stdout + done.stderr
    last_line = done.stderr.strip().splitlines()[-1]
    assert 'No space left on device; ' in last_line and 'are complete, and --auto_resume resumes' in last_line
    assert 'Traceback' not in done.stderr
    latest = (tmp_path / 'kept/tiny/training_states/latest').read_text().strip()
    assert latest in last_line
    atomic.verify_checksums(tmp_path / 'kept/tiny/training_states' / latest)


@pytest.mark.parametrize('number', [errno.EROFS, errno.EACCES, errno.EIO])
def test_a_disk_that_cannot_be_written_any_more_ends_the_run_in_a_line(tmp_path, number):
    reason = os.strerror(number)
    with (
        pytest.raises(
            UserError, match=rf'^4\.state: {reason}; there is no checkpoint yet, and .* once it can be written$'
        ),
        reraise_disk_full(tmp_path),
    ):
        raise OSError(number, reason, '4.state')
