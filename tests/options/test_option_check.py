import copy
import functools
import inspect
from pathlib import Path

import pytest
import torch
from basicsr.archs.srvgg_arch import SRVGGNetCompact
from basicsr.utils.registry import ARCH_REGISTRY, METRIC_REGISTRY
from conftest import METRICS, changed, tiny_test_opt, tiny_train_opt, with_two_teachers
from hypothesis import given, settings
from hypothesis import strategies as st

from facd_basicsr.errors import UserError
from facd_basicsr.options import schema
from facd_basicsr.options.build import dry_run
from facd_basicsr.options.option_check import check_options, option_blocks, with_defaults

RRDB = {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 1}
EXPECT = {'dataset': 'val', 'psnr_y': 32.4, 'tolerance': 0.1}


def refusal(opt: dict, is_train: bool = True) -> str:
    with pytest.raises(UserError) as error:
        check_options(opt, is_train)
    assert '\n' not in str(error.value)
    return str(error.value)


def test_a_teacher_is_required_by_a_loss_that_reads_it(train_opt):
    del train_opt['teacher']
    with pytest.raises(
        UserError, match=r'teacher: missing, and train\.distill_opt\.type: FACDLoss reads it; accepted: '
    ):
        dry_run(check_options(train_opt, is_train=True), is_train=True)
    del train_opt['taps'], train_opt['network_r']
    train_opt['train']['distill_opt'] = {'type': 'L1Loss', 'target': 'gt'}
    dry_run(check_options(train_opt, is_train=True), is_train=True)


def test_a_list_of_teachers_is_complete_with_defaults_and_each_is_checked(train_opt):
    opt = with_two_teachers(train_opt)
    found = check_options(opt, is_train=True)
    assert [own['format'] for own in found['teacher']] == ['auto', 'auto']
    assert [own['precision'] for own in found['teacher']] == [None, None]
    dry_run(found, is_train=True)
    found['teacher'][1]['network']['num_block'] = -1
    with pytest.raises(UserError, match=r'^teacher\[1\]\.network\.num_block: -1; '):
        check_options(found, is_train=True)


