"""Training in this process; tests/test_train_and_test.py runs the entry points."""

import copy
import hashlib
import itertools
import re
import shlex
from functools import partial
from pathlib import Path

import cv2
import pytest
import torch
from basicsr.archs import build_network
from conftest import REPOSITORY, STUDENT, picture, write_yml
from runs import assert_same, log_text, result

from facd_basicsr.data.bicubic import bicubic_lr
from facd_basicsr.engine.logs import read_metrics
from facd_basicsr.environment import git_commit, machine
from facd_basicsr.errors import UserError, run_command
from facd_basicsr.files.download import sha256_of
from facd_basicsr.models import FACDModel
from facd_basicsr.models.nonfinite import NonFiniteGuard
from facd_basicsr.models.safe_model import SafeSRModel
from facd_basicsr.options import load_yaml, parser
from facd_basicsr.options.schema import path_keys
from facd_basicsr.tools.check import check
from facd_basicsr.tools.show import show
from facd_basicsr.train import train


def run_training(opt: dict, folder: Path, *flags: str, option_file: Path | None = None) -> list[int]:
    """Trains below ``folder`` and returns the iterations passed to ``on_iteration``."""
    iterations: list[int] = []
    path = option_file or write_yml(opt, folder / 'opt.yml')
    args = parser().parse_args(['-opt', str(path), *flags])
    train(args, root=folder, console=False, on_iteration=iterations.append)
    return iterations


def student_alone(train_opt: dict) -> dict:
    """The options of a run without a teacher."""
    opt = {key: value for key, value in train_opt.items() if key not in ('teacher', 'taps', 'network_r')}
    opt['model_type'] = 'SRModel'
    del opt['train']['distill_opt']
    opt['train']['pixel_opt'] = {'type': 'L1Loss'}
    return opt


def test_every_iteration_is_trained_although_epochs_drop_incomplete_batches(train_opt, tmp_path):
    train_opt['datasets']['train']['batch_size_per_gpu'] = 4  # of 6 images: one iteration per epoch
    train_opt['train']['total_iter'] = 5
    assert run_training(train_opt, tmp_path) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize('name', ['FFTLoss', 'WaveletLoss', 'GradientLoss'])
def test_a_student_alone_learns_by_a_pixel_loss_with_patches_of_odd_parts(train_opt, tmp_path, name):
    alone = student_alone(train_opt)
    alone['datasets']['train']['gt_size'] = 14
    alone['train'] |= {'total_iter': 2, 'pixel_opt': {'type': name, 'loss_weight': 0.05}}
    assert run_training(alone, tmp_path) == [1, 2]
    lines = read_metrics(tmp_path / 'experiments' / alone['name'] / 'metrics.jsonl')
    first, second = (line['l_pix'] for line in lines if 'l_pix' in line)
    assert 0 < second != first


def test_a_student_alone_with_partly_loaded_weights_logs_how_many(train_opt, tmp_path):
    other = {key: value for key, value in build_network(STUDENT).state_dict().items() if 'body.2' not in key}
    torch.save({'params': other}, tmp_path / 'other.pth')
    alone = student_alone(train_opt)
    alone['path'] = {'pretrain_network_g': str(tmp_path / 'other.pth'), 'strict_load_g': False}
    assert run_training(alone, tmp_path) == [1, 2, 3, 4]
    log = next(tmp_path.glob('experiments/tiny/*.log')).read_text()
    left_out = 2 * (4 * 4 * 9 + 4)  # two convolutions of a block
    total = sum(parameter.numel() for parameter in build_network(STUDENT).parameters())
    assert f'other.pth: {total - left_out:,} of the {total:,} parameters of EDSRStudent are loaded' in log


