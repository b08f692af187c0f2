"""What an option file may say. Refuses the rest, naming the nearest valid key."""

import difflib
import importlib.util
import re
from collections.abc import Callable, Mapping
from typing import Any

from basicsr.utils.registry import (
    ARCH_REGISTRY,
    DATASET_REGISTRY,
    LOSS_REGISTRY,
    METRIC_REGISTRY,
    MODEL_REGISTRY,
    Registry,
)

from facd_basicsr.data.download import DIGEST
from facd_basicsr.distill.layouts import LAYOUTS
from facd_basicsr.errors import UserError
from facd_basicsr.losses import DistillLoss
from facd_basicsr.options import arguments, keys
from facd_basicsr.options.accepted import (
    Keys,
    dataset_keys,
    io_backend_keys,
    io_backends,
    loss_keys,
    metric_keys,
    network_keys,
    optimizer_keys,
    path_keys,
    regressor_keys,
    scheduler_keys,
    top_keys,
    train_keys,
)
from facd_basicsr.options.blocks import check_block, check_type, did_you_mean, listed
from facd_basicsr.options.execution import check_execution
from facd_basicsr.options.inherit import BASE
from facd_basicsr.options.perceptual import check_vgg_layers


def check(opt: dict[str, Any], is_train: bool) -> None:
    """Checks every key of an option dict as it stands in the file, against tables and signatures.

    Args:
        opt: what the YAML file holds, with the command line's overrides.
        is_train: whether it is meant for train.py or for test.py.

    Raises:
        UserError: a key is unknown, missing, of the wrong type, or disagrees with another.
    """
    for key in difflib.get_close_matches(BASE, map(str, opt)):  # without its base all else is missing too
        raise UserError(f'{key}: unknown key; did you mean {BASE!r}?')
    check_block('', opt, keys.TOP, complete=False)
    if is_train and 'train' not in opt:
        raise UserError('train: missing; accepted: a file for training such as those in options/train/')
    if not is_train and 'train' in opt:
        raise UserError('train: this is a file for train.py; accepted: a test file such as those in options/test/')
    model = _registered(MODEL_REGISTRY, 'model_type', opt['model_type'])
    check_block('', opt, top_keys(model, is_train))

    _check_top_values(opt)
    _check_datasets(opt, is_train)
    for key, network_opt in opt.items():
        if key.startswith('network_'):
            check_network(key, network_opt, opt['scale'], regressor_keys if key == 'network_r' else network_keys)
    networks = [key for key in opt if key.startswith('network_')]
    check_block('path', opt['path'], path_keys(networks, is_train))
    if opt.get('val') is not None:
        check_block('val', opt['val'], keys.VAL_TRAIN if is_train else keys.VAL_TEST)
        _check_metrics(opt)
    if is_train:
        _check_train(opt, model)


def _check_top_values(opt: dict[str, Any]) -> None:
    name, num_gpu = opt['name'], opt['num_gpu']
    _check_folder_name('name', name)
    if num_gpu != 'auto' and not (isinstance(num_gpu, int) and num_gpu >= 0):
        raise UserError(f'num_gpu: {num_gpu!r}; accepted: auto, or a number from 0')


def _check_folder_name(where: str, name: str) -> None:
    if not name or '/' in name or name.startswith('.'):
        raise UserError(f'{where}: {name!r}; accepted: a folder name')


