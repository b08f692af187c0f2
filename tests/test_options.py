import copy
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import write_yml

from facd_basicsr.engine import distributed
from facd_basicsr.errors import UserError
from facd_basicsr.option_schema import check
from facd_basicsr.options import force_yml, load_options, load_yaml, parse_options, parser


def changed(opt: dict, location: str, value: object) -> dict:
    """A copy of ``opt`` with the key at a dotted location set, or removed if ``value`` is ``...``."""
    opt = copy.deepcopy(opt)
    block = opt
    *parents, leaf = location.split('.')
    for key in parents:
        block = block[int(key) if isinstance(block, list) else key]
    if value is ...:
        del block[leaf]
    else:
        block[int(leaf) if isinstance(block, list) else leaf] = value
    return opt


def refusal(opt: dict, is_train: bool = True) -> str:
    with pytest.raises(UserError) as error:
        check(opt, is_train)
    assert '\n' not in str(error.value)
    return str(error.value)


def test_a_complete_file_is_accepted(train_opt, test_opt):
    check(train_opt, is_train=True)
    test_opt['path']['pretrain_network_g'] = 'net.pth'
    check(test_opt, is_train=False)


@pytest.mark.parametrize(
    ('location', 'value', 'message'),
    [
        # unknown keys, everywhere, with the nearest one
        ('num_gpus', 1, "num_gpus: unknown key; did you mean 'num_gpu'?"),
        ('network_g.num_fet', 8, "network_g.num_fet: unknown key; did you mean 'num_feat'?"),
        ('teacher.weight', 'x', "teacher.weight: unknown key; did you mean 'weights'?"),
        ('teacher.network.num_blok', 8, "teacher.network.num_blok: unknown key; did you mean 'num_block'?"),
        ('network_r.num_layers', 5, "network_r.num_layers: unknown key; did you mean 'num_layer'?"),
        ('network_r.num_in_ch', 5, 'network_r.num_in_ch: unknown key'),
        ('taps.0.techer', 'x', "taps[0].techer: unknown key; did you mean 'teacher'?"),
        ('train.distill_opt.lamda', 4, "train.distill_opt.lamda: unknown key; did you mean 'lambda'?"),
        ('train.distill_opt.lambda_', 4, 'train.distill_opt.lambda_: unknown key'),
        ('train.optim_g.learning_rate', 1, 'train.optim_g.learning_rate: unknown key'),
        ('train.scheduler.milestone', [1], "train.scheduler.milestone: unknown key; did you mean 'milestones'?"),
        ('train.pixel_opt', {'type': 'L1Loss'}, 'train.pixel_opt: unknown key'),
        ('datasets.train.gt_sise', 24, "datasets.train.gt_sise: unknown key; did you mean 'gt_size'?"),
        ('datasets.train.io_backend.typ', 'disk', 'datasets.train.io_backend.typ: unknown key'),
        ('datasets.valid', {}, 'datasets.valid: unknown set; accepted: train, val, and val with _1, _2, ...'),
        ('datasets.train_1', {}, 'datasets.train_1: unknown set; accepted: train, val'),
        ('val.metrics.psnr_y.crop_boder', 2, "crop_boder: unknown key; did you mean 'crop_border'?"),
        ('val.val_frequency', 2, "val.val_frequency: unknown key; did you mean 'val_freq'?"),
        ('logger.print_frequency', 2, "logger.print_frequency: unknown key; did you mean 'print_freq'?"),
        ('path.pretrained_network_g', 'x', "did you mean 'pretrain_network_g'?"),
        # types that nothing is registered for
        ('model_type', 'FACDModle', "model_type: 'FACDModle' is not registered; did you mean 'FACDModel'?"),
        ('network_g.type', 'EDSRStudnet', "'EDSRStudnet' is not registered; did you mean 'EDSRStudent'?"),
        ('train.distill_opt.type', 'FACD', "train.distill_opt.type: 'FACD' is not registered"),
        ('datasets.val.type', 'PairedDataset', "datasets.val.type: 'PairedDataset' is not registered"),
        ('val.metrics.psnr_y.type', 'psnr', "val.metrics.psnr_y.type: 'psnr' is not registered"),
        ('train.optim_g.type', 'Adm', "train.optim_g.type: 'Adm'; accepted: Adam"),
        ('train.scheduler.type', 'StepLR', "train.scheduler.type: 'StepLR'; accepted: Cosine"),
        ('datasets.val.io_backend.type', 'zip', "datasets.val.io_backend.type: 'zip'; accepted: disk, lmdb"),
        # missing
        ('scale', ..., 'scale: missing; accepted: a whole number'),
        ('model_type', ..., 'model_type: missing; accepted: text'),
        ('teacher', ..., 'teacher: missing'),
        ('taps', ..., 'taps: missing'),
        ('train.distill_opt', ..., 'train.distill_opt: missing'),
        ('teacher.weights', ..., 'teacher.weights: missing; accepted: text'),
        ('teacher.network.num_in_ch', ..., 'teacher.network.num_in_ch: missing'),
        ('network_g.upscale', ..., 'network_g.upscale: missing; accepted: 2'),
        ('taps.1.student', ..., 'taps[1].student: missing'),
        ('datasets.train', ..., 'datasets: val; accepted: at least one train set'),
        ('datasets.train.gt_size', ..., 'datasets.train.gt_size: missing'),
        ('logger', ..., 'logger: missing; accepted: a block of keys'),
        ('train.optim_g.lr', ..., 'train.optim_g.lr: missing; accepted: a number'),
        ('train.scheduler.milestones', ..., 'train.scheduler.milestones: missing; accepted: a list'),
        ('val.metrics.psnr_y.crop_border', ..., 'val.metrics.psnr_y.crop_border: missing'),
        # wrong types and values
        ('taps', [], 'taps: []; accepted: at least one'),
        ('scale', 0, 'scale: 0; accepted: 1 or more'),
        ('manual_seed', -1, 'manual_seed: -1; accepted: 0 or more'),
        ('datasets.val.name', 'pictures', "datasets: 'pictures' is the name of several sets"),
        ('datasets.train.prefetch_mode', 'cdua', "datasets.train.prefetch_mode: 'cdua'; accepted: ~, cpu, cuda"),
        ('datasets.train.prefetch_mode', 'cuda', 'prefetch_mode: cuda; accepted with pin_memory: true only'),
        ('train.scheduler.milestones', 3, 'train.scheduler.milestones: 3; accepted: a list'),
        ('train.scheduler.milestones', None, 'train.scheduler.milestones: None; accepted: a list'),
        ('train.scheduler.milestones', ['a'], "train.scheduler.milestones[0]: 'a'; accepted: a whole number"),
        ('train.distill_opt.layer_weights', ['a', 1, 1], "train.distill_opt.layer_weights[0]: 'a'; accepted: a num"),
        ('train.distill_opt', {'type': 'L1Loss'}, "train.distill_opt.type: 'L1Loss'; accepted: FACDLoss"),
        ('val.metrics.psnr_y.crop_border', '2', "val.metrics.psnr_y.crop_border: '2'; accepted: a whole number"),
        ('logger.wandb', {'project': 'p'}, "logger.wandb.project: 'p'; accepted with use_tb_logger: true and wandb"),
        ('scale', '2', "scale: '2'; accepted: a whole number"),
        ('scale', True, 'scale: True; accepted: a whole number'),
        ('name', 'a/b', "name: 'a/b'; accepted: a folder name"),
        ('num_gpu', 'all', "num_gpu: 'all'; accepted: auto, or a number from 0"),
        ('network_g', None, 'network_g: None; accepted: a block of keys'),
        ('network_g.num_feat', 'many', "network_g.num_feat: 'many'; accepted: a whole number"),
        ('network_g.upscale', 4, 'network_g.upscale: 4; accepted: 2, the scale of this file'),
        ('teacher.network.upscale', 4, 'teacher.network.upscale: 4; accepted: 2, the scale of this file'),
        ('taps', 'body.0', "taps: 'body.0'; accepted: a list"),
        ('taps.0', 'body.0', "taps[0]: 'body.0'; accepted: a block of keys"),
        ('train.distill_opt.adaptive', 'yes', "train.distill_opt.adaptive: 'yes'; accepted: true or false"),
        ('train.distill_opt.lambda', '4', "train.distill_opt.lambda: '4'; accepted: a number"),
        ('train.distill_opt.layer_weights', [0.5, 0.5], 'layer_weights: [0.5, 0.5] for 3 taps; accepted: one weight'),
        ('train.total_iter', 0, 'train.total_iter: 0; accepted: 1 or more'),
        ('datasets.train.gt_size', 25, 'datasets.train.gt_size: 25; accepted: a multiple of scale, 2'),
        ('datasets.train.batch_size_per_gpu', 0, 'datasets.train.batch_size_per_gpu: 0; accepted: 1 or more'),
        ('datasets.train.use_hflip', 'no', "datasets.train.use_hflip: 'no'; accepted: true or false"),
        ('logger.print_freq', 0, 'logger.print_freq: 0; accepted: 1 or more'),
        ('val.save_img', 1, 'val.save_img: 1; accepted: true or false'),
    ],
)  # fmt: skip
def test_a_bad_option_is_refused_with_its_key_and_what_is_accepted(train_opt, location, value, message):
    assert message in refusal(changed(train_opt, location, value))


