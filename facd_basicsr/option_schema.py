"""What an option file may say. Refuses the rest, naming the nearest valid key."""

import difflib
import importlib.util
from collections.abc import Iterable
from typing import Any

import torch
from basicsr.models import lr_scheduler
from basicsr.utils.file_client import FileClient
from basicsr.utils.registry import (
    ARCH_REGISTRY,
    DATASET_REGISTRY,
    LOSS_REGISTRY,
    METRIC_REGISTRY,
    MODEL_REGISTRY,
    Registry,
)

from facd_basicsr.construct import Key, keys_read, signature_keys
from facd_basicsr.errors import UserError
from facd_basicsr.losses import DistillLoss

NUMBER = (int, float)
OPTIONAL_STR = (str, type(None))

# Filled in by facd_basicsr.options or by BasicSR, so not for the option file.
DERIVED = {'dist', 'rank', 'world_size', 'is_train', 'auto_resume', 'root_path', 'phase', 'scale'}

TOP = {
    'name': Key((str,), required=True),
    'model_type': Key((str,), required=True),
    'scale': Key((int,), required=True),
    'num_gpu': Key((int, str), required=True),
    'manual_seed': Key((int,)),
    'datasets': Key((dict,), required=True),
    'network_g': Key((dict,), required=True),
    'path': Key((dict,), required=True),
    'find_unused_parameters': Key((bool,)),
}
TOP_TRAIN = {
    'train': Key((dict,), required=True),
    'val': Key((dict, type(None))),
    'logger': Key((dict,), required=True),
    'dist_params': Key((dict,)),
}
TOP_TEST = {'val': Key((dict,), required=True)}
DATASET = {
    'name': Key((str,), required=True),
    'type': Key((str,), required=True),
    'pin_memory': Key((bool,)),
    'persistent_workers': Key((bool,)),
    'prefetch_mode': Key(OPTIONAL_STR),
    'num_prefetch_queue': Key((int,)),
}
DATASET_TRAIN = {
    'num_worker_per_gpu': Key((int,), required=True),
    'batch_size_per_gpu': Key((int,), required=True),
    'dataset_enlarge_ratio': Key((int,)),
    'use_shuffle': Key((bool,)),
}
# Types of what datasets read from their block; a key of a registered dataset that is not here accepts any value.
DATASET_TYPES = {
    'dataroot_gt': (str,),
    'dataroot_lq': (str,),
    'meta_info_file': OPTIONAL_STR,
    'filename_tmpl': (str,),
    'io_backend': (dict,),
    'gt_size': (int,),
    'use_hflip': (bool,),
    'use_rot': (bool,),
}
DATASET_REQUIRED = {'PairedImageDataset': {'dataroot_gt', 'dataroot_lq', 'io_backend'}}
DATASET_REQUIRED_TRAIN = {'PairedImageDataset': {'gt_size', 'use_hflip', 'use_rot'}}
TRAIN = {
    'total_iter': Key((int,), required=True),
    'warmup_iter': Key((int,)),
    'optim_g': Key((dict,), required=True),
    'scheduler': Key((dict,), required=True),
}
TRAIN_TYPES = {'ema_decay': NUMBER, 'distill_opt': (dict,), 'pixel_opt': (dict,), 'perceptual_opt': (dict,)}
VAL = {'metrics': Key((dict, type(None))), 'pbar': Key((bool,)), 'save_img': Key((bool,), required=True)}
VAL_TRAIN = {**VAL, 'val_freq': Key(NUMBER, required=True)}
VAL_TEST = {**VAL, 'suffix': Key(OPTIONAL_STR, required=True)}
LOGGER = {
    'print_freq': Key((int,), required=True),
    'save_checkpoint_freq': Key(NUMBER, required=True),
    'use_tb_logger': Key((bool,), required=True),
    'wandb': Key((dict, type(None))),
}
WANDB = {'project': Key(OPTIONAL_STR), 'resume_id': Key(OPTIONAL_STR)}
TEACHER = {'network': Key((dict,), required=True), 'weights': Key((str,), required=True)}
TAP = {'student': Key((str,), required=True), 'teacher': Key((str,), required=True)}
METRIC = {'type': Key((str,), required=True), 'better': Key((str,))}
DIST_PARAMS = {'backend': Key((str,)), 'port': Key((int,))}