def _check_datasets(opt: dict[str, Any], is_train: bool) -> None:
    phases = ('train', 'val') if is_train else ('test', 'val')
    for name, dataset_opt in opt['datasets'].items():
        where = f'datasets.{name}'
        phase = str(name).split('_')[0]
        if phase not in phases or (phase == 'train' and name != 'train'):
            several = phases[-1] if is_train else f'{phases[0]} and {phases[1]}'
            raise UserError(f'{where}: unknown set; accepted: {", ".join(phases)}, and {several} with _1, _2, ...')
        check_type(where, dataset_opt, (dict,))
        check_block(where, dataset_opt, keys.DATASET, complete=False)
        dataset = _registered(DATASET_REGISTRY, f'{where}.type', dataset_opt['type'])
        training = phase == 'train'
        check_block(where, dataset_opt, dataset_keys(dataset, training))
        _check_io_backend(where, dataset_opt, dataset, is_train)
        gt_size = dataset_opt.get('gt_size')
        if gt_size is not None and gt_size % opt['scale']:
            raise UserError(f'{where}.gt_size: {gt_size}; accepted: a multiple of scale, {opt["scale"]}')
        if dataset_opt.get('prefetch_mode') == 'cuda' and not dataset_opt.get('pin_memory'):
            raise UserError(f'{where}.prefetch_mode: cuda; accepted with pin_memory: true only')
        if training and dataset_opt.get('prefetch_mode') == 'cpu' and dataset_opt['num_worker_per_gpu'] == 0:
            # its thread would seed the generators that the model draws from
            raise UserError(f'{where}.prefetch_mode: cpu; accepted with num_worker_per_gpu: 1 or more')
        _check_template(f'{where}.filename_tmpl', dataset_opt.get('filename_tmpl', '{}'))
        if dataset_opt.get('persistent_workers') and not dataset_opt.get('num_worker_per_gpu'):
            raise UserError(f'{where}.persistent_workers: true; accepted with num_worker_per_gpu: 1 or more')
        _check_folder_name(f'{where}.name', dataset_opt['name'])
    names = [dataset_opt['name'] for dataset_opt in opt['datasets'].values()]
    for name in {name for name in names if names.count(name) > 1}:
        raise UserError(f'datasets: {name!r} is the name of several sets; accepted: a name for each')
    if phases[0] not in {str(name).split('_')[0] for name in opt['datasets']}:
        raise UserError(
            f'datasets.{phases[0]}: missing; accepted: a {phases[0]} set beside {listed(opt["datasets"]) or "nothing"}'
        )


def _check_template(where: str, template: str) -> None:
    try:
        name = template.format('0001')
    except (LookupError, ValueError, AttributeError):
        name = ''
    if '0001' not in name:
        raise UserError(f'{where}: {template!r}; accepted: text with {{}} for the name of the GT, e.g. {{}}x4')


def _check_io_backend(where: str, dataset_opt: dict[str, Any], dataset: type, is_train: bool) -> None:
    where, block = f'{where}.io_backend', dataset_opt.get('io_backend')
    if block is None:
        return
    check_block(where, block, keys.TYPE, complete=False)
    backends = keys.IO_BACKENDS_TRAIN if is_train else keys.IO_BACKENDS
    if block['type'] not in backends:
        raise UserError(f'{where}.type: {block["type"]!r}; accepted: {listed(backends)}')
    if block['type'] not in (own := io_backends(dataset, is_train)):
        raise UserError(f'{where}.type: {block["type"]}; accepted with {dataset_opt["type"]}: {listed(own)}')
    check_block(where, block, {**keys.TYPE, **io_backend_keys(block['type'])})


def check_network(
    where: str, network_opt: dict[str, Any], scale: int, keys_of: Callable[[type], Keys] = network_keys
) -> None:
    """Checks a block with a network's ``type`` and its arguments.

    Args:
        where: what names the block, for messages.
        network_opt: the block.
        scale: upscaling factor of the data.
        keys_of: the keys that a network's class accepts.

    Raises:
        UserError: a key is unknown, missing or of the wrong type, or ``upscale`` is not ``scale``.
    """
    accepted = _check_call(where, network_opt, ARCH_REGISTRY, keys_of)
    upscale = network_opt.get('upscale')
    if upscale is None and 'upscale' in accepted:
        raise UserError(f'{where}.upscale: missing; accepted: {scale}, the scale of this file')
    if upscale is not None and upscale != scale:
        raise UserError(f'{where}.upscale: {upscale}; accepted: {scale}, the scale of this file')