@pytest.mark.parametrize(
    ('location', 'value', 'message'),
    [
        ('network_g.rgb_mean', [0.5], 'network_g: its class does not take these values (RuntimeError: '),
        ('teacher.network.num_feat', 6.5, 'teacher.network: its class does not take these values ('),
        ('train.optim_g.lr', -1, 'train.optim_g: its class does not take these values (ValueError: Invalid learning'),
        ('train.optim_g.betas', [0.9], 'train.optim_g: its class does not take these values'),
        (
            'train.distill_opt.negatives',
            'some',
            "train.distill_opt.negatives: 'some'; accepted: upper, all, per_anchor",
        ),
    ],
)
def test_a_value_that_a_class_refuses_is_refused_with_its_block(train_opt, tmp_path, location, value, message):
    path = write_yml(changed(train_opt, location, value), tmp_path / 'opt.yml')
    with pytest.raises(UserError, match=re.escape(message)):
        load_options(str(path), [], is_train=True)


def test_a_plain_model_needs_a_loss_of_images(train_opt):
    alone = {k: v for k, v in train_opt.items() if k not in ('teacher', 'taps', 'network_r')}
    alone = {**alone, 'model_type': 'SRModel', 'train': dict(train_opt['train'])}
    del alone['train']['distill_opt']
    assert 'train.pixel_opt: missing; accepted: a loss' in refusal(alone)
    alone['train']['pixel_opt'] = {'type': 'FACDLoss'}
    assert "train.pixel_opt.type: 'FACDLoss'; accepted: a loss of images" in refusal(alone)