PREFETCH_MODES = (None, 'cpu', 'cuda')

# What signatures do not say.
METRIC_KEYS = {'crop_border': Key((int,), required=True)}
OPTIM_KEYS = {'lr': Key(NUMBER, required=True)}
WHOLE_NUMBERS = Key((list,), required=True, items=(int,))
SCHEDULER_KEYS = {'milestones': WHOLE_NUMBERS, 'periods': WHOLE_NUMBERS}

OPTIMIZERS = {'Adam': torch.optim.Adam}  # all that BasicSR's get_optimizer knows
SCHEDULERS = {
    'MultiStepLR': lr_scheduler.MultiStepRestartLR,
    'MultiStepRestartLR': lr_scheduler.MultiStepRestartLR,
    'CosineAnnealingRestartLR': lr_scheduler.CosineAnnealingRestartLR,
}


def check(opt: dict[str, Any], is_train: bool) -> None:
    """Checks every key of an option dict as it stands in the file, against tables and signatures.

    Args:
        opt: what the YAML file holds, with the command line's overrides.
        is_train: whether it is meant for train.py or for test.py.

    Raises:
        UserError: a key is unknown, missing, of the wrong type, or disagrees with another.
    """
    _check_block('', opt, TOP, complete=False)
    if not is_train and 'train' in opt:
        raise UserError('train: this is a file for train.py; accepted: a test file such as those in options/test/')
    model = _registered(MODEL_REGISTRY, 'model_type', opt['model_type'])
    accepted = {**TOP, **(TOP_TRAIN if is_train else TOP_TEST)}
    if is_train:
        own = keys_read(model, 'opt') - accepted.keys() - DERIVED
        accepted |= {key: Key(_block_types(key)) for key in own}
    accepted |= {key: Key((dict,)) for key in keys_read(model, 'opt') if key.startswith('network_') and key not in TOP}
    _check_block('', opt, accepted)

    _check_top_values(opt)
    _check_datasets(opt, is_train)
    for key, network_opt in opt.items():
        if key.startswith('network_'):
            _check_network(key, network_opt, opt['scale'], ('num_in_ch', 'num_out_ch') if key == 'network_r' else ())
    _check_path(opt, is_train)
    if opt.get('val') is not None:
        _check_block('val', opt['val'], VAL_TRAIN if is_train else VAL_TEST)
        _check_metrics(opt)
    if is_train:
        _check_train(opt, model)


def _check_top_values(opt: dict[str, Any]) -> None:
    name, num_gpu = opt['name'], opt['num_gpu']
    if not name or '/' in name or name.startswith('.'):
        raise UserError(f'name: {name!r}; accepted: a folder name')
    if num_gpu != 'auto' and not (isinstance(num_gpu, int) and num_gpu >= 0):
        raise UserError(f'num_gpu: {num_gpu!r}; accepted: auto, or a number from 0')
    if opt['scale'] < 1:
        raise UserError(f'scale: {opt["scale"]}; accepted: 1 or more')
    if opt.get('manual_seed', 0) < 0:
        raise UserError(f'manual_seed: {opt["manual_seed"]}; accepted: 0 or more')