def _check_metrics(opt: dict[str, Any]) -> None:
    for name, block in (opt['val'].get('metrics') or {}).items():
        where = f'val.metrics.{name}'
        check_type(where, block, (dict,))
        check_block(where, block, keys.METRIC, complete=False)
        metric = _registered(METRIC_REGISTRY, f'{where}.type', block['type'])
        if block['type'] in arguments.OF_TENSORS:
            fitting = listed(name for name, _ in METRIC_REGISTRY if name not in arguments.OF_TENSORS)
            raise UserError(f'{where}.type: {block["type"]} is of tensors, not of images; accepted: {fitting}')
        check_block(where, block, metric_keys(metric))
        for phase, dataset_opt in opt['datasets'].items():
            if phase != 'train' and 'dataroot_gt' not in dataset_opt and dataset_opt['type'] == 'SingleImageDataset':
                raise UserError(f'{where}: datasets.{phase} has no ground truth; accepted: no metrics, or dataroot_gt')


def _check_train(opt: dict[str, Any], model: type) -> None:
    train_opt = opt['train']
    accepted = train_keys(model)
    check_block('train', train_opt, accepted)
    _check_choice('train.optim_g', train_opt['optim_g'], arguments.OPTIMIZERS, optimizer_keys)
    _check_choice('train.scheduler', train_opt['scheduler'], arguments.SCHEDULERS, scheduler_keys)
    periods = train_opt['scheduler'].get('periods')
    if periods is not None and sum(periods) < train_opt['total_iter']:
        raise UserError(f'train.scheduler.periods: {periods}; accepted: a sum of total_iter or more')
    for key, block in train_opt.items():
        if key.endswith('_opt') and block is not None:
            _check_call(f'train.{key}', block, LOSS_REGISTRY, loss_keys)
            check_vgg_layers(f'train.{key}', block)
            distills = issubclass(LOSS_REGISTRY.get(block['type']), DistillLoss)
            if distills != (key == 'distill_opt'):
                losses = [name for name, loss in LOSS_REGISTRY if issubclass(loss, DistillLoss)]
                fitting = listed(losses) if key == 'distill_opt' else 'a loss of images'
                raise UserError(f'train.{key}.type: {block["type"]!r}; accepted: {fitting}')
    if 'pixel_opt' in accepted and not (train_opt.get('pixel_opt') or train_opt.get('perceptual_opt')):
        raise UserError('train.pixel_opt: missing; accepted: a loss, e.g. {type: L1Loss}, here or as perceptual_opt')
    _check_nonfinite(train_opt)
    _check_logger(opt['logger'])
    for where, value in (
        ('logger.save_checkpoint_freq', opt['logger']['save_checkpoint_freq']),
        ('val.val_freq', (opt.get('val') or {}).get('val_freq', 1)),
    ):
        if value % 1:  # 5e3 is a float
            raise UserError(f'{where}: {value}; accepted: a whole number')
    has_metrics = bool((opt.get('val') or {}).get('metrics')) and len(opt['datasets']) > 1
    if opt['logger'].get('keep_best') and not has_metrics:
        raise UserError('logger.keep_best: true; accepted with val.metrics and datasets.val')
    check_block('dist_params', opt.get('dist_params', {}), keys.DIST_PARAMS)
    check_execution(opt)
    if 'distill_opt' in accepted:
        _check_distillation(opt)


def _check_nonfinite(train_opt: dict[str, Any]) -> None:
    block = train_opt.get('nonfinite', {})
    check_block('train.nonfinite', block, keys.NONFINITE)
    for key in ('precision', 'precision_r'):
        # its loss scale grows until a step fails, again and again
        if train_opt.get(key) == 'fp16' and block.get('limit', 2) < 2:
            raise UserError(f'train.nonfinite.limit: 1; accepted with train.{key}: fp16: 2 or more')


def _check_logger(logger_opt: dict[str, Any]) -> None:
    check_block('logger', logger_opt, keys.LOGGER)
    wandb = logger_opt.get('wandb') or {}
    check_block('logger.wandb', wandb, keys.WANDB)
    if wandb.get('project') and not (logger_opt['use_tb_logger'] and importlib.util.find_spec('wandb')):
        raise UserError(
            f'logger.wandb.project: {wandb["project"]!r}; accepted with use_tb_logger: true and wandb installed'
        )