def test_the_commands_from_another_scale_of_the_page_train_x4_from_x2(train_opt, tmp_path, monkeypatch):
    """docs/training.md's, with option files of their names that take seconds."""
    section = (REPOSITORY / 'docs' / 'training.md').read_text().split('### From another scale')[1]
    commands, message = (block.strip() for block in re.findall(r'```\n(.*?)```', section, re.DOTALL)[:2])
    folder = tmp_path / 'options' / 'train'
    folder.mkdir(parents=True)
    for scale in (2, 4):
        opt = copy.deepcopy(train_opt) | {'name': f'FACD_EDSR_x{scale}', 'scale': scale}
        for network in (opt['network_g'], opt['teacher']['network']):
            network['upscale'] = scale
        opt['teacher']['weights'] = str(tmp_path / f'teacher_x{scale}.pth')
        torch.save(build_network(opt['teacher']['network']).state_dict(), opt['teacher']['weights'])
        for dataset, (gt, lq) in zip(opt['datasets'].values(), (('HR', 'LR'), ('GT', 'LQ'))):
            dataset |= {'io_backend': {'type': 'disk'}}
            for key, name in (('dataroot_gt', gt), ('dataroot_lq', lq)):
                dataset[key] = str(tmp_path / f'{name}x{scale}')
                Path(dataset[key]).mkdir()
            for index in range(3):
                image = picture(index, 48, 48)
                cv2.imwrite(f'{dataset["dataroot_gt"]}/{index}.png', image)
                cv2.imwrite(f'{dataset["dataroot_lq"]}/{index}.png', bicubic_lr(image, scale))
        write_yml(opt, folder / f'{opt["name"]}.yml')
    monkeypatch.chdir(tmp_path)
    checked = []
    for command in commands.replace('\\\n', '').splitlines():
        *start, option_file = (words := shlex.split(command))[: words.index('-opt') + 2]
        overrides = words[words.index('--force_yml') + 1 :] if '--force_yml' in words else []
        if start[:2] == ['facd', 'check']:
            checked = list(check(option_file, overrides))
        else:
            assert start[:2] == ['python', 'facd_basicsr/train.py']
            flags = ['--force_yml', *overrides] if overrides else []
            train(parser().parse_args(['-opt', option_file, *flags]), root=tmp_path, console=False)
    log = next(tmp_path.glob('experiments/FACD_EDSR_x4/*.log')).read_text()
    (line,) = re.findall(r'INFO: (path.pretrain_network_g: .* are loaded .*)', log)
    figures = re.compile(r'[\d,]{2,}')  # of tiny networks here
    assert figures.sub('', line) == figures.sub('', message)
    assert f'weights      {line}' in checked
    x2, x4 = (torch.load(f'experiments/FACD_EDSR_x{s}/models/net_g_latest.pth')['params'] for s in (2, 4))
    assert x4['upsample.2.weight'].shape == (16, 4, 3, 3)
    # four steps of Adam of about 1e-3 each; random weights would differ by 0.1
    assert all((x4[key] - value).abs().max() < 4.1e-3 for key, value in x2.items())


def test_a_batch_larger_than_an_epoch_is_refused(train_opt, tmp_path):
    train_opt['datasets']['train']['batch_size_per_gpu'] = 16
    with pytest.raises(UserError, match=r'batch_size_per_gpu: 16 for epochs of 6 samples; .*dataset_enlarge_ratio'):
        run_training(train_opt, tmp_path)
    assert not (tmp_path / 'experiments').exists()


def test_the_eta_is_never_negative(train_opt, tmp_path, monkeypatch):
    clock = itertools.count(0, 10)
    monkeypatch.setattr('basicsr.utils.logger.time.time', lambda: next(clock))
    run_training(train_opt, tmp_path)
    log = next(tmp_path.glob('experiments/tiny/*.log')).read_text()
    assert re.findall(r'eta: ([^,]+),', log)[-1] == '0:00:00'
    assert 'day' not in log


