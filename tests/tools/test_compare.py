"""``facd compare`` as a user runs it: killed, resumed, reported."""

import contextlib
import copy
import csv
import functools
import importlib.util
import io
import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from statistics import median

import cv2
import pytest
import torch
from conftest import changed, run, tiny_test_opt, tiny_train_opt, write_yml
from processes import FORKED, act_as_python

from facd_basicsr.errors import UserError
from facd_basicsr.tools.compare import compare


def command(path: Path, jobs: int = 2) -> list[str]:
    return ['-m', 'facd_basicsr.cli', 'compare', str(path), '--jobs', str(jobs)]


class Forked:
    """``subprocess.Popen`` of a run of a comparison, without the seconds in which Python imports torch."""

    def __init__(self, command: list[str], stdout: io.TextIOWrapper, env: dict[str, str], **_: object) -> None:
        output = Path(stdout.name)
        self._process = FORKED.Process(target=act_as_python, args=(command[1:], Path.cwd(), env, output, output))
        self._process.start()
        self.terminate, self.wait = self._process.terminate, self._process.join

    def poll(self) -> int | None:
        return self._process.exitcode

    returncode = property(poll)


@pytest.fixture(scope='module')
def in_process(checkout: Path) -> Callable[..., dict]:
    """``compare`` in this process, with runs in forked ones, which is faster; it writes into the checkout."""

    @functools.wraps(compare)
    def compared(*args: object, **kwargs: object) -> dict:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(checkout)
            for module in ('tools.compare', 'comparison.run', 'comparison.run_record'):
                patch.setattr(f'facd_basicsr.{module}.root_path', lambda: checkout)
            patch.setattr('facd_basicsr.comparison.run.subprocess.Popen', Forked)
            return compare(*args, **kwargs)

    return compared


@pytest.fixture(scope='module')
def comparison(data: Path, teacher_weights: Path, checkout: Path, request: pytest.FixtureRequest) -> dict:
    """The content of a comparison file in the checkout: two methods, two seeds, with LPIPS where it is installed."""
    facd = tiny_train_opt(data, teacher_weights)
    facd['datasets']['train']['dataset_enlarge_ratio'] = 4
    facd['logger'] |= {'print_freq': 2, 'save_checkpoint_freq': 4}
    facd['train']['total_iter'] = 8
    student = copy.deepcopy(facd) | {'model_type': 'SRModel'}
    for key in ('teacher', 'taps', 'network_r'):
        del student[key]
    student['train']['pixel_opt'] = {'type': 'L1Loss'}
    del student['train']['distill_opt']
    test_opt = tiny_test_opt(data)
    test_opt['path']['pretrain_network_g'] = 'none.pth'
    if importlib.util.find_spec('torchmetrics'):
        test_opt['val']['metrics']['lpips'] = request.getfixturevalue('lpips')
    for name, opt in (('facd', facd), ('student', student), ('test', test_opt)):
        write_yml(opt, checkout / f'{name}.yml')
    return {
        'name': 'tiny',
        'seeds': [0, 1],
        'baseline': 'Student',
        'test': {'base': 'test.yml'},
        'methods': {'Student': {'base': 'student.yml'}, 'FACD': {'base': 'facd.yml'}},
    }


# facd, killed with all that it has started as soon as the first run has its record
KILLED = """
import os, signal
from facd_basicsr.cli import main
from facd_basicsr.comparison import run
score = run._score
def score_and_die(*args):
    score(*args)
    os.killpg(0, signal.SIGKILL)
run._score = score_and_die
os.setpgrp()
main()
"""


@pytest.fixture(scope='module')
def finished(comparison: dict, checkout: Path, in_process: Callable[..., dict]) -> tuple[str, dict[str, int]]:
    """A comparison that was killed after its first run and then resumed: its output, and its records when killed."""
    path = write_yml(comparison, checkout / 'tiny.yml')
    killed = run('-c', KILLED, *command(path, jobs=1)[2:], cwd=checkout)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    times = {p.name: p.stat().st_mtime_ns for p in (checkout / 'results' / 'tiny' / 'runs').glob('*.json')}
    _leave_half_trained(checkout)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        in_process(path, jobs=2)
    return printed.getvalue(), times


