import json
import multiprocessing
import re
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import torch
from conftest import REPOSITORY, SHARED_DATA, imported_script, picture, run, write_yml

from facd_basicsr.data.bicubic import bicubic_lr
from facd_basicsr.errors import UserError


def benchmark(name: str) -> ModuleType:
    """A script of benchmarks/, imported."""
    return imported_script(REPOSITORY / 'benchmarks' / f'{name}.py')


def test_train_speed_writes_its_results(train_opt, tmp_path):
    option_file = write_yml(train_opt, tmp_path / 'opt.yml')
    script = REPOSITORY / 'benchmarks' / 'train_speed.py'
    out = tmp_path / 'results' / 'tiny.json'
    done = run(script, '-opt', option_file, '--iterations', '4', '--random-teacher', '--out', out, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result['iterations'] == 4
    assert result['seconds_per_iteration_median'] > 0 and result['peak_memory_gib'] > 0
    assert 0 < result['data_share'] < 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ['opt.yml', 'results']
    few = run(script, '-opt', option_file, '--iterations', '2', '--out', out, cwd=tmp_path)
    assert few.returncode == 2 and '--iterations: 2; accepted: more than 2' in few.stderr


@pytest.mark.slow
def test_start_up_times_imports_the_first_batch_and_the_first_iteration(train_opt, tmp_path, monkeypatch, capsys):
    start_up = benchmark('start_up')
    monkeypatch.setattr(start_up, 'WARM_UP', 0)
    option_file, out = write_yml(train_opt, tmp_path / 'opt.yml'), tmp_path / 'results' / 'start_up.json'
    monkeypatch.setattr(sys, 'argv', ['start_up.py', str(option_file), '--turns', '1', '--out', str(out)])
    start_up.main()
    result = json.loads(out.read_text())
    found = result['runs'][str(option_file)]
    assert found['baseline_median'] > result['facd_help_median'] > 0
    assert found['ratio'] == pytest.approx(found['train_median'] / found['baseline_median'], abs=0.01)
    assert found['first_iteration_seconds'] > 0
    assert str(option_file) in capsys.readouterr().out


def test_the_variants_of_the_loss_benchmark_compute_the_same_term():
    loss = benchmark('loss')
    case = loss.Case(4, 3, 5, 'cpu')
    for variant in ('ours', 'ours by cdist'):
        assert 0 <= max(loss.differences(case, variant).values()) < 1e-4
    assert loss.milliseconds(case, loss.VARIANTS, 1, 'cpu').keys() == loss.VARIANTS.keys()
    assert loss.growth({n: 3 * n**2 for n in loss.SWEEP}) == 2


def test_bicubic_writes_differences_and_psnr(tmp_path, monkeypatch, capsys):
    for name in ('Set5', 'Set14'):
        for scale in (2, 3, 4):
            for folder in (f'GTx{scale}', f'LRx{scale}'):
                (tmp_path / name / folder).mkdir(parents=True)
            gt = picture(0, 48, 72)
            lr = bicubic_lr(gt, scale).astype(int)
            lr[5, 5, 0] += 5 if lr[5, 5, 0] < 128 else -5
            cv2.imwrite(str(tmp_path / name / f'GTx{scale}' / '1.png'), gt)
            cv2.imwrite(str(tmp_path / name / f'LRx{scale}' / '1.png'), lr.astype(np.uint8))
    out = tmp_path / 'results' / 'bicubic.json'
    monkeypatch.setattr(sys, 'argv', ['bicubic.py', str(tmp_path), '--out', str(out)])
    benchmark('bicubic').main()
    result = json.loads(out.read_text())['Set5 x4']
    assert (result['images'], result['our_equal_images'], result['our_largest_difference']) == (1, 0, 5)
    assert result['our_mean_difference'] == pytest.approx(5 / (12 * 18 * 3), abs=1e-4)
    assert min(result['psnr_y_our_lr'], result['psnr_y_their_lr'], result['psnr_y_published_protocol']) > 30
    assert 'Set14 x4' in capsys.readouterr().out


def test_validation_writes_times_of_both_and_the_difference_of_their_metrics(tmp_path, monkeypatch, capsys):
    for name in ('GT', 'LQ'):
        (tmp_path / name).mkdir()
    for i in range(2):
        gt = picture(i, 64, 80)
        cv2.imwrite(str(tmp_path / 'GT' / f'{i}.png'), gt)
        cv2.imwrite(str(tmp_path / 'LQ' / f'{i}.png'), bicubic_lr(gt, 4))
    out = tmp_path / 'validation.json'
    folders = [str(tmp_path / 'GT'), str(tmp_path / 'LQ')]
    arguments = ['--students', 'EDSR 16x4', '--turns', '1', '--threads', str(torch.get_num_threads())]
    monkeypatch.setattr(sys, 'argv', ['validation.py', '--data', *folders, *arguments, '--out', str(out)])
    threads = cv2.getNumThreads()
    benchmark('validation').main()
    cv2.setNumThreads(threads)
    result = json.loads(out.read_text())
    student = result['students']['EDSR 16x4']
    assert result['images'] == 2 and min(student['seconds'].values()) > 0
    assert student['metrics'].keys() == student['differences'].keys() and len(student['metrics']) == 4
    assert max(student['differences'].values()) < 1e-3
    assert 'EDSR 16x4' in capsys.readouterr().out


def test_teacher_cache_writes_times_of_a_step_and_differences_of_the_teachers_images(
    train_opt, tmp_path, monkeypatch, capsys
):
    out = tmp_path / 'results' / 'teacher_cache.json'
    arguments = ['teacher_cache.py', str(write_yml(train_opt, tmp_path / 'opt.yml')), '--patches', '2', '--turns', '1']
    monkeypatch.setattr(sys, 'argv', [*arguments, '--out', str(out)])
    benchmark('teacher_cache').main()
    result = json.loads(out.read_text())
    assert result['patches'] == 4 and len(result['ms']) == 3 and min(result['ms'].values()) > 0
    assert result['db']['whole, cropped, 8 bits'] <= result['db']['whole, cropped'] < 100
    assert result['db']['flipped'] < 100
    assert 'teacher supervision, cached' in capsys.readouterr().out


@pytest.mark.skipif(not (SHARED_DATA / 'benchmark').is_dir(), reason='no shared data')
@pytest.mark.parametrize(('name', 'published'), [('Set5', 28.42), pytest.param('Set14', 26.00, marks=pytest.mark.slow)])
def test_published_lr_images_are_reproduced_bit_for_bit_and_published_psnr_too(name, published):
    result = benchmark('bicubic').compare(SHARED_DATA / 'benchmark' / name, 4)
    assert result['our_equal_images'] == result['images'] and result['our_largest_difference'] == 0
    assert result['psnr_y_published_protocol'] == pytest.approx(published, abs=0.01)


def with_paper_loss(train_opt: dict) -> dict:
    """Sets the paper's weights, which the baseline reads from the option file."""
    train_opt['train']['distill_opt'] |= {'lambda': 4, 'layer_weights': [0.5, 0.3, 0.2]}
    return train_opt


def test_the_naive_baseline_computes_the_same_terms_and_gradients(train_opt, tmp_path):
    import distillation_models as models
    import naive_distillation  # noqa: F401

    option_file = write_yml(with_paper_loss(train_opt), tmp_path / 'opt.yml')
    opt = models.options(option_file, tmp_path, batch=4, patch=8)
    ours, naive = models.ours(opt), models.naive(opt)
    naive.net_r.load_state_dict(ours.net_r.state_dict())
    batch = models.random_batch(opt)
    for model in (ours, naive):
        model.feed_data(batch)
        model.optimize_parameters(1)
    expected = {name: naive.get_current_log()[name] for name in ('l_sr', 'l_facd')}
    assert {name: ours.get_current_log()[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    for net_ours, net_naive in ((ours.net_g, naive.net_g), (ours.net_r, naive.net_r)):
        for a, b in zip(net_ours.parameters(), net_naive.parameters()):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)


def test_distillation_step_compares_a_step_with_its_floor_and_the_baseline(train_opt, tmp_path):
    option_file = write_yml(with_paper_loss(train_opt), tmp_path / 'opt.yml')
    out = tmp_path / 'step.json'
    script = REPOSITORY / 'benchmarks' / 'distillation_step.py'
    arguments = ['--batch', '2', '--patch', '8', '--turns', '2', '--executions', 'fp32', 'bf16, channels_last']
    done = run(script, option_file, *arguments, '--split', 'fp32', '--out', out, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    runs = [f'{what} {how}' for how in ('fp32', 'bf16, channels_last') for what in ('FACD', 'floor')]
    assert list(result['seconds']) == ['student alone', 'naive', *runs]
    assert list(result['split']) == ['data', 'student', 'regressors', 'teacher', 'loss', 'backward', 'optimizer']
    parts = dict(result['split'])
    assert parts.pop('data') >= 0 and min(parts.values()) > 0 and result['gflop'] > 0
    assert f'{result["to_floor"]["FACD fp32"]:.3f}' in done.stdout
    assert result['missing'] == [] and result['times_faster']['naive'] == 1


@pytest.mark.slow
def test_cost_growth_measures_each_setting_in_its_own_process(train_opt, tmp_path):
    option_file = write_yml(with_paper_loss(train_opt), tmp_path / 'opt.yml')
    script = REPOSITORY / 'benchmarks' / 'cost_growth.py'
    done = run(script, option_file, '--measure', '2', '8', '--turns', '1', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1].removeprefix('RESULT '))
    assert result['seconds'] > 0 and result['peak_gib'] >= 0


def test_threads_gives_medians_of_the_ratios_within_a_round_of_turns(capsys):
    threads = benchmark('threads')
    times = {threads.OWN: [1.0, 3.0, 2.0], 'no spins': [2.0, 3.0, 1.0]}
    ways = {name: Mock(seconds=Mock(side_effect=seconds)) for name, seconds in times.items()}
    found = threads.measure(ways, 'quiet', 3)
    assert found == {threads.OWN: {'ms': 2000.0, 'ratio': 1.0}, 'no spins': {'ms': 2000.0, 'ratio': 1.0}}
    assert capsys.readouterr().out.count('quiet') == 3


def test_scaling_adds_computation_and_communication(monkeypatch):
    scaling = benchmark('scaling')
    for name, value in (('RATE', 100.0), ('MEMORY', 10.0), ('LINK', 2.0)):
        monkeypatch.setattr(scaling, name, value)
    # 300 FLOP; 5 parameters; 4 samples of 3 elements on each of 2 GPUs, in float32
    assert scaling.step_seconds(300, trained=5, elements=3, batch=4, gpus=2) == {
        'networks': 3.0,
        'distances': 2 * (4 + 8) * 3 * 4 / 10,  # own features and both ranks', forward and backward
        'gradients': 5 * 4 / 2,  # a ring all-reduce moves 2 (R - 1) / R of them
        'features': 4 * 3 * 4 / 2,  # of the other GPU
    }


@pytest.mark.parametrize('name', ['BasicSR, lmdb', 'memory'])
def test_a_reader_of_data_loading_counts_the_crops_of_its_turns(data, name):
    module = benchmark('data_loading')
    block = module.block_of(data / 'HR.lmdb', data / 'LR.lmdb', 2, 24, 3, 0, module.SOURCES[name])
    ours, readers = multiprocessing.Pipe()
    for message in (True, True, False):
        ours.send(message)
    module.serve(readers, name, block, 0)
    for _ in range(2):
        crops, wall, cpu = ours.recv()
        assert crops > 0 and crops % 3 == 0 and wall > 0 and cpu > 0


def test_data_loading_writes_rates_and_the_ratio_of_memory_to_basicsr(data, tmp_path, monkeypatch, capsys):
    module = benchmark('data_loading')
    backends = []

    def measured(blocks: dict, turns: int, seconds: float) -> dict:
        backends.append([(block['io_backend']['type'], Path(block['dataroot_gt']).suffix) for block in blocks.values()])
        rates = {name: {'crops_per_second': 10.0, 'crops_per_cpu_second': 20.0} for name in blocks}
        return rates | {'memory': {'crops_per_second': 55.0, 'crops_per_cpu_second': 60.0}}

    monkeypatch.setattr(module, 'measure', measured)
    gt, lq, out = str(data / 'HR.lmdb'), str(data / 'LR.lmdb'), tmp_path / 'out.json'
    line = ['data_loading.py', '--gt', gt, '--lq', lq, '--scale', '2', '--gt-size', '24', '--out', str(out)]
    monkeypatch.setattr(sys, 'argv', line)
    module.main()
    without_workers, with_workers = json.loads(out.read_text())['results']
    assert without_workers['memory_to_basicsr'] == {'crops_per_second': 5.5, 'crops_per_cpu_second': 3.0}
    assert with_workers['memory_to_basicsr'] == {'crops_per_second': 5.5} and with_workers['workers'] == 2
    start_up = without_workers['memory_start_up']
    assert start_up.keys() == {'first_run', 'later_run', 'gb'} and start_up == with_workers['memory_start_up']
    assert backends[0] == [('lmdb', '.lmdb'), ('lmdb', '.lmdb'), ('disk', ''), ('memory', '.lmdb')]
    assert capsys.readouterr().out.count('5.5') == 2


def test_runtimes_are_compared_with_torch_and_those_that_are_not_installed_are_named(tmp_path, monkeypatch, capsys):
    runtimes = benchmark('runtimes')
    chosen = {name: runtimes.RUNTIMES[name] for name in ('torch', 'onnxruntime, --static --mobile')}
    chosen['another'] = (runtimes.in_torch, 'student.pth', ['no_such_package'], '')
    monkeypatch.setattr(runtimes, 'RUNTIMES', chosen)
    arguments = [
        '--size',
        '24',
        '40',
        '--turns',
        '1',
        '--threads',
        '1',
        '--out',
        str(tmp_path / 'new' / 'runtimes.json'),
    ]
    monkeypatch.setattr(sys, 'argv', ['runtimes.py', *arguments])
    threads = torch.get_num_threads()
    runtimes.main()
    torch.set_num_threads(threads)
    found = json.loads((tmp_path / 'new' / 'runtimes.json').read_text())['runtimes']
    assert list(found) == [*chosen][:2] and found['torch']['steps'] == 0
    assert 0 < found['onnxruntime, --static --mobile']['steps'] < 0.01 and found['torch']['ms'] > 0
    assert 'not installed: no_such_package' in capsys.readouterr().out


def test_the_loops_that_upscaling_is_compared_with_give_its_images(tmp_path):
    upscale = benchmark('upscale')
    weights, source = upscale.compact(tmp_path / 'compact.pth'), tmp_path / 'a.png'
    cv2.imwrite(str(source), picture(0, 24, 40))
    made = {}
    for way, turn in {
        'facd': upscale.facd(weights, 'torch', upscale.Busy()),
        **{way: upscale.loop(weights, way, upscale.Busy()) for way in ('plain loop', 'spandrel')},
    }.items():
        turn([source], tmp_path / way)
        made[way] = cv2.imread(str(tmp_path / way / 'a.png'))
    assert made['facd'].shape == (96, 160, 3) and made['facd'].std() > 10
    assert all(np.abs(made['facd'].astype(int) - image).max() <= 1 for image in made.values())


def test_a_network_is_busy_while_it_runs_on_any_thread():
    busy = benchmark('upscale').Busy()
    busy.intervals += [(1.0, 4.0), (2.0, 3.0), (3.5, 5.0), (7.0, 8.0)]
    assert busy.seconds() == 5 and busy.seconds() == 0


def test_pages_with_benchmarks_are_generated_from_the_committed_results():
    page = benchmark('performance_page')
    names = ('performance.md', 'deploy.md', 'upscale.md')
    text = ''.join((REPOSITORY / 'docs' / name).read_text(encoding='utf-8') for name in names)
    assert page.filled(text, page.RESULTS) == text
    blocks = re.findall(r'<!-- benchmark: (\S+) (\S+) -->', text)
    assert {part for part, _ in blocks} == set(page.PARTS)
    for part, name in blocks:
        exists = name == 'gpu' or (page.RESULTS / f'{name}.json').is_file()
        assert exists or name.startswith('gpu/')
        plot = REPOSITORY / 'docs' / f'performance_{part}_{name.replace("/", "_")}.png'
        assert part not in page.PLOTS or not exists or plot.is_file()
    for wrong, message in (('steps loss', 'accepted: goals, ceilings'), ('loss los', 'no such file')):
        with pytest.raises(UserError, match=message):
            page.filled(f'<!-- benchmark: {wrong} -->\n<!-- end -->', page.RESULTS)


def test_the_performance_page_compares_the_goals_on_a_gpu_with_its_results(tmp_path):
    page = benchmark('performance_page')
    blocks = '<!-- benchmark: goals gpu -->\n<!-- end -->\n<!-- benchmark: step gpu/step_EDSR_x4 -->\n<!-- end -->\n'
    blocks += '<!-- benchmark: loss gpu/loss -->\n<!-- end -->\n'
    assert page.filled(blocks, tmp_path).count('Not measured.') == 3
    card = {'machine': 'NVIDIA H100', 'threads': 16, 'versions': 'torch 2'}
    runs = ('naive', 'FACD bf16', 'floor bf16', 'FACD tf32', 'floor tf32')
    results = {
        'ceilings': card | {'copy_gb_s': 3000, 'tflop_s': {'bf16': 800}},
        'step_EDSR_x4': card
        | {'option_file': 'options/train/FACD_EDSR_x4.yml', 'batch': 16, 'patch': 48, 'turns': 20, 'gflop': 4000}
        | {'missing': ['fp32'], 'seconds': dict(zip(runs, (0.08, 0.01, 0.008, 0.04, 0.03)))}
        | {'times_faster': dict(zip(runs, (1, 7.5, 9, 2.5, 3))), 'to_floor': {'FACD bf16': 1.2, 'FACD tf32': 1.3}},
        'loss': card
        | {'batch': 16, 'channels': 256, 'size': 48, 'gradients_mib': 108.0}
        | {key: {'ours': 0.5} for key in ('ms', 'extra_mib', 'times_faster_than_literal')}
        | {'times_less_memory_than_literal': {'ours': 9}}
        | {'sweep': {'channels': 64, 'size': 24, 'extra_mib': {'ours': {'4': 1.0}}}}
        | {
            'gb_per_second': {
                'copy': 3000.0,
                'l2_mib': 50.0,
                'by_size': [
                    {'size': 48, 'feature_mib': 36.0, 'distances': 2900.0, 'share': 0.967},
                    {'size': 96, 'feature_mib': 144.0, 'distances': 2100.0, 'share': 0.7},
                ],
            }
        },
    }
    (tmp_path / 'gpu').mkdir()
    for name, result in results.items():
        (tmp_path / 'gpu' / f'{name}.json').write_text(json.dumps(result))
    found = page.filled(blocks, tmp_path)
    for line in (
        '| FACD_EDSR_x4: speed-up over naive | 5 | 7.50 | FACD bf16 |',
        '| FACD_EDSR_x4: share of the bf16 matrix-product rate | 50 % | 50 % | FACD bf16 |',
        '| distances: share of the copy bandwidth | 60 % | 70 % | features of 144.0 MiB |',
        '| FACD bf16 | 10.0 | 7.50 | 1.20 | 400 |',
        'not measured within the time limit: fp32; NVIDIA H100',
        'One tap of 144.0 MiB (L2 cache: 50.0): 2100 GB/s, a copy 3000.',
    ):
        assert line in found, found
    (tmp_path / 'gpu' / 'loss.json').write_text('{"missing": ["bandwidth"]}')
    with pytest.raises(UserError, match='lacks bandwidth'):
        page.filled(blocks, tmp_path)


def test_a_recorder_ends_its_process_at_the_time_limit_with_a_file_that_lists_what_is_missing(tmp_path):
    out = tmp_path / 'results' / 'out.json'
    lines = f"""
        import sys, time
        sys.path.insert(0, {str(REPOSITORY / 'benchmarks')!r})
        from pathlib import Path
        from recorder import Recorder
        recorder = Recorder(Path({str(out)!r}), ['a', 'b'], 1)
        if len(sys.argv) > 1:
            recorder.write('a', {{'value': 3}})
        time.sleep(60)
    """
    script = tmp_path / 'script.py'
    script.write_text(textwrap.dedent(lines))
    done = run(script, cwd=tmp_path)
    assert done.returncode == 1 and 'missing: a; b' in done.stdout and not out.exists()
    assert run(script, 'write', cwd=tmp_path).returncode == 0
    assert json.loads(out.read_text()) == {'missing': ['b'], 'value': 3}