@pytest.mark.parametrize(
    ('location', 'value', 'message'),
    [
        ('teacher', [], 'teacher: []; accepted: a block, or a list of one or more'),
        ('teacher', 'a.pth', "teacher: 'a.pth'; accepted: a block of keys or a list"),
        ('teacher.0', 'a.pth', "teacher[0]: 'a.pth'; accepted: a block of keys"),
        ('teacher.1.wieghts', 'a.pth', "teacher[1].wieghts: unknown key; did you mean 'weights'?"),
        ('teacher.1.weights', ..., 'teacher[1].weights: missing; accepted: text'),
        ('teacher.1.network.upscale', 3, 'teacher[1].network.upscale: 3; accepted: 2, the scale of this file'),
        ('teacher.1.sha256', 'x', "teacher[1].sha256: 'x'; accepted: 8 to 64 hexadecimal digits"),
        ('teacher.1.compile', {'mod': 1}, 'teacher[1].compile.mod: unknown key'),
        ('teacher.1.expect', {'dataset': 'Set5', 'psnr_y': 30, 'tolerance': 1},
         "teacher[1].expect.dataset: 'Set5'; accepted: val"),
        ('taps.0.teacher', ['body.0'], 'taps[0].teacher: 1 paths for 2 teachers; accepted: a path for all, or a list'),
        ('taps.0.teacher.1', 3, 'taps[0].teacher[1]: 3; accepted: text'),
        ('train.teacher_target', 'median', "train.teacher_target: 'median'; accepted: mean, nearest"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_list_of_teachers_is_refused_by_its_place(train_opt, location, value, message):
    assert message in refusal(changed(with_two_teachers(train_opt), location, value))


def test_a_complete_file_is_accepted(train_opt, test_opt):
    check_options(train_opt, is_train=True)
    test_opt['path']['pretrain_network_g'] = 'net.pth'
    check_options(test_opt, is_train=False)


@pytest.mark.parametrize('with_block', [None, 'train.nonfinite', 'logger.wandb', 'train.compile', 'teacher.compile'])
def test_a_file_with_its_defaults_is_accepted_has_each_of_them_and_is_complete(train_opt, with_block):
    opt = changed(train_opt, with_block, {}) if with_block else train_opt
    before = copy.deepcopy(opt)
    complete = with_defaults(opt, is_train=True)
    assert opt == before
    check_options(complete, is_train=True)
    for where, block, keys in option_blocks(complete, is_train=True):
        assert [key for key, own in keys.items() if own.default is not ... and key not in block] == [], where
    assert with_defaults(complete, is_train=True) == complete


def test_a_default_that_yaml_cannot_hold_is_left_to_the_class(train_opt):
    train_opt['network_g'] = {'type': 'SwinIR', 'upscale': 2}
    network_opt = with_defaults(train_opt, is_train=True)['network_g']
    assert network_opt['window_size'] == 7 and 'norm_layer' not in network_opt


def test_sets_of_pairs_are_held_in_memory_in_training_only(train_opt, test_opt):
    for phase in ('train', 'val'):
        train_opt = changed(train_opt, f'datasets.{phase}.io_backend.type', 'memory')
    check_options(train_opt, is_train=True)
    block = {'name': 'val', 'type': 'SingleImageDataset', 'dataroot_lq': 'x', 'io_backend': {'type': 'memory'}}
    message = 'datasets.val.io_backend.type: memory; accepted with SingleImageDataset: disk, lmdb'
    assert refusal(changed(train_opt, 'datasets.val', block)) == message
    opt = changed(test_opt, 'datasets.test_1.io_backend.type', 'memory')
    opt['path']['pretrain_network_g'] = 'net.pth'
    message = "datasets.test_1.io_backend.type: 'memory'; accepted: disk, lmdb"
    assert refusal(opt, is_train=False) == message


def test_a_set_without_gt_can_not_tell_the_teachers_quality(train_opt):
    opt = changed(train_opt, 'teacher.expect', EXPECT)
    opt['datasets']['val'] = {
        'name': 'val',
        'type': 'SingleImageDataset',
        'dataroot_lq': 'x',
        'io_backend': {'type': 'disk'},
    }
    del opt['val']
    assert refusal(opt) == 'teacher.expect.dataset: a SingleImageDataset, without GT; accepted: a set of pairs'


def test_a_teacher_needs_no_network_and_may_say_how_it_is_to_be_taken(train_opt):
    check_options(changed(train_opt, 'teacher', {'weights': 'https://host/DAT_light_x2.pth'}), is_train=True)
    more = {'format': 'auto', 'sha256': '76EE1C8F', 'precision': 'bf16', 'expect': EXPECT}
    check_options(changed(train_opt, 'teacher', {**train_opt['teacher'], **more}), is_train=True)


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
        ('train.perceptual_opt', {'type': 'L1Loss'}, "train.perceptual_opt.type: 'L1Loss'; accepted: PerceptualLoss"),
        ('datasets.train.gt_sise', 24, "datasets.train.gt_sise: unknown key; did you mean 'gt_size'?"),
        ('datasets.train.io_backend.typ', 'disk', 'datasets.train.io_backend.typ: unknown key'),
        ('datasets.valid', {}, 'datasets.valid: unknown set; accepted: train, val, and val with _1, _2, ...'),
        ('datasets.train_1', {}, 'datasets.train_1: unknown set; accepted: train, val'),
        ('val.metrics.psnr_y.crop_boder', 2, "crop_boder: unknown key; did you mean 'crop_border'?"),
        ('val.val_frequency', 2, "val.val_frequency: unknown key; did you mean 'val_freq'?"),
        ('logger.print_frequency', 2, "logger.print_frequency: unknown key; did you mean 'print_freq'?"),
        ('path.pretrained_network_g', 'x', "did you mean 'pretrain_network_g'?"),
        ('teacher.expect', {'dataset': 'val', 'psnr': 32}, "teacher.expect.psnr: unknown key; did you mean 'psnr_y'?"),
        # types that nothing is registered for
        ('model_type', 'FACDModle', "model_type: 'FACDModle' is not registered; did you mean 'FACDModel'?"),
        ('network_g.type', 'EDSRStudnet', "'EDSRStudnet' is not registered; did you mean 'EDSRStudent'?"),
        ('network_g.type', 'SRVGGNet', "'SRVGGNet' is not registered; did you mean 'SRVGGNetCompact'?"),
        ('network_g.type', 'msrresnet_x4', "'msrresnet_x4' is not registered; did you mean 'MSRResNet'?"),
        ('train.distill_opt.type', 'FACD', "train.distill_opt.type: 'FACD' is not registered"),
        ('datasets.val.type', 'PairedDataset', "datasets.val.type: 'PairedDataset' is not registered"),
        ('val.metrics.psnr_y.type', 'psnr', "val.metrics.psnr_y.type: 'psnr' is not registered"),
        ('train.optim_g.type', 'Adm', "train.optim_g.type: 'Adm'; accepted: ASGD, Adadelta, Adafactor, Adagrad, Adam"),
        ('train.optim_g.type', 'LBFGS', "type: 'LBFGS' (LBFGS.step() missing 1 required positional argument"),
        ('train.optim_g.type', 'SparseAdam', "type: 'SparseAdam' (SparseAdam does not support dense gradients"),
        ('train.optim_g.betas_', [0.9, 1], "train.optim_g.betas_: unknown key; did you mean 'betas'?"),
        ('train.accum_iter', 2, 'train.accum_iter: 2; accepted: a divisor of datasets.train.batch_size_per_gpu, 3'),
        ('train.accum_iter', 0, 'train.accum_iter: 0; accepted: 1 or more'),
        ('train.log_gradient_share', 0, 'train.log_gradient_share: 0; accepted: 1 or more'),
        ('train.clip_grad_norm', 0, 'train.clip_grad_norm: 0; accepted: more than 0'),
        ('train.clip_grad_norm', 'l2', "train.clip_grad_norm: 'l2'; accepted: a number or nothing (null)"),
        ('train.scheduler.type', 'StepLR', "train.scheduler.type: 'StepLR'; accepted: Cosine"),
        ('datasets.val.io_backend.type', 'zip', "datasets.val.io_backend.type: 'zip'; accepted: disk, lmdb"),
        # missing
        ('scale', ..., 'scale: missing; accepted: a whole number'),
        ('model_type', ..., 'model_type: missing; accepted: text'),
        ('taps', ..., 'taps: []; accepted: one {student: PATH, teacher: PATH} or more'),
        ('train.distill_opt', ..., 'train.distill_opt: missing'),
        ('teacher.weights', ..., 'teacher.weights: missing; accepted: text'),
        ('teacher.network.num_in_ch', ..., 'teacher.network.num_in_ch: missing'),
        ('network_g.upscale', ..., 'network_g.upscale: missing; accepted: 2'),
        ('taps.1.student', ..., 'taps[1].student: missing'),
        ('datasets.train', ..., 'datasets.train: missing; accepted: a train set beside val'),
        ('datasets.train.gt_size', ..., 'datasets.train.gt_size: missing'),
        ('logger', ..., 'logger: missing; accepted: a block of keys'),
        ('train.optim_g.lr', ..., 'train.optim_g.lr: missing; accepted: a number'),
        ('train.scheduler.milestones', ..., 'train.scheduler.milestones: missing; accepted: a list'),
        ('val.metrics.psnr_y.crop_border', ..., 'val.metrics.psnr_y.crop_border: missing'),
        ('teacher.expect', {'dataset': 'val', 'psnr_y': 32}, 'teacher.expect.tolerance: missing; accepted: a number'),
        # wrong types and values
        ('teacher.format', 'keras', "teacher.format: 'keras'; accepted: auto, basicsr, edsr-pytorch, rcan, spandrel"),
        ('teacher.format', 'spandrel', 'teacher.network: accepted with format: spandrel: none'),
        ('teacher.precision', 'int8', "teacher.precision: 'int8'; accepted: null, fp32, tf32, bf16, fp16"),
        ('teacher.sha256', '76ee1c', "teacher.sha256: '76ee1c'; accepted: 8 to 64 hexadecimal digits"),
        ('teacher.expect', EXPECT | {'dataset': 'val_2'}, "teacher.expect.dataset: 'val_2'; accepted: val"),
        ('teacher.expect', EXPECT | {'dataset': 'train'}, "teacher.expect.dataset: 'train'; accepted: val"),
        ('teacher.sha256', 12345678, 'teacher.sha256: 12345678; accepted: 8 to 64 hexadecimal digits, in quotes'),
        ('train', ..., 'train: missing; accepted: a file for training such as those in options/train/'),
        ('teacher.expect', EXPECT | {'tolerance': 0}, 'teacher.expect.tolerance: 0; accepted: more than 0'),
        ('teacher', {'weights': 'x', 'format': 'rcan'}, 'teacher.network: missing; accepted with format: rcan'),
        ('taps', [], 'taps: []; accepted: one {student: PATH, teacher: PATH} or more'),
        ('train.optim_g.lr', 0, 'train.optim_g.lr: 0; accepted: more than 0'),
        ('train.optim_g.lr', float('nan'), 'train.optim_g.lr: nan; accepted: a finite number'),
        ('train.optim_g.betas', [0.9, 1], 'train.optim_g.betas[1]: 1; accepted: 0 or more, less than 1'),
        ('train.scheduler.gamma', float('inf'), 'train.scheduler.gamma: inf; accepted: a finite number'),
        ('train.scheduler.milestones', [0, 3], 'train.scheduler.milestones[0]: 0; accepted: 1 or more'),
        ('train.ema_decay', 1, 'train.ema_decay: 1; accepted: 0 or more, less than 1'),
        ('val.val_freq', 2.5, 'val.val_freq: 2.5; accepted: a whole number'),
        ('val.metrics.psnr_y.test_y_channel', ..., 'psnr_y.test_y_channel: missing; accepted: true or false'),
        ('val.metrics.psnr_y.input_order', 'CHW', "psnr_y.input_order: 'CHW'; accepted: HWC"),
        ('val.metrics.psnr_y.type', 'calculate_psnr_pt', 'type: calculate_psnr_pt expects tensors, not images; '),
        ('val.metrics.psnr_y.better', 'more', "psnr_y.better: 'more'; accepted: higher"),
        ('teacher.network.num_in_ch', True, 'teacher.network.num_in_ch: True; accepted: a whole number'),
        ('teacher.network.num_feat', 6.5, 'teacher.network.num_feat: 6.5; accepted: a whole number'),
        ('network_g.num_block', 0, 'network_g.num_block: 0; accepted: 1 or more, less than 10000'),
        ('network_r.num_layer', 10**9, 'network_r.num_layer: 1000000000; accepted: 1 or more, less than 10000'),
        ('network_g.img_range', 0, 'network_g.img_range: 0; accepted: more than 0'),
        ('datasets.val.name', '../..', "datasets.val.name: '../..'; accepted: a folder name"),
        ('datasets.train.num_worker_per_gpu', -1, 'datasets.train.num_worker_per_gpu: -1; accepted: 0 or more'),
        ('datasets.train.persistent_workers', True, 'accepted with num_worker_per_gpu: 1 or more'),
        ('datasets.val.filename_tmpl', '{x}', "datasets.val.filename_tmpl: '{x}'; accepted: text with {} for the name"),
        ('datasets.val.filename_tmpl', 'LQ', "datasets.val.filename_tmpl: 'LQ'; accepted: text with {} for the name"),
        ('datasets.train.mean', 0.5, 'datasets.train.mean: 0.5; accepted: a list or nothing (null)'),
        ('datasets.train.mean', [0.5] * 3, 'datasets.train.std: missing; accepted: mean and std, or none of them'),
        ('datasets.val.std', [0.5] * 3, 'datasets.val.mean: missing; accepted: mean and std, or none of them'),
        ('datasets.train.std', [1, 1, 0], 'datasets.train.std[2]: 0; accepted: more than 0'),
        ('manual_seed', 2**32, 'manual_seed: 4294967296; accepted: 0 or more, less than 2147483648'),
        # an option file may not name a folder whose modules are then imported
        ('datasets.val.io_backend', {'type': 'memcached', 'sys_path': 'x'}, "type: 'memcached'; accepted: disk, lmdb"),
        ('datasets.val.io_backend', {'type': 'memory', 'db_paths': 'x'}, 'io_backend.db_paths: unknown key'),
        ('scale', 0, 'scale: 0; accepted: 1 or more'),
        ('manual_seed', -1, 'manual_seed: -1; accepted: 0 or more'),
        ('datasets.val.name', 'pictures', "datasets: 'pictures' is the name of several sets"),
        ('datasets.train.prefetch_mode', 'cdua', "datasets.train.prefetch_mode: 'cdua'; accepted: null, cpu, cuda"),
        ('datasets.train.prefetch_mode', 'cuda', 'prefetch_mode: cuda; accepted with pin_memory: true only'),
        ('train.scheduler.milestones', 3, 'train.scheduler.milestones: 3; accepted: a list'),
        ('train.scheduler.milestones', None, 'train.scheduler.milestones: null; accepted: a list'),
        ('train.scheduler.milestones', ['a'], "train.scheduler.milestones[0]: 'a'; accepted: a whole number"),
        ('train.distill_opt.layer_weights', ['a', 1, 1], "train.distill_opt.layer_weights[0]: 'a'; accepted: a num"),
        ('train.distill_opt', {'type': 'GANLoss', 'gan_type': 'lsgan'}, "type: 'GANLoss'; accepted: CSDLoss,"),
        ('train.distill_opt', {'type': 'L1Loss'}, 'taps: given, but L1Loss compares images only; accepted: no taps'),
        ('train.distill_opt', {'a b': {'type': 'L1Loss'}}, 'train.distill_opt.a b: accepted as the name of a loss'),
        ('train.distill_opt', {'l_a': {'type': 'L1Loss'}}, 'train.distill_opt.l_a: accepted as the name of a loss'),
        ('train.distill_opt', {'sr': {'type': 'L1Loss', 'aim': 1}}, 'train.distill_opt.sr.aim: unknown key'),
        ('train.distill_opt', {'sr': {'lambda': 4}}, 'train.distill_opt.sr.type: missing'),
        ('train.distill_opt', {}, 'train.distill_opt.type: missing'),
        ('train.distill_opt.loss_weight', -1, 'train.distill_opt.loss_weight: -1; accepted: 0 or more'),
        ('train.distill_opt.lambda', {'start': 4}, 'train.distill_opt.lambda.end: missing; accepted: a number'),
        ('train.distill_opt.lambda', {'start': -4, 'end': 0, 'over': 9}, 'lambda.start: -4; accepted: 0 or more'),
        ('train.distill_opt.lambda', {'start': 4, 'end': 0, 'over': 0}, 'lambda.over: 0; accepted: 1 or more'),
        ('train.distill_opt.lambda', {'start': 4, 'end': 0, 'ovr': 9}, 'lambda.ovr: unknown key; did you mean'),
        (
            'train.distill_opt.layer_weights',
            [1, 2, {'start': 4, 'end': 0, 'over': 9, 'shape': 'sine'}],
            "train.distill_opt.layer_weights[2].shape: 'sine'; accepted: linear, cosine, step",
        ),
        ('train.distill_opt.img_range', {'start': 4, 'end': 5, 'over': 9}, 'train.distill_opt.img_range: {'),
        (
            'train.pixel_opt',
            {'type': 'L1Loss', 'target': 'gt'},
            'train.pixel_opt.target: unknown key',
        ),
        ('train.pixel_opt', {'type': 'FACDLoss'}, "train.pixel_opt.type: 'FACDLoss'; accepted: CharbonnierLoss, FFTL"),
        ('train.pixel_opt', {'type': 'GANLoss'}, "train.pixel_opt.type: 'GANLoss'; accepted: CharbonnierLoss, FFTLoss"),
        # before its keys, and only what may be there
        ('train.distill_opt', {'type': 'PerceptualLoss'}, "distill_opt.type: 'PerceptualLoss'; accepted: CSDLoss"),
        ('train.perceptual_opt', {'type': 'L2'}, "'L2' is not registered; did you mean 'PerceptualLoss'? Accepted: P"),
        (
            'train.distill_opt',
            {'sr': {'type': 'L1Loss', 'target': 'gated', 'reduction': 'sum'}, 'facd': {'type': 'FACDLoss'}},
            'train.distill_opt.sr.reduction: sum; accepted with target: gated: mean',
        ),
        (
            'train.distill_opt',
            {'sr': {'type': 'L1Loss', 'target': 'student'}},
            "train.distill_opt.sr.target: 'student'; accepted: gt, teacher, gated",
        ),
        (
            'train.distill_opt',
            {'a': {'type': 'FAKDLoss', 'layer_weights': [1, 1]}, 'b': {'type': 'FACDLoss'}},
            'train.distill_opt.a.layer_weights: [1, 1] for 3 taps; accepted: one weight per tap',
        ),
        ('val.metrics.psnr_y.crop_border', '2', "val.metrics.psnr_y.crop_border: '2'; accepted: a whole number"),
        ('logger.wandb', {'project': 'p'}, "logger.wandb.project: 'p'; accepted with use_tb_logger: true and wandb"),
        ('scale', '2', "scale: '2'; accepted: a whole number"),
        ('scale', True, 'scale: True; accepted: a whole number'),
        ('name', 'a/b', "name: 'a/b'; accepted: a folder name"),
        ('num_gpu', 'all', "num_gpu: 'all'; accepted: auto, or a number from 0"),
        ('network_g', None, 'network_g: null; accepted: a block of keys'),
        ('network_g.num_feat', 'many', "network_g.num_feat: 'many'; accepted: a whole number"),
        ('network_g.upscale', 4, 'network_g.upscale: 4; accepted: 2, the scale of this file'),
        ('network_g', RRDB | {'scale': 4}, 'network_g.scale: 4; accepted: 2, the scale of this file'),
        ('network_g', RRDB, 'network_g.scale: missing; accepted: 2, the scale of this file'),
        ('teacher.network', RRDB, 'teacher.network.scale: missing; accepted: 2, the scale of this file'),
        ('teacher.network.upscale', 4, 'teacher.network.upscale: 4; accepted: 2, the scale of this file'),
        ('taps', 'body.0', "taps: 'body.0'; accepted: a list"),
        ('taps.0', 'body.0', "taps[0]: 'body.0'; accepted: a block of keys"),
        ('train.distill_opt.adaptive', 'yes', "train.distill_opt.adaptive: 'yes'; accepted: true or false"),
        ('train.distill_opt.lambda', '4', "train.distill_opt.lambda: '4'; accepted: a number"),
        ('train.distill_opt.lambda', -1, 'train.distill_opt.lambda: -1; accepted: 0 or more'),
        ('train.distill_opt.img_range', 0, 'train.distill_opt.img_range: 0; accepted: more than 0'),
        ('train.distill_opt.layer_weights', [1, -1, 1], 'distill_opt.layer_weights[1]: -1; accepted: 0 or more'),
        ('train.distill_opt.negatives', 'some', "distill_opt.negatives: 'some'; accepted: upper, all, per_anchor"),
        ('train.distill_opt.layer_weights', [0.5, 0.5], 'layer_weights: [0.5, 0.5] for 3 taps; accepted: one weight'),
        ('train.total_iter', 0, 'train.total_iter: 0; accepted: 1 or more'),
        ('datasets.train.gt_size', 25, 'datasets.train.gt_size: 25; accepted: a multiple of scale, 2'),
        ('datasets.train.batch_size_per_gpu', 0, 'datasets.train.batch_size_per_gpu: 0; accepted: 1 or more'),
        ('datasets.train.use_hflip', 'no', "datasets.train.use_hflip: 'no'; accepted: true or false"),
        ('train.nonfinite', 'skip', "train.nonfinite: 'skip'; accepted: a block of keys"),
        ('train.nonfinite', {'limits': 1}, "train.nonfinite.limits: unknown key; did you mean 'limit'?"),
        ('train.nonfinite', {'action': 'ignore'}, "train.nonfinite.action: 'ignore'; accepted: skip, fatal"),
        ('train.nonfinite', {'limit': 0}, 'train.nonfinite.limit: 0; accepted: 1 or more'),
        ('train.nonfinite', {'limit': 2.5}, 'train.nonfinite.limit: 2.5; accepted: a whole number'),
        ('train.precision', 'half', "train.precision: 'half'; accepted: null, fp32, tf32, bf16, fp16"),
        ('train.precision', 16, 'train.precision: 16; accepted: text'),
        ('train.precision_g', 'bf16', "train.precision_g: unknown key; did you mean 'precision_r'?"),
        ('train.channels_last_r', 1, 'train.channels_last_r: 1; accepted: true or false'),
        ('train.compile', True, 'train.compile: True; accepted: a block of keys or nothing (null)'),
        ('train.compile', {'mode': 'fast'}, "train.compile.mode: 'fast'; accepted: default, reduce-overhead, max-auto"),
        ('train.compile_r', {'backend': 'inductor'}, 'train.compile_r.backend: unknown key'),
        ('teacher.compile', {'fullgraph': 1}, 'teacher.compile.fullgraph: 1; accepted: true or false'),
        ('logger.print_freq', 0, 'logger.print_freq: 0; accepted: 1 or more'),
        ('val.save_img', 1, 'val.save_img: 1; accepted: true or false'),
    ],
)  # fmt: skip
def test_a_bad_option_is_refused_with_its_key_and_what_is_accepted(train_opt, location, value, message):
    assert message in refusal(changed(train_opt, location, value))


@pytest.mark.parametrize(
    ('location', 'default'),
    [
        ('val', None),
        ('datasets.val.color', None),
        ('dist_params', {'backend': 'nccl', 'port': None}),
        ('train.nonfinite', {'action': 'skip', 'limit': 10}),
        ('train.ema_decay', 0),
        ('train.distill_opt.negatives', 'upper'),
        ('network_g.res_scale', 1.0),
        ('teacher.expect', ...),
        ('logger.keep_best', False),
    ],
)
def test_null_takes_an_optional_key_or_block_out(train_opt, location, default):
    given = changed(train_opt, location, None)
    complete = check_options(given, is_train=True)
    assert (
        complete == check_options(changed(given, location, ...), is_train=True) == with_defaults(given, is_train=True)
    )
    *blocks, leaf = location.split('.')
    assert functools.reduce(dict.__getitem__, blocks, complete).get(leaf, ...) == default


def test_a_network_of_basicsrs_is_named_without_its_suffix_and_found_without_a_word(train_opt, capsys):
    train_opt['network_g'] = {'type': 'SRVGGNetCompact', 'num_feat': 4, 'num_conv': 2, 'upscale': 2}
    assert check_options(train_opt, is_train=True)['network_g']['type'] == 'SRVGGNetCompact'
    assert ARCH_REGISTRY.get('SRVGGNetCompact') is SRVGGNetCompact
    with pytest.raises(KeyError, match="No object named 'SRVGGNet'"):
        ARCH_REGISTRY.get('SRVGGNet')
    assert capsys.readouterr().out == ''
    message = refusal(changed(train_opt, 'network_g.type', 'SRVGGNet'))
    assert 'SRVGGNetCompact,' in message and '_basicsr' not in message


def test_a_plain_model_needs_a_loss_of_images(train_opt):
    alone = {k: v for k, v in train_opt.items() if k not in ('teacher', 'taps', 'network_r')}
    alone = {**alone, 'model_type': 'SRModel', 'train': dict(train_opt['train'])}
    del alone['train']['distill_opt']
    assert 'train.pixel_opt: missing; accepted: a loss' in refusal(alone)
    alone['train']['pixel_opt'] = {'type': 'FACDLoss'}
    assert "train.pixel_opt.type: 'FACDLoss'; accepted: CharbonnierLoss, FFTLoss" in refusal(alone)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'type': 'FFTLoss', 'of': 'phase'}, "train.pixel_opt.of: 'phase'; accepted: complex, amplitude_phase"),
        ({'type': 'FFTLoss', 'norm': 'forward'}, "train.pixel_opt.norm: 'forward'; accepted: backward, ortho"),
        ({'type': 'FFTLoss', 'levels': 2}, 'train.pixel_opt.levels: unknown key; did you mean'),
        ({'type': 'WaveletLoss', 'levels': 0}, 'train.pixel_opt.levels: 0; accepted: 1 or more'),
        ({'type': 'WaveletLoss', 'levels': 1.5}, 'train.pixel_opt.levels: 1.5; accepted: a whole number'),
        ({'type': 'WaveletLoss', 'll': 1}, 'train.pixel_opt.ll: 1; accepted: true or false'),
        ({'type': 'GradientLoss', 'reduction': 'none'}, "train.pixel_opt.reduction: 'none'; accepted: mean, sum"),
        ({'type': 'GradientLoss', 'loss_weight': '1'}, "train.pixel_opt.loss_weight: '1'; accepted: a number"),
    ],
)
def test_a_pixel_loss_refuses_options_in_a_line(train_opt, changes, message):
    alone = {k: v for k, v in train_opt.items() if k not in ('teacher', 'taps', 'network_r')}
    del alone['train']['distill_opt']
    alone |= {'model_type': 'SRModel'}
    alone['train']['pixel_opt'] = changes
    assert refusal(alone).startswith(message)


