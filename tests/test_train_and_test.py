"""train.py and test.py from the command line, in a copy of the checkout."""

import re
import shutil
import signal
import subprocess
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from basicsr.archs import build_network
from basicsr.archs.edsr_arch import EDSR
from conftest import (
    STUDENT,
    run,
    run_in_new_interpreter,
    tiny_test_opt,
    tiny_train_opt,
    with_two_teachers,
    write_yml,
)
from runs import Child
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from facd_basicsr.errors import UserError
from facd_basicsr.options import parser
from facd_basicsr.runs.run_folder import read_run_folder
from facd_basicsr.test import test as evaluate


@pytest.fixture(scope='module')
def trained(checkout: Path, data: Path, teacher_weights: Path) -> subprocess.CompletedProcess[str]:
    """Four iterations of train.py."""
    path = write_yml(tiny_train_opt(data, teacher_weights), checkout / 'tiny.yml')
    return run_in_new_interpreter('facd_basicsr/train.py', '-opt', path, cwd=checkout)


@pytest.fixture(scope='module')
def resumed(trained, checkout: Path, tmp_path_factory) -> subprocess.CompletedProcess[str]:
    """The run resumed to six iterations by --auto_resume, from another working directory."""
    script, path = checkout / 'facd_basicsr' / 'train.py', checkout / 'tiny.yml'
    elsewhere = tmp_path_factory.mktemp('elsewhere')
    return run(script, '-opt', path, '--auto_resume', '--force_yml', 'train:total_iter=6', cwd=elsewhere)


def test_training_finishes_and_writes_the_files_that_basicsr_users_expect(trained, checkout):
    assert trained.returncode == 0, trained.stderr
    home = checkout / 'experiments' / 'tiny'
    assert {f'net_{net}_{i}.pth' for net in 'gr' for i in (2, 4, 'latest')} <= {p.name for p in home.glob('models/*')}
    assert {'2.state', '4.state'} <= {p.name for p in home.glob('training_states/*')}
    assert (home / 'options.yml').is_file() and (home / 'metrics.jsonl').is_file()
    assert list(home.glob('train_tiny_*.log'))


def test_the_training_line_has_the_eta_and_every_term(trained):
    line = next(line for line in trained.stderr.splitlines() if 'iter:       4' in line)
    assert re.search(r'eta: \d:\d\d:\d\d', line)
    for term in ('l_sr', 'l_facd', 'alpha', 'r_1', 'r_2', 'r_3'):
        assert re.search(rf' {term}: \d\.\d{{4}}e[+-]\d\d', line), (term, line)


def test_the_log_file_has_the_complete_run(trained, checkout):
    log = min((checkout / 'experiments' / 'tiny').glob('train_tiny_*.log')).read_text()
    for text in ('torch', 'network_g', 'Model [FACDModel] is created', 'iter:       1', 'psnr_y', 'End of training'):
        assert text in log, text


def test_tensorboard_has_losses_and_metrics(trained, checkout):
    events = EventAccumulator(str(checkout / 'tb_logger' / 'tiny'))
    events.Reload()
    assert {'losses/l_sr', 'losses/l_facd', 'alpha', 'r_1', 'metrics/val/psnr_y'} <= set(events.Tags()['scalars'])
    assert [event.step for event in events.Scalars('losses/l_facd')][:4] == [1, 2, 3, 4]


def test_resuming_continues_from_the_newest_state_and_archives_nothing(resumed, checkout):
    assert resumed.returncode == 0, resumed.stderr
    assert re.search(r'Resuming from .*4\.state \(saved .*\): epoch \d+, iter 4\.', resumed.stderr)
    assert 'iter:       5' in resumed.stderr and 'iter:       4' not in resumed.stderr
    assert [path.name for path in (checkout / 'experiments').glob('tiny*')] == ['tiny']
    for network in ('EDSRStudent model from .*net_g_4.pth', 'TapRegressors model from .*net_r_4.pth'):
        assert re.search(f'Loading {network}', resumed.stderr), resumed.stderr


def test_the_resumed_run_keeps_the_learning_rate_schedule(resumed):
    assert 'lr:(5.000e-04,)' in resumed.stderr  # 1e-3, halved at iteration 3


@pytest.fixture(scope='module')
def tested(resumed, checkout: Path, data: Path) -> subprocess.CompletedProcess[str]:
    opt = tiny_test_opt(data)
    opt['path']['pretrain_network_g'] = 'experiments/tiny/models/net_g_latest.pth'
    option_file = write_yml(opt, checkout / 'tiny_test.yml')
    return run_in_new_interpreter('facd_basicsr/test.py', '-opt', option_file, cwd=checkout)