def _check_datasets(opt: dict[str, Any], is_train: bool) -> None:
    phases = ('train', 'val') if is_train else ('test', 'val')
    for name, dataset_opt in opt['datasets'].items():
        where = f'datasets.{name}'
        phase = str(name).split('_')[0]
        if phase not in phases or (phase == 'train' and name != 'train'):
            several = phases[-1] if is_train else f'{phases[0]} and {phases[1]}'
            raise UserError(f'{where}: unknown set; accepted: {", ".join(phases)}, and {several} with _1, _2, ...')
        _check_type(where, dataset_opt, (dict,))
        _check_block(where, dataset_opt, DATASET, complete=False)
        dataset = _registered(DATASET_REGISTRY, f'{where}.type', dataset_opt['type'])
        training = phase == 'train'
        required = DATASET_REQUIRED.get(dataset_opt['type'], set())
        if training:
            required = required | DATASET_REQUIRED_TRAIN.get(dataset_opt['type'], set())
        own = {key: Key(DATASET_TYPES.get(key, ()), key in required) for key in keys_read(dataset, 'opt') - DERIVED}
        _check_block(where, dataset_opt, {**own, **DATASET, **(DATASET_TRAIN if training else {})})
        _check_io_backend(where, dataset_opt)
        gt_size = dataset_opt.get('gt_size')
        if gt_size is not None and gt_size % opt['scale']:
            raise UserError(f'{where}.gt_size: {gt_size}; accepted: a multiple of scale, {opt["scale"]}')
        if dataset_opt.get('prefetch_mode') not in PREFETCH_MODES:
            mode = dataset_opt['prefetch_mode']
            raise UserError(f'{where}.prefetch_mode: {mode!r}; accepted: ~, cpu, cuda')
        if dataset_opt.get('prefetch_mode') == 'cuda' and not dataset_opt.get('pin_memory'):
            raise UserError(f'{where}.prefetch_mode: cuda; accepted with pin_memory: true only')
        for key in ('batch_size_per_gpu', 'gt_size', 'dataset_enlarge_ratio'):
            if dataset_opt.get(key, 1) < 1:
                raise UserError(f'{where}.{key}: {dataset_opt[key]}; accepted: 1 or more')
    names = [dataset_opt['name'] for dataset_opt in opt['datasets'].values()]
    for name in {name for name in names if names.count(name) > 1}:
        raise UserError(f'datasets: {name!r} is the name of several sets; accepted: a name for each')
    if phases[0] not in {str(name).split('_')[0] for name in opt['datasets']}:
        raise UserError(f'datasets: {_listed(opt["datasets"])}; accepted: at least one {phases[0]} set')


def _check_io_backend(where: str, dataset_opt: dict[str, Any]) -> None:
    where, block = f'{where}.io_backend', dataset_opt.get('io_backend')
    if block is None:
        return
    _check_block(where, block, {'type': Key((str,), required=True)}, complete=False)
    backends = FileClient._backends
    if block['type'] not in backends:
        raise UserError(f'{where}.type: {block["type"]!r}; accepted: {_listed(backends)}')
    # A dataset fills in the LMDB's folders itself.
    keys = signature_keys(backends[block['type']], supplied=('db_paths', 'client_keys'))
    _check_block(where, block, {'type': Key((str,)), **keys})


def _check_network(where: str, network_opt: dict[str, Any], scale: int, supplied: tuple[str, ...] = ()) -> None:
    _check_call(where, network_opt, ARCH_REGISTRY, supplied)
    upscale = network_opt.get('upscale')
    if upscale is None and 'upscale' in signature_keys(_registered(ARCH_REGISTRY, where, network_opt['type'])):
        raise UserError(f'{where}.upscale: missing; accepted: {scale}, the scale of this file')
    if upscale is not None and upscale != scale:
        raise UserError(f'{where}.upscale: {upscale}; accepted: {scale}, the scale of this file')


def _check_path(opt: dict[str, Any], is_train: bool) -> None:
    accepted = {'resume_state': Key(OPTIONAL_STR), 'ignore_resume_networks': Key((list, str))}
    for key in opt:
        if key.startswith('network_'):
            suffix = key.removeprefix('network_')
            accepted[f'pretrain_network_{suffix}'] = Key(OPTIONAL_STR)
            accepted[f'param_key_{suffix}'] = Key(OPTIONAL_STR)
            accepted[f'strict_load_{suffix}'] = Key((bool,))
    if not is_train:
        accepted['pretrain_network_g'] = Key((str,), required=True)
    _check_block('path', opt['path'], accepted)