def test_the_regressors_precision_must_go_with_the_students_in_one_backward(train_opt):
    train_opt['train'] |= {'precision': 'tf32', 'precision_r': 'fp32'}
    expected = 'train.precision_r: fp32; accepted with train.precision: fp32, bf16 or fp16, here '
    assert refusal(train_opt) == expected + 'tf32'
    assert refusal(changed(train_opt, 'train.precision', ...)) == expected + 'not given'
    for precision in ('tf32', 'bf16', 'fp16'):
        train_opt['train']['precision_r'] = precision
        check_options(train_opt, is_train=True)
    train_opt['train']['nonfinite'] = {'limit': 1}
    assert refusal(train_opt) == 'train.nonfinite.limit: 1; accepted with train.precision_r: fp16: 2 or more'


def test_how_regressors_run_is_refused_where_there_are_none(train_opt):
    train_opt['train']['compile_r'] = {}
    del train_opt['network_r']
    assert refusal(train_opt) == 'train.compile_r: given, but there is no network_r; accepted: no compile_r'


def test_a_start_on_the_first_batch_is_for_regressors_that_can(train_opt):
    for init in ('auto', 'random', 'first_batch'):
        assert check_options(changed(train_opt, 'train.init_r', init), is_train=True)['train']['init_r'] == init
    assert check_options(train_opt, is_train=True)['train']['init_r'] == 'random'
    assert "train.init_r: 'ridge'; accepted: auto, first_batch, random" in refusal(
        changed(train_opt, 'train.init_r', 'ridge')
    )
    train_opt['train']['init_r'] = 'first_batch'
    foreign = changed(train_opt, 'network_r', {'type': 'EDSR', 'upscale': 2})
    assert refusal(foreign).startswith('train.init_r: first_batch; accepted with network_r.type: EDSR: auto or random')
    del train_opt['network_r']
    assert refusal(train_opt) == 'train.init_r: first_batch, but there is no network_r; accepted: no init_r'


