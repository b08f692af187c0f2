"""Every recipe of options/train/recipes, killed within and right after a stage and resumed, has the same weights."""

import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network
from basicsr.utils.registry import ARCH_REGISTRY
from conftest import REPOSITORY, TEACHER, picture
from runs import NAME, Child, assert_same, assert_same_curves, metric_lines, result

from facd_basicsr.data.bicubic import with_bicubic_lr
from facd_basicsr.data.lmdb_pairs import write_lmdbs
from facd_basicsr.options import read_option_file

RECIPES = sorted(REPOSITORY.glob('options/train/recipes/*.yml'))
QUICK = ('FACD_EDSR_x2', 'Student_SPAN_x4')  # of each network and each model one
BORDER, TOTAL = 3, 6
SMALL = {'EDSRStudent': {'num_feat': 4}, 'SPAN': {'feature_channels': 4}}
LOSSES = {  # by method, of the first stage and of the second
    'Student': [{'l_pix_l1', 'l_pix_fft'}, {'l_pix_mse', 'l_pix_gradient'}],
    'FACD': [{'l_l1', 'l_fft', 'l_facd'}, {'l_mse', 'l_gradient'}],
}


@pytest.fixture(
    params=[pytest.param(path, marks=() if path.stem in QUICK else pytest.mark.slow, id=path.stem) for path in RECIPES]
)
def recipe(request: pytest.FixtureRequest, tmp_path: Path) -> dict:
    """A recipe as it is, but for tiny data and networks, three iterations a stage, and crops of 6 and of 12 in LR."""
    opt = read_option_file(str(request.param))
    network, scale, train = opt['network_g'], opt['scale'], opt['train']
    if f'{network["type"]}_spandrel' not in ARCH_REGISTRY and network['type'] not in ARCH_REGISTRY:
        pytest.skip('spandrel is not installed')
    network |= SMALL[network['type']]
    opt |= {'name': NAME, 'num_gpu': 0}
    opt['val']['val_freq'] = BORDER
    opt['logger'] |= {'print_freq': 1, 'save_checkpoint_freq': 1}

    sources = {str(i): partial(with_bicubic_lr, picture(i, 48, 48), multiple=scale) for i in range(4)}
    for phase, dataset in opt['datasets'].items():
        gt, lq = (tmp_path / f'{phase}_{side}.lmdb' for side in ('HR', 'LR'))
        write_lmdbs(sources, {1: gt, scale: lq}, 480, 240)
        dataset |= {'dataroot_gt': str(gt), 'dataroot_lq': str(lq), 'io_backend': {'type': 'lmdb'}}
    opt['datasets']['train'] |= {'gt_size': 6 * scale, 'batch_size_per_gpu': 3, 'num_worker_per_gpu': 0}
    opt['datasets']['train']['dataset_enlarge_ratio'] = 1

    train.pop('total_iter')
    for stage in train['stages']:
        stage |= {'iterations': BORDER, 'scheduler': stage['scheduler'] | {'periods': [BORDER]}}
    train['stages'][1] |= {'gt_size': 12 * scale, 'batch_size_per_gpu': 2}
    if 'teacher' in opt:
        train['stages'][0]['distill_opt']['facd']['lambda']['over'] = 2
        network = {**TEACHER, 'upscale': scale}
        torch.manual_seed(1)
        torch.save({'params': build_network(network).state_dict()}, tmp_path / 'teacher.pth')
        opt['teacher'] = {'network': network, 'weights': str(tmp_path / 'teacher.pth')}
        for tap, point in zip(opt['taps'], ('body.0', 'body.1', 'upsample:input')):
            tap['teacher'] = point
    return opt


def test_a_recipe_killed_within_and_right_after_a_stage_and_resumed_has_the_same_weights(recipe, tmp_path):
    whole = tmp_path / 'whole'
    assert Child(recipe, whole, TOTAL).end() == 0, (whole / 'output.txt').read_text()
    killed = tmp_path / 'killed'
    for first, last in ((1, BORDER - 1), (BORDER, BORDER + 1)):
        child = Child(recipe, killed, TOTAL, '--auto_resume', step_by_step=True)
        child.wait_for(last, first)
        child.kill()
        assert child.end() == -signal.SIGKILL
    assert Child(recipe, killed, TOTAL, '--auto_resume').end() == 0, (killed / 'output.txt').read_text()
    for at in (BORDER, TOTAL):  # the regressors are there in the first stage alone
        assert_same(result(killed, at), result(whole, at))
    assert_same_curves(killed, whole)
    assert metric_lines(killed) == metric_lines(whole)
    states = [result(whole, at) for at in (BORDER, TOTAL)]
    taught = 'teacher' in recipe
    assert ['net_r' in str(state) for state in states] == [taught, False]
    assert all(
        'params_ema' in torch.load(whole / f'experiments/{NAME}/models/net_g_{at}.pth') for at in (BORDER, TOTAL)
    )
    of_stages = [{key for key in line if key.startswith('l_')} for line in metric_lines(whole) if 'lr' in line]
    first, second = LOSSES['FACD' if taught else 'Student']
    assert of_stages == [first] * BORDER + [second] * (TOTAL - BORDER)
    if taught:  # the contrast has faded
        assert [line['l_facd'] > 0 for line in metric_lines(whole) if 'l_facd' in line] == [True, False, False]