def test_too_short_periods_are_refused(train_opt):
    train_opt['train']['scheduler'] = {'type': 'CosineAnnealingRestartLR', 'periods': [3]}
    assert 'train.scheduler.periods: [3]; accepted: a sum of total_iter or more' in refusal(train_opt)


@pytest.mark.parametrize('key', ['teacher', 'taps', 'network_r'])
def test_a_plain_model_refuses_what_only_distillation_reads(train_opt, key):
    alone = {k: v for k, v in train_opt.items() if k not in ('teacher', 'taps', 'network_r')}
    alone |= {'model_type': 'SRModel', key: train_opt[key]}
    assert f'{key}: unknown key' in refusal(alone)


def test_a_test_file_needs_a_test_set_and_a_checkpoint(train_opt, test_opt):
    assert 'train: this is a file for train.py' in refusal(train_opt, is_train=False)
    message = 'path.pretrain_network_g: None; accepted: text'
    assert message in refusal(changed(test_opt, 'path.pretrain_network_g', None), is_train=False)
    test_opt['path']['pretrain_network_g'] = 'net.pth'
    single = {**test_opt['datasets']['test_1'], 'type': 'SingleImageDataset'}
    del single['dataroot_gt']
    assert 'datasets.test_1 has no ground truth' in refusal(
        {**test_opt, 'datasets': {'test_1': single}}, is_train=False
    )
    test_opt['datasets'] = {'val': test_opt['datasets']['test_1']}
    assert 'datasets: val; accepted: at least one test set' in refusal(test_opt, is_train=False)


def test_yaml_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'bad.yml').write_text('name: !!python/object/apply:os.system ["touch attacked"]\n')
    with pytest.raises(UserError, match=r'bad.yml, line 1: could not determine a constructor'):
        load_options('bad.yml', [], is_train=True)
    assert not (tmp_path / 'attacked').exists()


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a: 1\nb: [1, 2\n', 'opt.yml, line 3'),
        ('train:\n  lr: 1\n  lr: 2\n', r"opt.yml, line 2: the key 'lr' stands twice"),
        ('? [a, b]\n: 1\n', 'opt.yml, line 1: found unhashable key'),
        ('name: 2024-13-45\n', 'opt.yml: month must be in'),
        ('name: !!float abc\n', 'opt.yml: could not convert string to float'),
    ],
)
def test_broken_yaml_is_refused_with_file_and_line(text, message):
    with pytest.raises(UserError, match=message):
        load_yaml(text, 'opt.yml')


