"""The training loop, in this process; tests/test_train_and_test.py runs the entry points."""

import itertools
import re
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network
from conftest import STUDENT, write_yml

from facd_basicsr.errors import UserError
from facd_basicsr.options import load_yaml, parser, read_option_file
from facd_basicsr.train import train


def run_training(opt: dict, folder: Path, *flags: str, option_file: Path | None = None) -> list[int]:
    """Trains below ``folder`` and returns the iterations it was told of."""
    iterations: list[int] = []
    path = option_file or write_yml(opt, folder / 'opt.yml')
    args = parser().parse_args(['-opt', str(path), *flags])
    train(args, root=folder, console=False, on_iteration=iterations.append)
    return iterations


def test_every_iteration_is_trained_though_epochs_drop_their_rest(train_opt, tmp_path):
    train_opt['datasets']['train']['batch_size_per_gpu'] = 4  # of 6 images: one iteration an epoch
    train_opt['train']['total_iter'] = 5
    assert run_training(train_opt, tmp_path) == [1, 2, 3, 4, 5]


def test_a_student_alone_that_begins_with_some_of_anothers_weights_says_how_many(train_opt, tmp_path):
    other = {key: value for key, value in build_network(STUDENT).state_dict().items() if 'body.2' not in key}
    torch.save({'params': other}, tmp_path / 'other.pth')
    alone = {key: value for key, value in train_opt.items() if key not in ('teacher', 'taps', 'network_r')}
    alone['model_type'] = 'SRModel'
    del alone['train']['distill_opt']
    alone['train']['pixel_opt'] = {'type': 'L1Loss'}
    alone['path'] = {'pretrain_network_g': str(tmp_path / 'other.pth'), 'strict_load_g': False}
    assert run_training(alone, tmp_path) == [1, 2, 3, 4]
    log = next(tmp_path.glob('experiments/tiny/*.log')).read_text()
    left_out = 2 * (4 * 4 * 9 + 4)  # two convolutions of a block
    total = sum(parameter.numel() for parameter in build_network(STUDENT).parameters())
    assert f'other.pth: {total - left_out:,} of the {total:,} parameters of EDSRStudent are loaded' in log


def test_a_batch_larger_than_an_epoch_is_refused(train_opt, tmp_path):
    train_opt['datasets']['train']['batch_size_per_gpu'] = 16
    with pytest.raises(UserError, match=r'batch_size_per_gpu: 16 for epochs of 6 samples; .*dataset_enlarge_ratio'):
        run_training(train_opt, tmp_path)
    assert not (tmp_path / 'experiments').exists()


def test_time_left_never_turns_negative(train_opt, tmp_path, monkeypatch):
    clock = itertools.count(0, 10)
    monkeypatch.setattr('basicsr.utils.logger.time.time', lambda: next(clock))
    run_training(train_opt, tmp_path)
    log = next(tmp_path.glob('experiments/tiny/*.log')).read_text()
    assert re.findall(r'eta: ([^,]+),', log)[-1] == '0:00:00'
    assert 'day' not in log


def test_the_copy_of_the_option_file_can_be_trained_again(train_opt, tmp_path):
    run_training(train_opt, tmp_path)
    copy = tmp_path / 'experiments' / 'tiny' / 'opt.yml'
    assert copy.read_text().startswith('# ')
    assert run_training(train_opt, tmp_path, '--auto_resume', option_file=copy) == []  # all four are done
    assert run_training(train_opt, tmp_path, option_file=copy) == [1, 2, 3, 4]
    assert copy.is_file() and len(list((tmp_path / 'experiments').glob('tiny_archived_*'))) == 1


def test_the_copy_of_an_option_file_with_a_base_stands_alone(train_opt, tmp_path):
    write_yml(train_opt, tmp_path / 'base.yml')
    path = tmp_path / 'opt.yml'
    path.write_text('base: base.yml\ntrain: {total_iter: 2, distill_opt: {adaptive: false}}\n')
    resolved = read_option_file(str(path))
    assert run_training(train_opt, tmp_path, option_file=path) == [1, 2]
    copy = tmp_path / 'experiments' / 'tiny' / 'opt.yml'
    assert copy.read_text().startswith('# ')
    assert load_yaml(copy.read_text(), '') == resolved
    assert resolved['train']['distill_opt'] == {'type': 'FACDLoss', 'lambda': 4, 'adaptive': False}
    (tmp_path / 'base.yml').unlink()
    assert run_training(train_opt, tmp_path, option_file=copy) == [1, 2]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda opt: opt['taps'].pop(), r'layer_weights: 3 weights for 2 taps; accepted: one weight per tap'),
        (lambda opt: opt['taps'][0].update(student='bod.0'), r"taps\[0\].student: 'bod.0' is not in EDSRStudent"),
        (lambda opt: opt.update(network_r={'type': 'EDSR', 'upscale': 2}), r'network_r.type: EDSR does not run on'),
    ],
)
def test_what_does_not_fit_together_is_refused_before_a_folder_is_made(train_opt, tmp_path, change, message):
    train_opt['train']['distill_opt'].pop('layer_weights', None)
    change(train_opt)
    with pytest.raises(UserError, match=message):
        run_training(train_opt, tmp_path)
    assert not (tmp_path / 'experiments').exists() and not (tmp_path / 'tb_logger').exists()


def test_other_networks_and_one_channel_are_distilled_as_well(train_opt, tmp_path):
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