def _check_distillation(opt: dict[str, Any]) -> None:
    if 'teacher' not in opt:
        raise UserError('teacher: missing; accepted: as in options/train/FACD_EDSR_x2.yml')
    if 'distill_opt' not in opt['train']:
        raise UserError('train.distill_opt: missing; accepted: as in options/train/FACD_EDSR_x2.yml')
    _check_teacher(opt)
    loss = opt['train']['distill_opt']['type']
    if not LOSS_REGISTRY.get(loss).reads_features:
        for key in ('taps', 'network_r'):
            if key in opt:
                raise UserError(f'{key}: given, but {loss} compares images only; accepted: no {key}')
        return
    if 'taps' not in opt:
        raise UserError('taps: missing; accepted: as in options/train/FACD_EDSR_x2.yml')
    if not opt['taps']:
        raise UserError('taps: []; accepted: at least one {student: PATH, teacher: PATH}')
    for index, tap in enumerate(opt['taps']):
        check_type(f'taps[{index}]', tap, (dict,))
        check_block(f'taps[{index}]', tap, keys.TAP)
    weights = opt['train']['distill_opt'].get('layer_weights')
    if weights is not None and len(weights) != len(opt['taps']):
        raise UserError(
            f'train.distill_opt.layer_weights: {weights} for {len(opt["taps"])} taps; accepted: one weight per tap'
        )


def _check_teacher(opt: dict[str, Any]) -> None:
    teacher_opt = opt['teacher']
    check_block('teacher', teacher_opt, keys.TEACHER)
    layout_format = teacher_opt.get('format', 'auto')
    if 'network' in teacher_opt:
        check_network('teacher.network', teacher_opt['network'], opt['scale'])
        if layout_format == 'spandrel':
            raise UserError('teacher.network: accepted with format: spandrel: none, for spandrel reads it off the file')
    elif layout_format in LAYOUTS:
        raise UserError(f'teacher.network: missing; accepted with format: {layout_format}: {{type: EDSR, ...}}')
    sha256 = teacher_opt.get('sha256', '0' * 64)
    if not (isinstance(sha256, str) and re.fullmatch(DIGEST, sha256)):
        raise UserError(f'teacher.sha256: {teacher_opt["sha256"]!r}; accepted: 8 to 64 hexadecimal digits, in quotes')
    if 'expect' in teacher_opt:
        check_block('teacher.expect', teacher_opt['expect'], keys.EXPECT)
        sets = [name for name in opt['datasets'] if name != 'train']
        if teacher_opt['expect']['dataset'] not in sets:
            found = teacher_opt['expect']['dataset']
            raise UserError(
                f'teacher.expect.dataset: {found!r}; accepted: {listed(sets) or "val, once there is a datasets.val"}'
            )
        dataset_type = opt['datasets'][teacher_opt['expect']['dataset']]['type']
        if dataset_type == 'SingleImageDataset':
            raise UserError(f'teacher.expect.dataset: a {dataset_type}, without GT; accepted: a set of pairs')


def _check_call(where: str, block: dict[str, Any], registry: Registry, keys_of: Callable[[Any], Keys]) -> Keys:
    """Checks a block with ``type`` and keyword arguments against what is registered under that type: the keys."""
    check_type(where, block, (dict,))
    check_block(where, block, keys.TYPE, complete=False)
    accepted = {**keys.TYPE, **keys_of(_registered(registry, f'{where}.type', block['type']))}
    check_block(where, block, accepted)
    return accepted


def _check_choice(
    where: str, block: dict[str, Any], choices: Mapping[str, type], keys_of: Callable[[Any], Keys]
) -> None:
    """As _check_call, for what is not in a registry."""
    check_block(where, block, keys.TYPE, complete=False)
    if block['type'] not in choices:
        raise UserError(f'{where}.type: {block["type"]!r}; accepted: {listed(choices)}')
    check_block(where, block, {**keys.TYPE, **keys_of(choices[block['type']])})


def _registered(registry: Registry, where: str, name: str) -> Any:
    if name not in registry and f'{name}_basicsr' not in registry:  # the suffix that BasicSR's registries try too
        raise UserError(f'{where}: {name!r} is not registered{did_you_mean(name, registry.keys())}')
    return registry.get(name)