def test_numbers_with_an_exponent_are_numbers():
    assert load_yaml('{a: 1e-4, b: 5e3, c: !!float 2e-4, d: 1.5e+2}', '') == {'a': 1e-4, 'b': 5e3, 'c': 2e-4, 'd': 150}


@pytest.mark.parametrize(
    ('entry', 'value'),
    [
        ('train:total_iter=20', 20),
        ('train:total_iter=2e-1', 0.2),
        ('train:total_iter=true', True),
        ('train:total_iter=[1, 2]', [1, 2]),
        ('train:total_iter=/data/a=b.pth', '/data/a=b.pth'),
        ('train:total_iter=None', None),
        ('train:total_iter=none', None),
        ('train:total_iter=~', None),
        ('train:total_iter=__import__("os").getcwd()', '__import__("os").getcwd()'),
    ],
)
def test_force_yml_sets_plain_values(entry, value):
    opt = {'train': {'total_iter': 1}}
    force_yml(opt, [entry])
    assert opt['train']['total_iter'] == value


@pytest.mark.parametrize(
    ('entry', 'message'),
    [
        ('train:total_iter', r"'train:total_iter'; accepted: key:key=value"),
        ('trian:total_iter=1', r"no key 'trian'; did you mean 'train'\?"),
        ('train:total_iter:deep=1', r"'total_iter' is not a block of keys; set it whole, as total_iter="),
        ('train:total_iter=!!python/name:os.system', 'could not determine a constructor'),
    ],
)
def test_bad_force_yml_is_refused(entry, message):
    with pytest.raises(UserError, match=message):
        force_yml({'train': {'total_iter': 1}}, [entry])


def test_a_misspelt_leaf_on_the_command_line_is_refused_by_the_check(train_opt, tmp_path):
    path = write_yml(train_opt, tmp_path / 'opt.yml')
    with pytest.raises(UserError, match=r"train.totl_iter: unknown key; did you mean 'total_iter'"):
        load_options(str(path), ['train:totl_iter=3'], is_train=True)


@pytest.mark.parametrize(
    ('location', 'page'),
    [
        ('datasets.train.dataroot_gt', 'datasets/README.md'),
        ('datasets.train.dataroot_lq', 'datasets/README.md'),
        ('datasets.val.dataroot_lq', 'datasets/README.md'),
        ('teacher.weights', 'docs/teachers.md'),
        ('path.resume_state', 'options/train/'),
        ('path.pretrain_network_g', 'options/train/'),
    ],
)
def test_a_missing_path_is_refused_with_its_key_and_the_page_that_helps(train_opt, tmp_path, location, page):
    missing = str(tmp_path / 'absent.lmdb')
    path = write_yml(changed(train_opt, location, missing), tmp_path / 'opt.yml')
    with pytest.raises(UserError, match=rf'opt.yml: {location}: no such (file|folder): {missing}; .*{page}'):
        load_options(str(path), [], is_train=True)


def test_pages_that_messages_name_exist():
    from conftest import REPOSITORY

    assert (REPOSITORY / 'datasets' / 'README.md').is_file()
    assert (REPOSITORY / 'docs' / 'teachers.md').is_file()


def test_an_unfinished_lmdb_is_refused(train_opt, tmp_path):
    (tmp_path / 'HR.lmdb').mkdir()
    path = write_yml(changed(train_opt, 'datasets.train.dataroot_gt', str(tmp_path / 'HR.lmdb')), tmp_path / 'opt.yml')
    with pytest.raises(UserError, match=r'dataroot_gt: .*HR.lmdb has no data.mdb, so it is not a finished LMDB'):
        load_options(str(path), [], is_train=True)


def test_lmdbs_of_another_scale_or_with_other_keys_are_refused(train_opt, tmp_path):
    gt = train_opt['datasets']['train']['dataroot_gt']
    same = write_yml(changed(train_opt, 'datasets.train.dataroot_lq', gt), tmp_path / 'same.yml')
    with pytest.raises(UserError, match=r'dataroot_lq: 0000_s001 is \(48, 48\) for a GT of \(48, 48\).*LQ for scale 2'):
        load_options(str(same), [], is_train=True)
    shutil.copytree(train_opt['datasets']['train']['dataroot_lq'], tmp_path / 'LR.lmdb')
    meta_info = tmp_path / 'LR.lmdb' / 'meta_info.txt'
    meta_info.write_text(meta_info.read_text().replace('0003_s001', '0009_s001'))
    other = write_yml(changed(train_opt, 'datasets.train.dataroot_lq', str(meta_info.parent)), tmp_path / 'other.yml')
    with pytest.raises(UserError, match=r'dataroot_lq: .*LR.lmdb and dataroot_gt differ in 0003_s001'):
        load_options(str(other), [], is_train=True)
    meta_info.write_text('not a list')
    with pytest.raises(UserError, match=r"meta_info.txt is not in BasicSR's format"):
        load_options(str(other), [], is_train=True)