def results(text: str) -> list[float]:
    """The values in the only row of the final table."""
    return [float(value) for value in re.search(r'^pictures +(.*)$', text, re.MULTILINE).group(1).split()]


def test_testing_prints_and_logs_y_first_and_then_rgb(tested, checkout):
    assert tested.returncode == 0, tested.stderr
    log = next((checkout / 'results' / 'tiny_test').glob('test_tiny_test_*.log')).read_text()
    for text in (tested.stderr, log):
        assert re.search(r'^set +psnr_y +ssim_y +psnr_rgb$', text, re.MULTILINE)
        assert len(results(text)) == 3


@pytest.fixture(scope='module')
def killed_and_resumed(checkout: Path, data: Path, teacher_weights: Path) -> Path:
    """A run by two teachers below ``checkout`` that was killed and resumed, with its log and curves deleted; and a set
    in datasets/."""
    opt = with_two_teachers(tiny_train_opt(data, teacher_weights)) | {'name': 'killed'}
    child = Child(opt, checkout, 6)
    child.wait_for(5)
    child.kill()
    assert child.end() == -signal.SIGKILL
    assert Child(opt, checkout, 6, '--auto_resume').end() == 0
    folder = checkout / 'experiments' / 'killed'
    for log in folder.glob('*.log'):
        log.unlink()
    shutil.rmtree(checkout / 'tb_logger' / 'killed')
    benchmark = checkout / 'datasets' / 'Two'
    benchmark.mkdir(parents=True)
    (benchmark / 'GTmod12').symlink_to(data / 'GT')
    (benchmark / 'LRbicx2').symlink_to(data / 'LQ')
    return folder


def test_a_run_without_its_log_is_tested_without_an_option_file(killed_and_resumed, checkout):
    named, found = (
        run('facd_basicsr/test.py', '--run', killed_and_resumed, *sets, cwd=checkout)
        for sets in (['--sets', checkout / 'datasets' / 'Two'], ['--debug'])
    )
    assert named.returncode == found.returncode == 0, named.stderr + found.stderr
    assert {path.name for path in (checkout / 'results').glob('*killed')} == {'killed', 'debug_killed'}
    rows = [re.search(r'^Two +(.*)$', done.stderr, re.MULTILINE).group(1).split() for done in (named, found)]
    validation = read_run_folder(killed_and_resumed).metrics.validation['val']
    assert rows[0] == rows[1] == [f'{validation[metric][6]:.4f}' for metric in ('psnr_y', 'ssim_y', 'psnr_rgb')]


def test_a_run_without_its_log_is_reported_exported_and_benchmarked(killed_and_resumed, checkout):
    def facd(*command: str | Path) -> str:
        done = run('-m', 'facd_basicsr.cli', *command, cwd=checkout)
        assert done.returncode == 0, done.stderr
        return done.stdout

    facd('report', killed_and_resumed)
    page = (killed_and_resumed / 'report.html').read_text()
    assert '6 of 6 iterations; finished.' in page and 'Session 2' in page and 'l_facd' in page
    assert 'taught by EDSR and EDSR with FACDLoss' in page and 'teacher_2' in page and 'to teacher 2' in page
    latest = killed_and_resumed / 'models' / 'net_g_latest.pth'
    assert 'PSNR-Y in validation: val ' in facd('export', latest, '--out', checkout / 'exported', '--no-onnx')
    facd('upscale', checkout / 'datasets' / 'Two' / 'LRbicx2', '-o', checkout / 'upscaled', '--student', latest)
    options = killed_and_resumed / 'options.yml'
    table = facd(
        'benchmark', '--run', killed_and_resumed, '--teacher', options, '--out', checkout / 'table', '--sets', 'Two'
    )
    assert re.findall(r'^ ?(killed|teacher \d) ', table, re.MULTILINE)[:3] == ['killed', 'teacher 1', 'teacher 2']
    assert 'Feature PSNR' in table and 'teacher 2, point 3' in table


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--sets', 'Set5'], r'--sets: Set5: no such folder: datasets/Set5/GTmod12; accepted: Two, or a folder with'),
        (['--force_yml', 'val:metrisc=~'], r'killed: val.metrisc: unknown key; did you mean'),
        (['-opt', 'x.yml'], r'not allowed with argument --run'),
    ],
)
def test_what_a_run_cannot_be_tested_on_is_refused(killed_and_resumed, checkout, flags, message):
    done = run('facd_basicsr/test.py', '--run', killed_and_resumed, *flags, cwd=checkout)
    assert done.returncode == 2 and re.search(message, done.stderr), done.stderr


