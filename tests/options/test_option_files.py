"""Every option file that the project ships: it builds, agrees with itself and its twins, and refuses misspelling."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from basicsr.archs import build_network
from conftest import REPOSITORY

from facd_basicsr.distill.regressors import build_regressors
from facd_basicsr.distill.taps import Taps
from facd_basicsr.errors import UserError
from facd_basicsr.losses import build_loss
from facd_basicsr.options import load_yaml
from facd_basicsr.options.check import check

TRAIN = sorted(REPOSITORY.glob('options/train/**/*.yml')) + sorted(REPOSITORY.glob('demo/*.yml'))
TEST = sorted(REPOSITORY.glob('options/test/**/*.yml'))
PAPER = [path for path in TRAIN if path.parent.name == 'train']
FACD = [path for path in TRAIN if path.stem.startswith('FACD')]


def load(path: Path) -> dict:
    return load_yaml(path.read_text(encoding='utf-8'), str(path))


def name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def test_the_papers_experiments_and_their_baselines_are_there():
    expected = {f'{m}_{net}_x{s}' for m in ('FACD', 'Student') for net in ('EDSR', 'RCAN') for s in (2, 3, 4)}
    assert {path.stem for path in PAPER} == expected
    assert {path.stem for path in TEST if path.parent.name == 'test'} == expected


@pytest.mark.parametrize('path', TRAIN + TEST, ids=name)
def test_an_option_file_is_accepted_and_its_numbers_agree(path):
    opt = load(path)
    is_train = 'train' in opt
    check(opt, is_train)
    scale = opt['scale']
    networks = [opt['network_g']] + ([opt['teacher']['network']] if 'network' in opt.get('teacher', {}) else [])
    assert [network['upscale'] for network in networks] == [scale] * len(networks)
    assert all(metric['crop_border'] == scale for metric in opt['val']['metrics'].values())
    assert opt['val']['metrics']['psnr_y']['test_y_channel'] is True
    assert opt['val']['metrics']['psnr_rgb']['test_y_channel'] is False
    for dataset in opt['datasets'].values():
        lq = Path(dataset['dataroot_lq']).name
        assert f'x{scale}' in lq.lower() or 'demo' in name(path)
        assert Path(dataset['dataroot_lq']).parent == Path(dataset['dataroot_gt']).parent
        assert dataset['io_backend']['type'] == ('lmdb' if dataset['dataroot_lq'].endswith('.lmdb') else 'disk')


@pytest.mark.parametrize('path', TRAIN + TEST, ids=name)
def test_the_header_gives_the_exact_command(path):
    header = path.read_text(encoding='utf-8').split('\n\n')[0]
    script = 'test' if path in TEST else 'train'
    command = f'python facd_basicsr/{script}.py -opt {name(path)}'
    assert command in header or (path.name == 'Teacher.yml' and '--train-teacher' in header)


@pytest.mark.parametrize('path', [path for path in FACD if 'network' in load(path)['teacher']], ids=name)
def test_networks_taps_regressors_and_loss_of_an_option_file_fit_together(path):
    opt = load(path)
    with torch.device('meta'):
        student, teacher = build_network(opt['network_g']), build_network(opt['teacher']['network'])
        x = torch.empty(2, 3, 12, 12)
        sr_s, feats_s = Taps(student, [tap['student'] for tap in opt['taps']], 'student').run(student, x)
        sr_t, feats_t = Taps(teacher, [tap['teacher'] for tap in opt['taps']], 'teacher').run(teacher, x)
        loss = build_loss(opt['train']['distill_opt'])
        feats = build_regressors(opt['network_r'], loss.regressor, feats_s, feats_t)(feats_s)
    assert sr_s.shape == sr_t.shape == (2, 3, 12 * opt['scale'], 12 * opt['scale'])
    assert [f.shape for f in feats] == [f.shape for f in feats_t]
    assert len(loss.layer_weights) == len(feats)


TABLE_2 = {('EDSR', 2): 38.190, ('EDSR', 3): 34.547, ('EDSR', 4): 32.385,
           ('RCAN', 2): 38.271, ('RCAN', 3): 34.758, ('RCAN', 4): 32.638}  # fmt: skip


@pytest.mark.parametrize('path', [path for path in FACD if path in PAPER], ids=name)
def test_the_teacher_is_the_official_one_of_the_files_network_and_scale_and_is_held_to_table_2(path):
    opt = load(path)
    scale, kind = opt['scale'], opt['teacher']['network']['type']
    official = {'EDSR': f'https://cv.snu.ac.kr/research/EDSR/models/edsr_x{scale}-', 'RCAN': f'RCAN_BIX{scale}'}
    assert official[kind] in opt['teacher']['weights']
    assert opt['teacher']['expect']['psnr_y'] == pytest.approx(TABLE_2[kind, scale], abs=0.0051)
    assert opt['datasets'][opt['teacher']['expect']['dataset']]['name'] == 'Set5'


@pytest.mark.parametrize('path', TRAIN + TEST, ids=name)
def test_basicsrs_yaml_reads_the_same(path):
    assert yaml.safe_load(path.read_text(encoding='utf-8')) == load(path)


@pytest.mark.parametrize('path', PAPER, ids=name)
def test_training_settings_are_the_papers(path):
    opt = load(path)
    dataset, train = opt['datasets']['train'], opt['train']
    assert dataset['gt_size'] == 48 * opt['scale']
    assert dataset['batch_size_per_gpu'] == 16
    assert dataset['use_hflip'] and dataset['use_rot']
    assert train['total_iter'] == 600_000
    assert train['optim_g'] == {'type': 'Adam', 'lr': 2e-4, 'betas': [0.9, 0.999]}
    assert train['scheduler']['milestones'] == [150_000, 300_000, 450_000]
    assert train['scheduler']['gamma'] == 0.5
    if path in FACD:
        assert (train['distill_opt']['lambda'], train['distill_opt']['layer_weights']) == (4, [0.5, 0.3, 0.2])


@pytest.mark.parametrize('path', FACD, ids=name)
def test_a_baseline_differs_from_its_twin_in_the_distillation_only(path):
    facd, alone = load(path), load(path.with_name(path.name.replace('FACD', 'Student').replace('_DATlight', '')))
    for opt in (facd, alone):
        for key in ('name', 'model_type', 'teacher', 'taps', 'network_r'):
            opt.pop(key, None)
        for key in ('distill_opt', 'pixel_opt'):
            opt['train'].pop(key, None)
        opt['path'].pop('pretrain_network_r', None)
    assert facd == alone


@pytest.mark.parametrize('path', TEST, ids=name)
def test_a_test_file_tests_what_its_train_file_trains(path):
    train_path = REPOSITORY / 'options' / 'train' / path.relative_to(REPOSITORY / 'options' / 'test')
    test, train = load(path), load(train_path)
    assert test['network_g'] == train['network_g']
    assert test['path']['pretrain_network_g'] == f'experiments/{train["name"]}/models/net_g_latest.pth'
    assert test['val']['metrics'] == train['val']['metrics']


@pytest.mark.parametrize('kind', ['EDSR', 'RCAN'])
@pytest.mark.parametrize('method', ['FACD', 'Student'])
def test_scales_differ_in_what_depends_on_the_scale_only(method, kind):
    texts = []
    for scale in (2, 3, 4):
        opt = load(REPOSITORY / 'options' / 'train' / f'{method}_{kind}_x{scale}.yml')
        opt['datasets']['train'].pop('gt_size')
        opt.pop('scale')
        if 'teacher' in opt:
            opt['teacher'].pop('weights')
            opt['teacher']['expect'].pop('psnr_y')
        for network in (opt['network_g'], opt.get('teacher', {}).get('network', {})):
            network.pop('upscale', None)
        for metric in opt['val']['metrics'].values():
            metric.pop('crop_border')
        texts.append(str(opt).replace(f'x{scale}', 'x').replace(f'X{scale}', 'X'))
    assert texts[0] == texts[1] == texts[2]


def keys(block: object, path: tuple = ()) -> Iterator[tuple]:
    """The path of every key of an option dict whose name is not the user's to choose."""
    items = block.items() if isinstance(block, dict) else enumerate(block) if isinstance(block, list) else ()
    for key, value in items:
        if not isinstance(key, int) and path not in (('val', 'metrics'), ('datasets',)):
            yield (*path, key)
        yield from keys(value, (*path, key))


@pytest.mark.parametrize('path', TRAIN + TEST, ids=name)
def test_every_misspelt_key_is_refused_by_its_name(path):
    original = load(path)
    for location in keys(original):
        opt = copy.deepcopy(original)
        block = opt
        for key in location[:-1]:
            block = block[key]
        misspelt = f'{location[-1]}x'
        block[misspelt] = block.pop(location[-1])
        # a misspelt required key may also be reported as missing under its right name
        with pytest.raises(UserError, match=rf'{misspelt}|{location[-1]}: missing'):
            check(opt, 'train' in original)