def _check_metrics(opt: dict[str, Any]) -> None:
    for name, block in (opt['val'].get('metrics') or {}).items():
        where = f'val.metrics.{name}'
        _check_type(where, block, (dict,))
        _check_block(where, block, METRIC, complete=False)
        keys = signature_keys(_registered(METRIC_REGISTRY, f'{where}.type', block['type']), supplied=('img', 'img2'))
        _check_block(where, block, {**METRIC, **keys, **{k: v for k, v in METRIC_KEYS.items() if k in keys}})
        for phase, dataset_opt in opt['datasets'].items():
            if phase != 'train' and 'dataroot_gt' not in dataset_opt and dataset_opt['type'] == 'SingleImageDataset':
                raise UserError(f'{where}: datasets.{phase} has no ground truth; accepted: no metrics, or dataroot_gt')


def _check_train(opt: dict[str, Any], model: type) -> None:
    train_opt = opt['train']
    own = {key: Key(TRAIN_TYPES.get(key, ())) for key in keys_read(model, 'train_opt')}
    _check_block('train', train_opt, {**own, **TRAIN})
    if train_opt['total_iter'] < 1:
        raise UserError(f'train.total_iter: {train_opt["total_iter"]}; accepted: 1 or more')
    _check_choice('train.optim_g', train_opt['optim_g'], OPTIMIZERS, OPTIM_KEYS, supplied=('params',))
    _check_choice('train.scheduler', train_opt['scheduler'], SCHEDULERS, SCHEDULER_KEYS, supplied=('optimizer',))
    periods = train_opt['scheduler'].get('periods')
    if periods is not None and sum(periods) < train_opt['total_iter']:
        raise UserError(f'train.scheduler.periods: {periods}; accepted: a sum of total_iter or more')
    for key, block in train_opt.items():
        if key.endswith('_opt') and block is not None:
            _check_call(f'train.{key}', block, LOSS_REGISTRY)
            distills = issubclass(LOSS_REGISTRY.get(block['type']), DistillLoss)
            if distills != (key == 'distill_opt'):
                losses = [name for name, loss in LOSS_REGISTRY if issubclass(loss, DistillLoss)]
                accepted = f'{_listed(losses)}' if key == 'distill_opt' else 'a loss of images'
                raise UserError(f'train.{key}.type: {block["type"]!r}; accepted: {accepted}')
    if 'pixel_opt' in own and not (train_opt.get('pixel_opt') or train_opt.get('perceptual_opt')):
        raise UserError('train.pixel_opt: missing; accepted: a loss, e.g. {type: L1Loss}, here or as perceptual_opt')
    _check_logger(opt['logger'])
    for where, value in (
        ('logger.print_freq', opt['logger']['print_freq']),
        ('logger.save_checkpoint_freq', opt['logger']['save_checkpoint_freq']),
        ('val.val_freq', (opt.get('val') or {}).get('val_freq', 1)),
    ):
        if value < 1:
            raise UserError(f'{where}: {value}; accepted: 1 or more')
    _check_block('dist_params', opt.get('dist_params', {}), DIST_PARAMS)
    if 'distill_opt' in own:
        _check_distillation(opt)


def _check_logger(logger_opt: dict[str, Any]) -> None:
    _check_block('logger', logger_opt, LOGGER)
    wandb = logger_opt.get('wandb') or {}
    _check_block('logger.wandb', wandb, WANDB)
    if wandb.get('project') and not (logger_opt['use_tb_logger'] and importlib.util.find_spec('wandb')):
        raise UserError(
            f'logger.wandb.project: {wandb["project"]!r}; accepted with use_tb_logger: true and wandb installed'
        )


def _check_distillation(opt: dict[str, Any]) -> None:
    for key in ('teacher', 'taps'):
        if key not in opt:
            raise UserError(f'{key}: missing; accepted: as in options/train/FACD_EDSR_x2.yml')
    if 'distill_opt' not in opt['train']:
        raise UserError('train.distill_opt: missing; accepted: as in options/train/FACD_EDSR_x2.yml')
    _check_block('teacher', opt['teacher'], TEACHER)
    _check_network('teacher.network', opt['teacher']['network'], opt['scale'])
    if not opt['taps']:
        raise UserError('taps: []; accepted: at least one {student: PATH, teacher: PATH}')
    for index, tap in enumerate(opt['taps']):
        _check_type(f'taps[{index}]', tap, (dict,))
        _check_block(f'taps[{index}]', tap, TAP)
    weights = opt['train']['distill_opt'].get('layer_weights')
    if weights is not None and len(weights) != len(opt['taps']):
        raise UserError(
            f'train.distill_opt.layer_weights: {weights} for {len(opt["taps"])} taps; accepted: one weight per tap'
        )