@pytest.mark.parametrize('content', [None, '', '[1, 2]', '\x00'], ids=['absent', 'empty', 'list', 'control'])
def test_a_file_that_holds_no_options_is_refused(tmp_path, content):
    path = tmp_path / 'opt.yml'
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r'opt.yml'):
        load_options(str(path), [], is_train=True)


def images(folder: Path, *sizes: tuple[int, int]) -> str:
    folder.mkdir()
    for index, (height, width) in enumerate(sizes):
        cv2.imwrite(str(folder / f'{index}.png'), np.zeros((height, width, 3), np.uint8))
    return str(folder)


def data_refusal(train_opt: dict, tmp_path: Path, **values: object) -> str:
    """What is said of the validation set with these values."""
    train_opt['datasets']['val'] |= values
    with pytest.raises(UserError) as error:
        load_options(str(write_yml(train_opt, tmp_path / 'opt.yml')), [], is_train=True)
    assert 'datasets.val' in str(error.value)
    return str(error.value)


def test_folders_of_another_scale_are_refused(train_opt, tmp_path):
    lq = images(tmp_path / 'LQ', (8, 12), (8, 12))  # GT is 32 x 48: this is x4
    assert '0.png is (8, 12) for a GT of (32, 48) (height, width); accepted: LQ for scale 2' in data_refusal(
        train_opt, tmp_path, dataroot_lq=lq
    )


def test_a_gt_that_is_no_multiple_of_the_scale_is_accepted_in_validation(train_opt, tmp_path):
    train_opt['datasets']['val']['dataroot_gt'] = images(tmp_path / 'GT', (33, 49), (32, 48))
    load_options(str(write_yml(train_opt, tmp_path / 'opt.yml')), [], is_train=True)


def test_folders_that_hold_no_pairs_of_images_are_refused(train_opt, tmp_path, data):
    (tmp_path / 'above' / 'GT').mkdir(parents=True)
    assert 'above holds no files' in data_refusal(train_opt, tmp_path, dataroot_gt=str(tmp_path / 'above'))
    gt = images(tmp_path / 'GT', (32, 48), (32, 48), (32, 48))
    assert '2.png' in data_refusal(train_opt, tmp_path, dataroot_gt=gt)
    (tmp_path / 'GT' / '2.png').write_bytes(b'no image')
    (tmp_path / 'GT' / 'readme.txt').touch()
    assert 'readme.txt is no image; accepted in this folder: images only' in data_refusal(train_opt, tmp_path)
    (tmp_path / 'GT' / 'readme.txt').unlink()
    assert '2.png is no readable image' in data_refusal(train_opt, tmp_path)
    assert 'accepted with io_backend disk' in data_refusal(train_opt, tmp_path, dataroot_gt=str(data / 'HR.lmdb'))


def test_a_meta_info_file_with_a_missing_image_is_refused(train_opt, tmp_path):
    (tmp_path / 'meta.txt').write_text('0.png (32,48,3)\nabsent.png (32,48,3)\n')
    assert 'absent.png' in data_refusal(train_opt, tmp_path, meta_info_file=str(tmp_path / 'meta.txt'))


def test_an_lmdb_without_its_suffix_is_refused(train_opt, tmp_path, data):
    message = data_refusal(train_opt, tmp_path, dataroot_gt=str(data / 'GT'), io_backend={'type': 'lmdb'})
    assert 'accepted with io_backend lmdb: a folder whose name ends in .lmdb' in message


def parsed(opt: dict, tmp_path: Path, *flags: str) -> dict:
    args = parser().parse_args(['-opt', str(write_yml(opt, tmp_path / 'opt.yml')), *flags])
    return parse_options(args, is_train='train' in opt, root=tmp_path)