def _leave_half_trained(checkout: Path) -> None:
    """Leaves FACD_seed1 as if killed after 4 of 8 iterations: started, with a state, without results."""
    experiment = checkout / 'experiments' / 'tiny_FACD_seed1'
    shutil.rmtree(experiment, ignore_errors=True)
    option_file = checkout / 'results' / 'tiny' / 'options' / 'FACD_seed1.yml'
    half = run('-m', 'facd_basicsr.train', '-opt', option_file, '--force_yml', 'train:total_iter=4', cwd=checkout)
    assert half.returncode == 0 and (experiment / 'training_states' / '4.state').is_file()
    for path in experiment.glob('models/*_latest.pth'):
        path.unlink()
    (checkout / 'results' / 'tiny' / 'runs' / 'FACD_seed1.log').write_text('started\n')


def test_a_killed_comparison_resumes_and_reports_every_run(finished, checkout):
    _, times = finished
    folder = checkout / 'results' / 'tiny'
    assert 1 <= len(times) < 4
    assert all((folder / 'runs' / name).stat().st_mtime_ns == time for name, time in times.items())
    assert {p.name for p in folder.iterdir()} == {
        '.lock', 'options', 'runs', 'results.json', 'table.md', 'table.tex', 'table.csv', 'curves.png', 'crops.png',
    }  # fmt: skip
    results = json.loads((folder / 'results.json').read_text())
    assert [(r['method'], r['seed']) for r in results['runs']] == [
        ('Student', 0), ('FACD', 0), ('Student', 1), ('FACD', 1),
    ]  # fmt: skip


def test_students_of_one_architecture_have_one_latency(finished, checkout):
    latencies = json.loads((checkout / 'results' / 'tiny' / 'results.json').read_text())['latency_ms']
    assert list(latencies) == ['teacher', 'Student', 'FACD']
    assert latencies['Student'] == latencies['FACD']


def test_the_time_left_over_all_runs_is_printed(finished):
    assert re.search(r'\d of 4 runs trained, about 1 min left for all', finished[0])


def test_a_stopped_run_resumes_from_its_newest_state(finished, checkout):
    runs = checkout / 'results' / 'tiny' / 'runs'
    assert 'Resuming from' in (runs / 'FACD_seed1.log').read_text()


def test_a_finished_run_keeps_only_the_latest_networks(finished, checkout):
    experiment = checkout / 'experiments' / 'tiny_FACD_seed0'
    assert {p.name for p in (experiment / 'models').iterdir()} == {'net_g_latest.pth', 'net_r_latest.pth'}
    assert not list((experiment / 'training_states').iterdir())


def test_the_table_holds_the_means_of_the_records_and_paired_differences(finished, checkout):
    folder = checkout / 'results' / 'tiny'
    with (folder / 'table.csv').open() as file:
        rows = list(csv.DictReader(file))
    psnr = {(row['method'], row['seed']): float(row['psnr_y']) for row in rows}
    facd = [psnr['FACD', seed] for seed in '01']
    student = [psnr['Student', seed] for seed in '01']
    lines = (folder / 'table.md').read_text().splitlines()
    line = next(line for line in lines if line.startswith('| FACD | 2 |'))
    assert f'{sum(facd) / 2:.3f} ± ' in line
    assert f'{(sum(facd) - sum(student)) / 2:+.3f}' in line
    assert ('bicubic', '') in psnr and ('teacher', '') in psnr


def test_lpips_of_the_test_file_has_a_table_whose_lowest_mean_is_bold(finished, checkout, lpips):
    folder = checkout / 'results' / 'tiny'
    results = json.loads((folder / 'results.json').read_text())
    assert results['metrics'] == {'lpips': {**lpips, 'better': 'lower'}}
    bicubic, teacher = (record['means']['pictures']['lpips'] for record in results['references'])
    assert 0 <= bicubic < 0.001 < teacher  # smooth pictures
    found: dict[str, list[float]] = {}
    for record in results['runs']:
        found.setdefault(record['method'], []).append(record['means']['pictures']['lpips'])
    mean = {method: sum(values) / 2 for method, values in found.items()}
    table = (folder / 'table.md').read_text().partition('lpips (lower is better), x2\n')[2].partition('Cost')[0]
    rows = [line[2:].split(' | ') for line in table.splitlines() if ' ± 0' in line]
    assert {method: '**' in cell for method, _, cell, _ in rows} == {
        method: f'{value:.4f}' == f'{min(mean.values()):.4f}' for method, value in mean.items()
    }
    assert f'{mean["FACD"]:.4f} ± ' in table and f'{mean["FACD"] - mean["Student"]:+.4f}' in table