def _block_types(key: str) -> tuple[type, ...]:
    if key == 'taps':
        return (list,)
    return (dict,) if key == 'teacher' or key.startswith('network_') else ()


def _check_call(where: str, block: dict[str, Any], registry: Registry, supplied: tuple[str, ...] = ()) -> None:
    """Checks a block with ``type`` and keyword arguments against what is registered under that type."""
    _check_type(where, block, (dict,))
    _check_block(where, block, {'type': Key((str,), required=True)}, complete=False)
    target = _registered(registry, f'{where}.type', block['type'])
    _check_block(where, block, {'type': Key((str,)), **signature_keys(target, supplied)})


def _check_choice(
    where: str, block: dict[str, Any], choices: dict[str, type], known: dict[str, Key], supplied: tuple[str, ...]
) -> None:
    """As _check_call, for what is not in a registry. ``known`` replaces what the signature says of a key."""
    _check_block(where, block, {'type': Key((str,), required=True)}, complete=False)
    if block['type'] not in choices:
        raise UserError(f'{where}.type: {block["type"]!r}; accepted: {_listed(choices)}')
    keys = signature_keys(choices[block['type']], supplied)
    _check_block(where, block, {'type': Key((str,)), **keys, **{k: v for k, v in known.items() if k in keys}})


def _registered(registry: Registry, where: str, name: str) -> Any:
    if name not in registry and f'{name}_basicsr' not in registry:  # the suffix that BasicSR's registries try too
        raise UserError(f'{where}: {name!r} is not registered{did_you_mean(name, registry.keys())}')
    return registry.get(name)


def _check_block(where: str, block: dict[str, Any], keys: dict[str, Key], complete: bool = True) -> None:
    """Checks one mapping: required keys, types and, if ``complete``, that it has no key beyond ``keys``."""
    _check_type(where or 'the file', block, (dict,))
    dot = f'{where}.' if where else ''
    if complete:
        for key in block:
            if key not in keys:
                raise UserError(f'{dot}{key}: unknown key{did_you_mean(str(key), keys)}')
    for key, accepted in keys.items():
        if key in block:
            _check_type(dot + key, block[key], accepted.types)
            if isinstance(block[key], list) and accepted.items:
                for index, item in enumerate(block[key]):
                    _check_type(f'{dot}{key}[{index}]', item, accepted.items)
        elif accepted.required:
            raise UserError(f'{dot}{key}: missing; accepted: {_type_names(accepted.types)}')


def _check_type(where: str, value: Any, types: tuple[type, ...]) -> None:
    fits = isinstance(value, types) and not (isinstance(value, bool) and bool not in types)
    if types and not fits:
        raise UserError(f'{where}: {value!r}; accepted: {_type_names(types)}')


def _type_names(types: tuple[type, ...]) -> str:
    names = {
        str: 'text',
        int: 'a whole number',
        float: 'a number',
        bool: 'true or false',
        list: 'a list',
        dict: 'a block of keys',
        type(None): 'nothing (~)',
    }
    return ' or '.join(names[t] for t in types if t is not int or float not in types) or 'any value'


def did_you_mean(name: str, accepted: Iterable[str]) -> str:
    """The nearest accepted name and all of them, as the end of a message."""
    accepted = sorted(accepted)
    close = difflib.get_close_matches(name, accepted, n=1, cutoff=0.0)
    return (f'; did you mean {close[0]!r}?' if close else '') + f' Accepted: {_listed(accepted)}'


def _listed(names: Iterable[str]) -> str:
    return ', '.join(sorted(map(str, names)))