def test_derived_keys_are_those_of_basicsr(train_opt, tmp_path):
    opt = parsed(train_opt, tmp_path)
    home = tmp_path / 'experiments' / 'tiny'
    assert (opt['dist'], opt['rank'], opt['world_size'], opt['is_train'], opt['auto_resume']) == (
        False,
        0,
        1,
        True,
        False,
    )
    assert opt['datasets']['train']['phase'] == 'train' and opt['datasets']['val']['phase'] == 'val'
    assert {dataset['scale'] for dataset in opt['datasets'].values()} == {2}
    assert opt['path']['experiments_root'] == opt['path']['log'] == str(home)
    assert opt['path']['models'] == str(home / 'models')
    assert opt['path']['training_states'] == str(home / 'training_states')
    assert not home.exists()


def test_test_results_go_to_results(test_opt, tmp_path, teacher_weights):
    test_opt['path']['pretrain_network_g'] = str(teacher_weights)  # any file: its content is read later
    assert parsed(test_opt, tmp_path)['path']['results_root'] == str(tmp_path / 'results' / 'tiny_test')


def test_debug_renames_the_run_and_logs_saves_and_validates_often(train_opt, tmp_path):
    opt = parsed(train_opt, tmp_path, '--debug')
    assert opt['name'] == 'debug_tiny'
    assert (opt['logger']['print_freq'], opt['logger']['save_checkpoint_freq'], opt['val']['val_freq']) == (1, 8, 8)


def test_the_seed_is_the_files_or_drawn(train_opt, tmp_path):
    parsed(train_opt, tmp_path)
    first = torch.rand(1)
    parsed(train_opt, tmp_path)
    assert torch.equal(first, torch.rand(1))
    train_opt['manual_seed'] = None
    del train_opt['manual_seed']
    assert isinstance(parsed(train_opt, tmp_path)['manual_seed'], int)


def test_more_gpus_than_there_are_are_refused(train_opt, tmp_path):
    train_opt['num_gpu'] = 4096
    with pytest.raises(UserError, match=r'num_gpu: 4096; accepted: auto, or 0 to \d+, the GPUs here'):
        parsed(train_opt, tmp_path)


def test_several_gpus_without_a_launcher_are_refused_with_the_command(train_opt, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    assert parsed({**train_opt, 'num_gpu': 'auto'}, tmp_path)['num_gpu'] == 1
    with pytest.raises(UserError, match=r'num_gpu: 2 without --launcher; .*torchrun --nproc_per_node=2'):
        parsed({**train_opt, 'num_gpu': 2}, tmp_path)


@pytest.mark.parametrize(
    ('launcher', 'passed'), [('pytorch', {'backend': 'nccl'}), ('slurm', {'backend': 'nccl', 'port': 5})]
)
def test_the_port_of_dist_params_is_for_slurm_only(monkeypatch, launcher, passed):
    calls = []
    monkeypatch.setattr(distributed, 'basicsr_init_dist', lambda name, **params: calls.append((name, params)))
    distributed.init_dist(launcher, on_gpu=True, dist_params={'backend': 'nccl', 'port': 5})
    assert calls == [(launcher, passed)]


def test_slurm_without_gpus_is_refused(train_opt, tmp_path):
    with pytest.raises(UserError, match='--launcher: slurm without GPUs; accepted without GPUs: none, pytorch'):
        parsed(train_opt, tmp_path, '--launcher', 'slurm')


def test_several_processes_without_gpus_are_refused_for_basicsrs_own_model(test_opt, tmp_path, teacher_weights):
    test_opt['path']['pretrain_network_g'] = str(teacher_weights)
    with pytest.raises(UserError, match=r"--launcher: pytorch without GPUs; .*BasicSR's SRModel asks CUDA"):
        parsed(test_opt, tmp_path, '--launcher', 'pytorch')


def test_cuda_prefetch_without_a_gpu_is_refused(train_opt, tmp_path):
    train_opt['datasets']['train'] |= {'prefetch_mode': 'cuda', 'pin_memory': True}
    with pytest.raises(UserError, match='prefetch_mode: cuda; accepted without a GPU: ~, cpu'):
        parsed(train_opt, tmp_path)


def test_force_yml_may_be_given_several_times():
    assert parser().parse_args(['-opt', 'a', '--force_yml', 'a=1', '--force_yml', 'b=2']).force_yml == ['a=1', 'b=2']


def test_a_launcher_without_its_environment_is_refused(train_opt, tmp_path, monkeypatch):
    for key in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.delenv(key, raising=False)
    with pytest.raises(UserError, match=r'--launcher: pytorch, but .*environment.*torchrun'):
        parsed(train_opt, tmp_path, '--launcher', 'pytorch')
