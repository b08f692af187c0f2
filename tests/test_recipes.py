"""Every recipe of options/train/recipes, killed within and right after a stage and resumed, has the same weights."""

import signal
from functools import partial
from pathlib import Path

import pytest
import realesrgan
import torch
from basicsr.archs import build_network
from basicsr.utils.registry import ARCH_REGISTRY
from conftest import REPOSITORY, TEACHER, picture
from realesrgan import write_photographs
from runs import NAME, Child, assert_same, assert_same_curves, metric_lines, result
from states import save_vgg

from facd_basicsr.data.bicubic import with_bicubic_lr
from facd_basicsr.data.lmdb_pairs import write_lmdbs
from facd_basicsr.options import read_option_file

RECIPES = sorted(REPOSITORY.glob('options/train/recipes/*.yml'))
QUICK = ('FACD_EDSR_x2',)  # discriminator and degradation are killed or stopped, and resumed, in tests/models
BORDER, TOTAL = 3, 6
SMALL = {
    'EDSRStudent': {'num_feat': 4},
    'SPAN': {'feature_channels': 4},
    'SRVGGNetCompact': {'num_feat': 4},
    'RRDBNet': {'num_feat': 4, 'num_grow_ch': 4},
    'UNetDiscriminatorSN': {'num_feat': 4},
}
GAN = {'l_percep', 'l_g_gan', 'l_d_real', 'l_d_fake'}
LOSSES = {  # by method, of the first stage and of the second
    'Student': [{'l_pix_l1', 'l_pix_fft'}, {'l_pix_mse', 'l_pix_gradient'}],
    'FACD': [{'l_l1', 'l_fft', 'l_facd'}, {'l_mse', 'l_gradient'}],
    'Student degraded': [{'l_pix'}, {'l_pix', *GAN}],
    'FACD degraded': [{'l_pix'}, {'l_pix', 'l_facd', *GAN}],
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
    opt['val']['metrics'].pop('niqe', None)  # of larger images
    opt['logger'] |= {'print_freq': 1, 'save_checkpoint_freq': 1}

    degraded = opt['datasets']['train']['type'] == 'RealESRGANDataset'
    if degraded:
        opt['network_d'] |= SMALL[opt['network_d']['type']]
        train['stages'][1]['perceptual_opt']['vgg_weights'] = str(save_vgg(tmp_path / 'vgg.pth', 5))
        train['stages'][1]['perceptual_opt']['layer_weights'].pop('conv5_4')  # of larger patches
        for key in ('l1_gt_usm', 'percep_gt_usm', 'gan_gt_usm'):  # which takes a second for each image
            del opt[key]
        opt |= {'gt_usm': False, 'gt_size': 6 * scale, 'queue_size': 6, 'resize_range': [0.5, 1.5]}

    sources = {str(i): partial(with_bicubic_lr, picture(i, 48, 48), multiple=scale) for i in range(4)}
    for phase, dataset in opt['datasets'].items():
        gt, lq = (tmp_path / f'{phase}_{side}.lmdb' for side in ('HR', 'LR'))
        write_lmdbs(sources, {1: gt, scale: lq}, 480, 240)
        if phase == 'train' and degraded:
            write_photographs(tmp_path / 'photographs')
            dataset |= {'type': 'SmallCrops', 'dataroot_gt': str(tmp_path / 'photographs')}
            dataset |= {'meta_info': str(tmp_path / 'photographs/list.txt'), 'io_backend': {'type': 'disk'}}
            continue
        dataset |= {'dataroot_gt': str(gt), 'dataroot_lq': str(lq), 'io_backend': {'type': 'lmdb'}}
    opt['datasets']['train'] |= {'batch_size_per_gpu': 3, 'num_worker_per_gpu': 0, 'dataset_enlarge_ratio': 1}
    if not degraded:
        opt['datasets']['train']['gt_size'] = 6 * scale

    train.pop('total_iter', None)
    for stage in train['stages']:
        stage['iterations'] = BORDER
        stage['scheduler'] |= {key: [BORDER] for key in ('periods', 'milestones') if key in stage['scheduler']}
    if not degraded:
        train['stages'][1] |= {'gt_size': 12 * scale, 'batch_size_per_gpu': 2}
    if 'teacher' in opt:
        train['stages'][degraded]['distill_opt']['facd']['lambda']['over'] = 2
        network = {**TEACHER, 'upscale': scale}
        if degraded:
            network = opt['teacher']['network'] | SMALL['RRDBNet']
        torch.manual_seed(1)
        torch.save({'params': build_network(network).state_dict()}, tmp_path / 'teacher.pth')
        opt['teacher'] = {'network': network, 'weights': str(tmp_path / 'teacher.pth')}
        for tap, point in zip(opt['taps'], () if degraded else ('body.0', 'body.1', 'upsample:input')):
            tap['teacher'] = point
    return opt


def test_a_recipe_killed_within_and_right_after_a_stage_and_resumed_has_the_same_weights(recipe, tmp_path):
    whole = tmp_path / 'whole'
    child_of = partial(Child, prepare=realesrgan.prepare)
    assert child_of(recipe, whole, TOTAL).end() == 0, (whole / 'output.txt').read_text()
    killed = tmp_path / 'killed'
    for first, last in ((1, BORDER - 1), (BORDER, BORDER + 1)):
        child = child_of(recipe, killed, TOTAL, '--auto_resume', step_by_step=True)
        child.wait_for(last, first)
        child.kill()
        assert child.end() == -signal.SIGKILL
    assert child_of(recipe, killed, TOTAL, '--auto_resume').end() == 0, (killed / 'output.txt').read_text()
    for at in (BORDER, TOTAL):  # the regressors are there in the first stage alone
        assert_same(result(killed, at), result(whole, at))
    assert_same_curves(killed, whole)
    assert metric_lines(killed) == metric_lines(whole)
    states = [result(whole, at) for at in (BORDER, TOTAL)]
    taught, degraded = 'teacher' in recipe, 'gt_usm' in recipe
    assert ['net_r' in str(state) for state in states] == [taught and not degraded, taught and degraded]
    assert ['net_d' in str(state) for state in states] == [False, degraded]
    assert all(
        'params_ema' in torch.load(whole / f'experiments/{NAME}/models/net_g_{at}.pth') for at in (BORDER, TOTAL)
    )
    of_stages = [{key for key in line if key.startswith('l_')} for line in metric_lines(whole) if 'lr' in line]
    first, second = LOSSES[('FACD' if taught else 'Student') + ' degraded' * degraded]
    assert of_stages == [first] * BORDER + [second] * (TOTAL - BORDER)
    if taught:  # the contrast has faded; at first alpha is 0 for all that is degraded
        contrast = [line['l_facd'] > 0 for line in metric_lines(whole) if 'l_facd' in line]
        assert contrast == [not degraded, False, False]