def test_records_have_costs_curves_and_features(finished, checkout):
    record = json.loads((checkout / 'results' / 'tiny' / 'runs' / 'FACD_seed1.json').read_text())
    assert record['versions'].startswith('facd_basicsr ') and record['machine']
    assert record['iterations'] == 8 and record['seconds_per_iter'] > 0 and record['flops'] > 0
    assert [step for step, _ in record['curves']['alpha']][-2:] == [6, 8]
    assert {'metrics/val/psnr_y', 'losses/l_facd', 'r_1'} <= record['curves'].keys()
    assert record['means']['pictures'].keys() >= {'psnr_y', 'ssim_y', 'psnr_rgb', 'feature_psnr'}


def test_the_pictures_show_every_method(finished, checkout):
    folder = checkout / 'results' / 'tiny'
    assert cv2.imread(str(folder / 'curves.png')).std() > 0
    crops = cv2.imread(str(folder / 'crops.png'))
    assert crops is not None and crops.shape[1] > 5 * 100


def test_the_command_does_not_train_finished_runs_again(finished, checkout):
    done = run(*command(checkout / 'tiny.yml'), cwd=checkout)
    assert done.returncode == 0, done.stderr
    assert ': training;' not in done.stdout and 'FACD' in done.stdout


@pytest.mark.slow
def test_other_test_sets_are_evaluated_without_training(finished, in_process, comparison, checkout, capsys):
    test = changed(comparison, 'test.datasets', {'test_1': {'name': 'renamed'}})
    results = in_process(write_yml(test, checkout / 'renamed.yml'), jobs=1)
    assert ': training;' not in capsys.readouterr().out
    assert all(set(run['means']) == {'renamed'} for run in results['runs'])


@pytest.mark.slow
def test_a_failed_run_is_named_and_the_others_are_reported(comparison, checkout):
    bad = changed(comparison, 'methods.FACD.taps', [{'student': 'body.9', 'teacher': 'body.0'}]) | {'name': 'failing'}
    bad['methods']['FACD']['train'] = {'distill_opt': {'layer_weights': [1.0]}}
    bad['seeds'] = [0]
    models = checkout / 'experiments' / 'failing_FACD_seed0' / 'models'  # an older experiment's, of another network
    models.mkdir(parents=True)
    torch.save({'params': {'weight': torch.zeros(1)}}, models / 'net_g_latest.pth')
    failed = run(*command(write_yml(bad, checkout / 'failing.yml')), cwd=checkout)
    assert failed.returncode == 2
    assert "1 of 2 runs failed: FACD_seed0: error: taps[0].student: 'body.9' is not in" in failed.stderr
    assert '| Student | 1 |' in (checkout / 'results' / 'failing' / 'table.md').read_text()


@pytest.mark.slow
def test_students_of_two_architectures_are_compared_side_by_side(comparison, checkout):
    compact = {'type': 'SRVGGNetCompact', 'num_feat': 4, 'num_conv': 3, 'upscale': 2}
    taps = [{'student': path, 'teacher': block} for path, block in (('body.3', 'body.0'), ('body.8:input', 'body.1'))]
    methods = {
        **comparison['methods'],
        'Compact': {'base': 'student.yml', 'network_g': compact},
        'Compact_FACD': {
            'base': 'facd.yml',
            'network_g': compact,
            'taps': taps,
            'train': {'distill_opt': {'layer_weights': [0.5, 0.5]}},
        },
    }
    content = comparison | {'name': 'two', 'baseline': ['Student', 'Compact'], 'methods': methods, 'seeds': [0]}
    done = run(*command(write_yml(content, checkout / 'two.yml')), '--iterations', '2', cwd=checkout)
    assert done.returncode == 0, done.stderr
    folder = checkout / 'results' / 'two_2'
    with (folder / 'table.csv').open() as file:
        psnr = {row['method']: float(row['psnr_y']) for row in csv.DictReader(file)}
    lines = (folder / 'table.md').read_text().splitlines()
    rows = [[cell.strip(' *') for cell in line.split('|')[1:-1]] for line in lines if line.startswith('|')]
    # of the tables of five columns the first, which is PSNR-Y
    quality, cost = ({row[0]: row for row in reversed(rows) if len(row) == width} for width in (5, 10))
    assert quality['method'][:3] == ['method', 'student', 'seeds'] and quality['method'][4].endswith('Δ vs baseline')
    for method, student, base in (
        ('Student', 'EDSRStudent', None),
        ('FACD', 'EDSRStudent', 'Student'),
        ('Compact', 'SRVGGNetCompact', None),
        ('Compact_FACD', 'SRVGGNetCompact', 'Compact'),
    ):
        difference = '-' if base is None else f'{psnr[method] - psnr[base]:+.3f}'
        assert quality[method] == [method, student, '1', f'{psnr[method]:.3f}', difference]
        # 3 x 4, three of 4 x 4, 4 x 12 with 9 weights each, their biases, and four PReLU of 4 slopes
        size = '1,016' if student == 'SRVGGNetCompact' else cost['Student'][2]
        assert cost[method][1:3] == [student, size]
    assert cost['Student'][2] != '1,016'
    assert 'baseline of its own student (Student, Compact)' in (folder / 'table.md').read_text()
    notes = [note for path in (folder / 'runs').glob('*.json') for note in json.loads(path.read_text())['notes']]
    assert all('no net_r_latest.pth beside' in note for note in notes)  # not that a tap is another network's
    assert cv2.imread(str(folder / 'crops.png')) is not None