def test_what_is_done_about_losses_that_are_not_finite_and_precision_are_for_every_model_that_is_known(
    train_opt,
):
    train_opt['train'] |= {'nonfinite': {'action': 'fatal'}, 'precision': 'bf16'}
    check_options(train_opt, is_train=True)
    alone = {k: v for k, v in train_opt.items() if k not in ('teacher', 'taps', 'network_r')}
    alone = {**alone, 'model_type': 'SRModel', 'train': {**train_opt['train'], 'pixel_opt': {'type': 'L1Loss'}}}
    del alone['train']['distill_opt']
    check_options(alone, is_train=True)
    assert 'train.precision_r: unknown key' in refusal(changed(alone, 'train.precision_r', 'bf16'))  # no regressors


def test_float16_whose_scale_fails_a_step_now_and_then_needs_a_limit_above_one(train_opt):
    train_opt['train'] |= {'nonfinite': {'limit': 1}, 'precision': 'fp16'}
    assert refusal(train_opt) == 'train.nonfinite.limit: 1; accepted with train.precision: fp16: 2 or more'
    check_options(changed(train_opt, 'train.nonfinite.limit', 2), is_train=True)


def test_every_optimizer_has_the_keys_of_its_own_signature_and_those_that_need_matrices_are_refused(train_opt):
    for name in [name for name, cls in schema.optimizers().items() if isinstance(cls, type)]:
        optim_opt = check_options(changed(train_opt, 'train.optim_g.type', name), is_train=True)['train']['optim_g']
        expected = inspect.signature(getattr(torch.optim, name)).parameters.keys()
        without_use = {'params', 'maximize', 'capturable', 'differentiable'}
        assert optim_opt.keys() - {'type'} == expected - without_use, name
        dry_run({**train_opt, 'train': {**train_opt['train'], 'optim_g': optim_opt}, 'teacher': {}}, is_train=True)
    train_opt['train']['optim_g'] = {'type': 'Adam', 'lr': 1e-3, 'differentiable': True}
    assert 'train.optim_g.differentiable: unknown key' in refusal(train_opt)
    train_opt['train']['optim_g'] = {'type': 'Muon', 'lr': 1e-3, 'momentum': 0.9}
    assert "train.optim_g.type: 'Muon'" in refusal(train_opt)  # of which old releases of torch know nothing
    train_opt['train']['optim_g'] = {'type': 'Adafactor', 'lr': 1e-3, 'eps': [None, 1e-3]}
    check_options(train_opt, is_train=True)
    train_opt['train']['optim_g'] = {'type': 'Adafactor', 'lr': 1e-3, 'betas': [0.9, 0.99]}
    assert 'train.optim_g.betas: unknown key' in refusal(train_opt)