# As a BasicSR user: the shim alone, since importing the package would register its networks too.
STOCK_TEST = """
import runpy
runpy.run_path('facd_basicsr/compat.py')
from basicsr.test import test_pipeline
test_pipeline('.')
"""
RCAN = {'num_feat': 16, 'num_group': 2, 'num_block': 1, 'upscale': 2}


@pytest.mark.parametrize(
    ('student', 'stock'),
    [(STUDENT, {**STUDENT, 'type': 'EDSR'}), ({'type': 'RCANStudent', **RCAN}, {'type': 'RCAN', **RCAN})],
    ids=['EDSR', 'RCAN'],
)
def test_basicsrs_own_test_script_gives_the_same_metrics_with_its_stock_network(checkout, data, student, stock):
    torch.manual_seed(5)
    opt = tiny_test_opt(data)
    opt |= {'name': student['type'], 'network_g': student}
    opt['path']['pretrain_network_g'] = str(checkout / f'{student["type"]}.pth')
    torch.save({'params': build_network(student).state_dict()}, opt['path']['pretrain_network_g'])
    ours = evaluate(
        parser(is_train=False).parse_args(['-opt', str(write_yml(opt, checkout / 'ours.yml'))]), checkout, console=False
    )

    opt |= {'name': f'stock_{stock["type"]}', 'network_g': {**stock, 'num_in_ch': 3, 'num_out_ch': 3}}
    done = run('-c', STOCK_TEST, '-opt', write_yml(opt, checkout / 'stock.yml'), cwd=checkout)
    assert done.returncode == 0, done.stderr
    theirs = dict(re.findall(r'# (\w+): ([\d.]+)', done.stderr))
    assert theirs == {metric: f'{value:.4f}' for metric, value in ours['pictures'].items()}


def test_a_students_checkpoint_loads_strictly_in_the_stock_network(resumed, checkout):
    checkpoint = torch.load(checkout / 'experiments/tiny/models/net_g_latest.pth', weights_only=True)
    assert list(checkpoint) == ['params']
    EDSR(3, 3, num_feat=4, num_block=3, upscale=2).load_state_dict(checkpoint['params'], strict=True)


@pytest.mark.parametrize(
    ('script', 'overrides', 'message'),
    [
        ('train.py', ['train:totl_iter=3'], r"tiny.yml: train.totl_iter: unknown key; did you mean 'total_iter'\?"),
        (
            'train.py',
            ['teacher:weights=absent.pth'],
            r'tiny.yml: teacher.weights: no such file: absent.pth; docs/teachers',
        ),
        (
            'train.py',
            ['teacher:network:num_block=4'],
            r'teacher.weights: .* does not fit EDSR: keys 4 mi',
        ),
        ('train.py', ['datasets:train:gt_size=64'], r'datasets.train.gt_size: 64, but 0000_s001 in .* is \(48, 48\)'),
        (
            'test.py',
            ['path:pretrain_network_g=absent.pth'],
            r'path.pretrain_network_g: no such file: absent.pth; train it',
        ),
    ],
)
def test_user_errors_are_one_line_on_stderr_and_exit_code_2(tested, checkout, script, overrides, message):
    before = files(checkout)
    option_file = {'train.py': 'tiny.yml', 'test.py': 'tiny_test.yml'}[script]
    failed = run(f'facd_basicsr/{script}', '-opt', option_file, '--force_yml', *overrides, cwd=checkout)
    assert failed.returncode == 2, failed.stderr
    assert re.match(rf'error: .*{message}', failed.stderr.splitlines()[-1]), failed.stderr
    assert 'Traceback' not in failed.stderr
    assert files(checkout) == before  # nothing created, renamed or archived


def test_results_that_cannot_be_written_are_a_line(test_opt, tmp_path, monkeypatch):
    test_opt['path']['pretrain_network_g'] = str(tmp_path / 'student.pth')
    torch.save({'params': build_network(STUDENT).state_dict()}, tmp_path / 'student.pth')
    args = parser(is_train=False).parse_args(['-opt', str(write_yml(test_opt, tmp_path / 'opt.yml'))])
    (tmp_path / 'results').touch()
    with pytest.raises(
        UserError, match=r'^cannot create .*results/tiny_test: .*results is not a writable directory; a'
    ):
        evaluate(args, root=tmp_path, console=False)
    (tmp_path / 'results').unlink()
    full = Mock(side_effect=OSError(28, 'No space left on device', 'results'))
    monkeypatch.setattr('facd_basicsr.test.make_exp_dirs', full)
    with pytest.raises(UserError, match=r'^results: No space left on device; once that is fixed'):
        evaluate(args, root=tmp_path, console=False)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob('*') if '__pycache__' not in path.parts)