def test_changed_options_are_refused_with_the_key(finished, in_process, comparison, checkout):
    path = write_yml(
        changed(comparison, 'methods.FACD.train', {'distill_opt': {'lambda': 16}}), checkout / 'changed.yml'
    )
    with pytest.raises(UserError, match=r'methods.FACD: train.distill_opt.lambda changed since .* was started'):
        in_process(path, jobs=1)


def test_a_method_that_train_py_refuses_is_refused_before_anything_is_trained(in_process, comparison, checkout):
    bad = changed(comparison, 'methods.FACD.train', {'distill_opt': {'lamda': 16}}) | {'name': 'bad'}
    with pytest.raises(UserError, match=r'methods.FACD.train.distill_opt.lamda: unknown key'):
        in_process(write_yml(bad, checkout / 'bad.yml'), jobs=1)
    absent = changed(comparison, 'methods.FACD.path', {'pretrain_network_g': 'none.pth'}) | {'name': 'absent'}
    with pytest.raises(UserError, match=r'methods.FACD: path.pretrain_network_g: no such file: none.pth'):
        in_process(write_yml(absent, checkout / 'absent.yml'), jobs=1)
    assert not [path for name in ('bad', 'absent') for path in (checkout / 'experiments').glob(f'{name}_*')]


def test_equal_time_of_a_method_that_is_not_there_is_refused(in_process, comparison, checkout):
    path = write_yml(comparison | {'name': 'unequal'}, checkout / 'unequal.yml')
    with pytest.raises(UserError, match=r'^--equal-time Facd: accepted: one of the methods, Student, FACD$'):
        in_process(path, jobs=1, equal_time='Facd')
    assert not (checkout / 'results' / 'unequal').exists()


@pytest.mark.parametrize('option', ['--jobs', '--iterations', '--equal-time'])
def test_what_is_for_runs_is_refused_with_their_results(option, tmp_path):
    done = run('-m', 'facd_basicsr.cli', 'compare', 'results.json', '--into', 'page.md', option, '7', cwd=tmp_path)
    assert done.returncode == 2
    assert f'{option}: 7, with results.json; accepted: a comparison file, whose runs it is for' in done.stderr


@pytest.mark.slow
def test_runs_of_equal_time_have_iterations_by_step_times_that_are_kept(comparison, checkout):
    path = write_yml(comparison | {'name': 'timed', 'seeds': [0]}, checkout / 'timed.yml')
    done = run(*command(path), '--equal-time', 'FACD', '--iterations', '4', cwd=checkout)
    assert done.returncode == 0, done.stderr
    measured = {p: p.read_bytes() for p in (checkout / 'results' / 'timed' / 'step_times' / 'runs').glob('*.json')}
    steps = [json.loads(text) for text in measured.values()]
    assert sorted(step['method'] for step in steps) == [*['FACD'] * 3, *['Student'] * 3]
    seconds = {path.stem: json.loads(text)['seconds_per_iter'] for path, text in measured.items()}
    slower = median(seconds[f'FACD_seed{i}'] / seconds[f'Student_seed{i}'] for i in range(3))
    assert not list((checkout / 'experiments').glob('timed_step_times*'))
    folder = checkout / 'results' / 'timed_4_equal_time_FACD'
    results = json.loads((folder / 'results.json').read_text())
    iterations = {record['method']: record['iterations'] for record in results['runs']}
    assert iterations == {'Student': round(4 * slower), 'FACD': 4} and iterations['Student'] > 4
    assert results['differing'] == {} and 'every run takes the time of one of FACD' in (folder / 'table.md').read_text()
    again = run(*command(path), '--equal-time', 'FACD', '--iterations', '4', cwd=checkout)
    assert again.returncode == 0 and ': training;' not in again.stdout
    assert all(p.read_bytes() == text for p, text in measured.items())