def test_mean_and_std_have_a_number_of_each_channel(train_opt):
    train_opt['datasets']['train'] |= {'mean': [0.5], 'std': [0.5]}
    assert refusal(train_opt) == 'datasets.train.mean: [0.5]; accepted: 3 numbers, one of each channel'
    train_opt['datasets']['train'] |= {'mean': [0.5] * 3, 'std': [0.5] * 3}
    check_options(train_opt, is_train=True)


def test_gradient_shares_are_logged_in_iterations_that_are_printed(train_opt):
    train_opt['logger']['print_freq'] = 100
    train_opt['train']['log_gradient_share'] = 1000
    check_options(train_opt, is_train=True)
    train_opt['train']['log_gradient_share'] = 150
    assert refusal(train_opt) == 'train.log_gradient_share: 150; accepted: a multiple of logger.print_freq, 100'


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
    message = 'path.pretrain_network_g: null; accepted: text'
    assert message in refusal(changed(test_opt, 'path.pretrain_network_g', None), is_train=False)
    test_opt['path']['pretrain_network_g'] = 'net.pth'
    test_opt['datasets'] = {'val': test_opt['datasets']['test_1']}
    assert 'datasets.test: missing; accepted: a test set beside val' in refusal(test_opt, is_train=False)


NIQE = {'type': 'calculate_niqe', 'crop_border': 2}