def test_the_options_of_a_run_are_an_option_file_that_repeats_it(train_opt, tmp_path):
    write_yml(train_opt, tmp_path / 'base.yml')
    (tmp_path / 'opt.yml').write_text('base: base.yml\nmanual_seed: ~\ntrain: {distill_opt: {adaptive: false}}\n')
    flags = ('--force_yml', 'train:total_iter=2', 'num_gpu=auto')
    assert run_training(train_opt, tmp_path, *flags, option_file=tmp_path / 'opt.yml') == [1, 2]
    options = tmp_path / 'experiments' / 'tiny' / 'options.yml'
    (tmp_path / 'base.yml').unlink()
    found = load_yaml(options.read_text(), '')
    assert found['manual_seed'] >= 1 and found['num_gpu'] == 'auto'
    assert found['train']['total_iter'] == 2 and found['train']['warmup_iter'] == -1
    assert found['train']['distill_opt']['adaptive'] is False and found['train']['distill_opt']['negatives'] == 'upper'
    assert set(found['path']) == set(path_keys(['network_g', 'network_r'], is_train=True))
    weights = sha256_of(tmp_path / 'experiments' / 'tiny' / 'models' / 'net_g_2.pth')
    assert run_training(train_opt, tmp_path, '--auto_resume', option_file=options) == []  # all were done
    assert run_training(train_opt, tmp_path, option_file=options) == [1, 2]
    assert sha256_of(tmp_path / 'experiments' / 'tiny' / 'models' / 'net_g_2.pth') == weights
    assert len(list((tmp_path / 'experiments').glob('tiny_archived_*'))) == 1


def test_the_options_of_a_run_say_how_and_where_each_start_ran(train_opt, tmp_path):
    run_training(train_opt, tmp_path, '--force_yml', 'train:total_iter=2')
    run_training(train_opt, tmp_path, '--auto_resume')
    path = tmp_path / 'experiments' / 'tiny' / 'options.yml'
    first, second = load_yaml(path.read_text(), '')['run']
    assert (first['iter'], second['iter'], first['ranks']) == (0, 2, 1)
    assert first['start'] < second['start']
    assert first['option_file'] == str(tmp_path / 'opt.yml')
    shown = show(str(tmp_path / 'opt.yml'), []).partition('\n\n')[2]
    assert first['option_sha256'] == second['option_sha256'] == hashlib.sha256(shown.encode()).hexdigest()
    assert f'torch {torch.__version__}' in first['versions'] and first['machine'] == machine(on_gpu=False)
    assert first.get('commit') == git_commit(REPOSITORY)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda opt: opt['taps'].pop(), r'layer_weights: \[0.5, 0.3, 0.2\] for 2 taps; accepted: one weight per tap'),
        (lambda opt: opt['taps'][0].update(student='bod.0'), r"taps\[0\].student: 'bod.0' is not in EDSRStudent"),
        (lambda opt: opt.update(network_r={'type': 'EDSR', 'upscale': 2}), r'network_r.type: EDSR does not run on'),
    ],
)
def test_options_that_do_not_fit_together_are_refused_before_a_folder_is_created(train_opt, tmp_path, change, message):
    train_opt['train']['distill_opt'].pop('layer_weights', None)
    change(train_opt)
    with pytest.raises(UserError, match=message):
        run_training(train_opt, tmp_path)
    assert not (tmp_path / 'experiments').exists() and not (tmp_path / 'tb_logger').exists()


def test_other_networks_and_one_channel_images_are_distilled_too(train_opt, tmp_path):
    network = {'type': 'SRVGGNetCompact', 'num_in_ch': 1, 'num_out_ch': 1, 'num_feat': 4, 'num_conv': 3, 'upscale': 2}
    train_opt['datasets']['train']['color'] = train_opt['datasets']['val']['color'] = 'y'
    train_opt['network_g'] = network
    train_opt['teacher'] = {'network': {**network, 'num_feat': 6}, 'weights': str(tmp_path / 'teacher.pth')}
    torch.save(build_network(train_opt['teacher']['network']).state_dict(), tmp_path / 'teacher.pth')
    train_opt['taps'] = [{'student': path, 'teacher': path} for path in ('body.1', 'body.3', 'upsampler:input')]
    assert run_training(train_opt, tmp_path) == [1, 2, 3, 4]


def test_resuming_in_the_middle_continues_the_count_and_the_schedule(train_opt, tmp_path):
    run_training(train_opt, tmp_path)
    (tmp_path / 'experiments/tiny/training_states/4.state').unlink()
    assert run_training(train_opt, tmp_path, '--auto_resume') == [3, 4]
    state = torch.load(tmp_path / 'experiments/tiny/training_states/4.state', weights_only=True)
    assert state['iter'] == 4 and state['optimizers'][0]['param_groups'][0]['lr'] == 5e-4