def test_the_direction_of_basicsrs_metrics_is_known(test_opt):
    test_opt['path']['pretrain_network_g'] = 'net.pth'
    test_opt['val']['metrics']['niqe'] = NIQE
    complete = check_options(test_opt, is_train=False)['val']['metrics']
    assert {name: block['better'] for name, block in complete.items()} == {
        'psnr_y': 'higher',
        'ssim_y': 'higher',
        'psnr_rgb': 'higher',
        'niqe': 'lower',
    }
    wrong = changed(test_opt, 'val.metrics.niqe.better', 'higher')
    assert refusal(wrong, is_train=False) == "val.metrics.niqe.better: 'higher'; accepted: lower"


def test_the_direction_of_another_metric_must_be_said(test_opt, monkeypatch):
    monkeypatch.setitem(METRIC_REGISTRY._obj_map, 'own', lambda img, img2: 0.0)
    test_opt['path']['pretrain_network_g'] = 'net.pth'
    test_opt['val']['metrics'] = {'own': {'type': 'own'}}
    assert refusal(test_opt, is_train=False) == 'val.metrics.own.better: missing; accepted: higher, lower'
    test_opt['val']['metrics']['own']['better'] = 'lower'
    check_options(test_opt, is_train=False)


def without_gt(block: dict) -> dict:
    single = {**block, 'type': 'SingleImageDataset'}
    del single['dataroot_gt']
    return single