def with_nan_in_gt(monkeypatch: pytest.MonkeyPatch, model: type, iterations: set[int]) -> None:
    """Sets a pixel of the ground truth to nan in these iterations."""
    step = model.optimize_parameters

    def poisoned(self, current_iter):
        if current_iter in iterations:
            self.gt = self.gt.index_fill(3, torch.tensor([0]), float('nan'))
        step(self, current_iter)

    monkeypatch.setattr(model, 'optimize_parameters', poisoned)


@pytest.mark.parametrize(('model', 'term'), [(FACDModel, 'l_sr'), (SafeSRModel, 'l_pix')])
def test_a_nonfinite_step_is_skipped_and_the_run_finishes(train_opt, tmp_path, monkeypatch, model, term):
    opt = train_opt if model is FACDModel else student_alone(train_opt)
    with_nan_in_gt(monkeypatch, model, {2})
    assert run_training(opt, tmp_path) == [1, 2, 3, 4]
    home = tmp_path / 'experiments' / 'tiny'
    log = next(home.glob('*.log')).read_text()
    (line,) = re.findall(r'WARNING: (Iteration.*)', log)
    assert line.startswith(f'Iteration 2: {term} not finite; step skipped, 1 in a row, 1 in all; files: 000')
    assert line.endswith(f'batch saved as {home}/nonfinite/iter_2_rank0.pth')
    assert 'WARNING: Steps skipped, with losses or gradients not finite: 1.' in log and 'psnr_y' in log
    saved = torch.load(home / 'nonfinite' / 'iter_2_rank0.pth', weights_only=True)
    assert saved['gt'].shape == (3, 3, 24, 24) and saved['lq'].shape == (3, 3, 12, 12)
    assert f'files: {", ".join(saved["gt_path"])};' in line and saved['terms'][term] != saved['terms'][term]
    state = torch.load(home / 'training_states' / '4.state', weights_only=True)['optimizers'][0]['state']
    assert {int(values['step']) for values in state.values()} == {3}
    weights = torch.load(home / 'models' / 'net_g_latest.pth', weights_only=True)['params']
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_late_and_immediate_checks_for_nonfinite_steps_give_the_same_results(train_opt, tmp_path, monkeypatch):
    train_opt['train'] |= {'total_iter': 7, 'optim_g': {'type': 'Adam', 'lr': 1e-3, 'fused': True}}
    train_opt['val']['val_freq'] = 3
    train_opt['logger']['print_freq'] = 100
    with_nan_in_gt(monkeypatch, FACDModel, {2, 3, 5, 7})  # before a checkpoint, a validation, another, and the end
    results = []
    for late in (False, True):
        monkeypatch.setattr('facd_basicsr.models.safe_model.NonFiniteGuard', partial(NonFiniteGuard, late=late))
        root = tmp_path / str(late)
        root.mkdir()
        run_training(train_opt, root)
        log = log_text(root).replace(str(root), '')
        lines = re.findall(r'(?:INFO|WARNING): ((?:Iteration|Steps|Saving|Validation|Save|.*psnr).*)', log)
        results.append((lines, [result(root, iteration) for iteration in (2, 4, 6, 7)]))
    assert_same(*results)
    lines, states = results[0]
    assert [state['nonfinite'] for state in states] == [
        {'in_a_row': 1, 'skipped': 1}, {'in_a_row': 0, 'skipped': 2}, {'in_a_row': 0, 'skipped': 3},
        {'in_a_row': 1, 'skipped': 4},
    ]  # fmt: skip
    assert [line.split(':')[0] for line in lines if line.startswith('Iter')] == [f'Iteration {i}' for i in (2, 3, 5, 7)]