def test_a_set_without_gt_needs_a_metric_that_needs_none(test_opt):
    test_opt['path']['pretrain_network_g'] = 'net.pth'
    test_opt['datasets'] = {'test_1': without_gt(test_opt['datasets']['test_1'])}
    message = 'val.metrics: psnr_rgb, psnr_y, ssim_y: datasets.test_1 has no ground truth; accepted: no metrics, one'
    assert refusal(test_opt, is_train=False).startswith(message)
    check_options(changed(test_opt, 'val.metrics', None), is_train=False)
    test_opt['val']['metrics']['niqe'] = NIQE
    check_options(test_opt, is_train=False)


def test_the_best_is_kept_by_a_metric_that_the_first_set_has(train_opt):
    train_opt['logger']['keep_best'] = True
    train_opt['datasets']['val'] = without_gt(train_opt['datasets']['val'])
    train_opt['val']['metrics'] = {'psnr_y': METRICS['psnr_y'], 'niqe': NIQE}
    assert refusal(train_opt).startswith(
        'logger.keep_best: true, which is by the first metric, psnr_y, on the first set, datasets.val, which has no'
    )
    train_opt['val']['metrics'] = {'niqe': NIQE}
    check_options(train_opt, is_train=True)


TRAIN, TEST = tiny_train_opt(Path('data'), Path('teacher.pth')), tiny_test_opt(Path('data'))
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-2, 4)
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(['EDSR', 'FACDLoss', 'L1Loss', 'PairedImageDataset', 'SRModel', 'Adam', 'lmdb', 'a\nb'])
)
names = (
    st.text(max_size=4) | st.integers(0, 2) | st.none() | st.sampled_from(['type', 'name', 'val', 'test_1', 'upscale'])
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=6
)


def places(block: object, at: tuple = ()) -> list[tuple]:
    items = block.items() if isinstance(block, dict) else enumerate(block) if isinstance(block, list) else ()
    return [place for key, value in items for place in ((*at, key), *places(value, (*at, key)))]


@settings(max_examples=3 * settings.default.max_examples)
@given(st.data())
def test_whatever_stands_wherever_is_accepted_or_refused_in_a_line_and_left_as_it_is(data):
    opt = copy.deepcopy(data.draw(st.sampled_from([TRAIN, TEST])))
    is_train = 'train' in opt
    for _ in range(data.draw(st.integers(1, 3))):
        *parents, key = data.draw(st.sampled_from(places(opt)))
        parent = functools.reduce(lambda block, key: block[key], parents, opt)
        if isinstance(parent, dict) and data.draw(st.booleans()):
            key = data.draw(names)
        parent[key] = data.draw(values)
    before = repr(opt)  # nan is not equal to itself
    try:
        check_options(opt, is_train)
        dry_run(opt, is_train)
    except UserError as error:
        assert len(str(error).splitlines()) == 1
    assert repr(opt) == before