def test_with_late_checks_no_checkpoint_is_saved_after_a_fatal_step(train_opt, data, tmp_path, monkeypatch):
    from_folders(train_opt, data)
    train_opt['train'] |= {'nonfinite': {'action': 'fatal'}, 'optim_g': {'type': 'Adam', 'lr': 1e-3, 'fused': True}}
    train_opt['logger']['print_freq'] = 100
    with_nan_in_gt(monkeypatch, FACDModel, {4})
    monkeypatch.setattr('facd_basicsr.models.safe_model.NonFiniteGuard', partial(NonFiniteGuard, late=True))
    with pytest.raises(UserError, match=r'^train.nonfinite.action: fatal, and in iteration 4 l_sr not finite'):
        run_training(train_opt, tmp_path)
    assert [path.name for path in tmp_path.glob('experiments/tiny/training_states/*.state')] == ['2.state']


def from_folders(train_opt: dict, data: Path) -> None:
    """Reads training images from files, since a run that ends by an error leaves its LMDBs open for a while."""
    folders = {'dataroot_gt': str(data / 'GT'), 'dataroot_lq': str(data / 'LQ'), 'io_backend': {'type': 'disk'}}
    train_opt['datasets']['train'] |= {**folders, 'dataset_enlarge_ratio': 3}


def test_a_nonfinite_step_ends_the_run_with_action_fatal(train_opt, data, tmp_path, monkeypatch, capsys):
    from_folders(train_opt, data)
    train_opt['train']['nonfinite'] = {'action': 'fatal'}
    with_nan_in_gt(monkeypatch, FACDModel, {2})
    with pytest.raises(SystemExit) as end:
        run_command(lambda: run_training(train_opt, tmp_path))
    message = 'error: train.nonfinite.action: fatal, and in iteration 2 l_sr not finite'
    assert end.value.code == 2 and capsys.readouterr().err.startswith(message)
    log = next(tmp_path.glob('experiments/tiny/*.log')).read_text()
    assert 'Iteration 2: l_sr not finite' in log and 'iter:       2' not in log
    assert (tmp_path / 'experiments/tiny/nonfinite/iter_2_rank0.pth').is_file()


def test_consecutive_nonfinite_steps_up_to_the_limit_end_the_run(train_opt, data, tmp_path, monkeypatch):
    from_folders(train_opt, data)
    train_opt['train'] |= {'nonfinite': {'limit': 2}, 'total_iter': 6}
    with_nan_in_gt(monkeypatch, FACDModel, {1, 3, 4})
    with pytest.raises(
        UserError, match=r'^train.nonfinite.limit: 2, .*, the last in iteration 4: l_sr not finite; acc'
    ):
        run_training(train_opt, tmp_path)


def test_a_run_in_float16_finishes(train_opt, tmp_path):
    train_opt['train']['precision'] = 'fp16'
    assert run_training(train_opt, tmp_path) == [1, 2, 3, 4]
    assert 'WARNING' not in next(tmp_path.glob('experiments/tiny/*.log')).read_text()


def test_auto_resume_before_the_first_checkpoint_starts_in_place_and_logs_it(train_opt, tmp_path):
    train_opt['train']['total_iter'] = 1
    for number in (1, 2):
        with pytest.raises(ZeroDivisionError):
            train(
                parser().parse_args(['-opt', str(write_yml(train_opt, tmp_path / 'opt.yml')), '--auto_resume']),
                root=tmp_path,
                console=False,
                on_iteration=lambda iteration: 1 // 0,
            )
        logs = ''.join(path.read_text() for path in tmp_path.glob('experiments/tiny/*.log'))
        assert logs.count('--auto_resume: no state in ') == logs.count('starting from iteration 0') == number
    assert [path.name for path in (tmp_path / 'experiments').iterdir()] == ['tiny']
    assert run_training(train_opt, tmp_path, '--auto_resume') == [1]


def test_without_auto_resume_an_experiment_of_that_name_is_archived(train_opt, tmp_path, capsys):
    run_training(train_opt, tmp_path)
    run_training(train_opt, tmp_path)
    (kept,) = (tmp_path / 'experiments').glob('tiny_archived_*')
    assert (kept / 'training_states/4.state').is_file()
    assert f'Rename it to {kept}' in capsys.readouterr().out
