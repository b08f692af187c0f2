"""Checks option dicts by the schema and fills in its defaults; errors say what is accepted."""

import copy
import difflib
import importlib.util
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from basicsr.losses.basic_loss import PerceptualLoss
from basicsr.losses.gan_loss import GANLoss
from basicsr.utils.registry import (
    ARCH_REGISTRY,
    DATASET_REGISTRY,
    LOSS_REGISTRY,
    METRIC_REGISTRY,
    MODEL_REGISTRY,
    Registry,
)

from facd_basicsr.archs import DeepRegressor
from facd_basicsr.archs.spandrel_arch import INSTALLED, SPANDREL_EXTRA, SUFFIX, why_unknown
from facd_basicsr.compat import full_name
from facd_basicsr.data.memory_pairs import is_in_memory
from facd_basicsr.distill.layouts import LAYOUTS
from facd_basicsr.distill.teacher import is_cached, naming, teacher_blocks
from facd_basicsr.errors import UserError, locating
from facd_basicsr.files.download import DIGEST
from facd_basicsr.losses import DistillLoss
from facd_basicsr.losses.base import loss_blocks
from facd_basicsr.losses.schedule import items_of
from facd_basicsr.losses.vgg import vgg_layer_names
from facd_basicsr.options import schema
from facd_basicsr.options.option_files import BASE, SEVERAL, merged
from facd_basicsr.options.schema import NUMBER, Keys
from facd_basicsr.options.signatures import Key
from facd_basicsr.runtime.metrics import needs_gt

OptionBlock = dict[str, Any]


def check_block(where: str, block: dict[str, Any], keys: dict[str, Key], complete: bool = True) -> None:
    """Checks one mapping: required keys, types and, if ``complete``, that it has no key beyond ``keys``."""
    check_type(where or 'the file', block, (dict,))
    dot = f'{where}.' if where else ''
    if complete:
        for key in block:
            if key not in keys:
                raise UserError(f'{dot}{key}: unknown key{did_you_mean(str(key), keys)}')
    for key, accepted in keys.items():
        if key in block and _is_schedule(block[key], accepted):
            continue
        if key in block and not is_left_out(block[key], accepted):
            check_type(dot + key, block[key], accepted.types)
            if isinstance(block[key], list) and accepted.items:
                for index, item in enumerate(block[key]):
                    if _is_schedule(item, accepted):
                        continue
                    check_type(f'{dot}{key}[{index}]', item, accepted.items)
                    _check_value(f'{dot}{key}[{index}]', item, accepted)
                _check_length(dot + key, block[key], accepted.length)
            else:
                _check_value(dot + key, block[key], accepted)
        elif accepted.required:
            found = ', '.join(choice_names(accepted)) or type_names(accepted.types)
            found += ', or a schedule such as {start: 0, end: 1, over: 100000}' * accepted.is_weight
            raise UserError(f'{dot}{key}: missing; accepted: {found}')


def _is_schedule(value: Any, accepted: Key) -> bool:
    """Whether a value is a schedule where there may be one: a block of its own, checked as such."""
    return accepted.is_weight and isinstance(value, dict)


def _schedules(where: str, block: OptionBlock, keys: Keys) -> Iterator[tuple[str, OptionBlock, Keys]]:
    """The schedules of a loss's block."""
    for key, accepted in keys.items():
        for place, item in items_of(f'{where}.{key}', block.get(key)):
            if isinstance(item, dict) and accepted.is_weight:
                yield place, item, schema.schedule_keys(accepted)


def is_left_out(value: Any, accepted: Key) -> bool:
    """Whether ``null`` takes an optional key or block out, as it does where it is no value of its own."""
    has_null = not accepted.types or type(None) in accepted.types or None in accepted.choices
    return value is None and not (accepted.required or has_null)


def check_type(where: str, value: Any, types: tuple[type, ...]) -> None:
    fits = isinstance(value, types) and not (isinstance(value, bool) and bool not in types)
    if types and not fits:
        raise UserError(f'{where}: {"null" if value is None else repr(value)}; accepted: {type_names(types)}')
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f'{where}: {value!r}; accepted: a finite number')


def _check_length(where: str, value: list[Any], length: int) -> None:
    if length and len(value) != length:
        raise UserError(f'{where}: {value}; accepted: a list of {length} numbers')
    if length == 2 and value[0] > value[1]:
        raise UserError(f'{where}: {value}; accepted: the lower end first')


def _check_value(where: str, value: Any, accepted: Key) -> None:
    if accepted.choices and value not in accepted.choices:
        raise UserError(f'{where}: {value!r}; accepted: {", ".join(choice_names(accepted))}')
    if not isinstance(value, (int, float)):
        return
    kept = accepted.least is None or value >= accepted.least
    kept &= accepted.above is None or value > accepted.above
    kept &= accepted.below is None or value < accepted.below
    kept &= accepted.most is None or value <= accepted.most
    if not kept:
        raise UserError(f'{where}: {value}; accepted: {", ".join(bounds(accepted))}')


def bounds(accepted: Key) -> list[str]:
    """The bounds of a number, in words."""
    words = {'least': '{} or more', 'above': 'more than {}', 'below': 'less than {}', 'most': '{} or less'}
    return [text.format(bound) for name, text in words.items() if (bound := getattr(accepted, name)) is not None]


def choice_names(accepted: Key) -> list[str]:
    """The values that there are, as an option file has them."""
    return ['null' if choice is None else choice for choice in accepted.choices]


def type_names(types: tuple[type, ...]) -> str:
    """Types of YAML values, in words."""
    names = {
        str: 'text',
        int: 'a whole number',
        float: 'a number',
        bool: 'true or false',
        list: 'a list',
        dict: 'a block of keys',
        type(None): 'nothing (null)',
    }
    return ' or '.join(names[t] for t in types if t is not int or float not in types) or 'any value'


def did_you_mean(name: str, accepted: Collection[str]) -> str:
    """The nearest accepted name and all of them, as the end of a message."""
    by_lower_case = {other.lower(): other for other in sorted(accepted, reverse=True)}
    close = difflib.get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0.0)
    return (f'; did you mean {by_lower_case[close[0]]!r}?' if close else '') + f' Accepted: {listed(accepted)}'


def listed(names: Iterable[str]) -> str:
    return ', '.join(sorted(map(str, names)))


def check_vgg_layers(where: str, block: dict[str, Any]) -> None:
    """Compares the layers of a block whose keys are checked with those that its VGG has. Other losses pass.

    Raises:
        UserError: a layer does not exist in this VGG, or its weight is not a number.
    """
    if LOSS_REGISTRY.get(block['type']) is not PerceptualLoss:
        return
    where, vgg, weights = f'{where}.layer_weights', block['vgg_type'], block['layer_weights']
    layers = vgg_layer_names(vgg)
    if not weights:
        raise UserError(f'{where}: {{}}; accepted: a weight for one layer or more, e.g. {{conv5_4: 1.0}}')
    for layer, weight in weights.items():
        if layer not in layers:
            raise UserError(f'{where}.{layer}: no layer of {vgg}{did_you_mean(str(layer), layers)}')
        check_type(f'{where}.{layer}', weight, NUMBER)


def option_blocks(opt: OptionBlock, is_train: bool) -> Iterator[tuple[str, OptionBlock, Keys]]:
    """Every block of an option dict, with its place in the file and the keys that it accepts.

    A block comes after the one that holds it, and after the caller has finished with that: by then it is checked, or
    its defaults are filled in.

    Raises:
        UserError: a block is not there or has no ``type`` that is known.
    """
    train_opt = opt.get('train')
    has_stages = isinstance(train_opt, dict) and train_opt.get('stages') is not None
    for where, block, keys in _all_blocks(opt, is_train):
        yield where, block, schema.keys_beside_stages(where, keys) if has_stages else keys


def _all_blocks(opt: OptionBlock, is_train: bool) -> Iterator[tuple[str, OptionBlock, Keys]]:
    check_block('', opt, schema.TOP, complete=False)
    model = _registered(MODEL_REGISTRY, 'model_type', opt['model_type'])
    yield '', opt, {**schema.top_keys(model, is_train), **(_degradation_keys(opt, model) if is_train else {})}
    for name, dataset_opt in opt['datasets'].items():
        yield from _dataset_blocks(name, dataset_opt, is_train)
    networks = [key for key in opt if key.startswith('network_')]
    for key in networks:
        yield _called(
            key, opt[key], ARCH_REGISTRY, schema.regressor_keys if key == 'network_r' else schema.network_keys
        )
    yield 'path', opt['path'], schema.path_keys(networks, is_train)
    if opt.get('val') is not None:
        yield 'val', opt['val'], schema.VAL_TRAIN if is_train else schema.VAL_TEST
        for name, block in (opt['val'].get('metrics') or {}).items():
            yield _called(f'val.metrics.{name}', block, METRIC_REGISTRY, schema.metric_keys)
    if 'dist_params' in opt:
        yield 'dist_params', opt['dist_params'], schema.DIST_PARAMS
    if is_train:
        yield from _train_blocks(opt, model)


def _degradation_keys(opt: OptionBlock, model: type) -> Keys:
    """What the file itself may have for its training set.

    Raises:
        UserError: it has keys of Real-ESRGAN's for another one.
    """
    train_set = opt['datasets'].get('train')
    if not schema.sums_losses(model):
        return {}
    if train_set is None:  # which is what will be said of the file, not that its keys are unknown
        return {key: replace(own, required=False, default=...) for key, own in schema.DEGRADATION.items()}
    check_block('datasets.train', train_set, schema.TYPE, complete=False)
    keys = schema.degradation_keys(_registered(DATASET_REGISTRY, 'datasets.train.type', train_set['type']))
    for key in schema.DEGRADATION:
        if key in opt and key not in keys:
            raise UserError(
                f'{key}: accepted with datasets.train.type: RealESRGANDataset, of which LQ are made, here '
                f'{train_set["type"]}'
            )
    return keys


def _dataset_blocks(name: str, dataset_opt: OptionBlock, is_train: bool) -> Iterator[tuple[str, OptionBlock, Keys]]:
    where, phases = f'datasets.{name}', ('train', 'val') if is_train else ('test', 'val')
    phase = str(name).split('_')[0]
    if phase not in phases or (phase == 'train' and name != 'train'):
        several = phases[-1] if is_train else f'{phases[0]} and {phases[1]}'
        raise UserError(f'{where}: unknown set; accepted: {", ".join(phases)}, and {several} with _1, _2, ...')
    check_block(where, dataset_opt, schema.DATASET, complete=False)
    dataset = _registered(DATASET_REGISTRY, f'{where}.type', dataset_opt['type'])
    yield where, dataset_opt, schema.dataset_keys(dataset, phase == 'train')
    backend_opt = dataset_opt.get('io_backend')
    if backend_opt is None:
        return
    where = f'{where}.io_backend'
    check_block(where, backend_opt, schema.TYPE, complete=False)
    known = schema.IO_BACKENDS_TRAIN if is_train else schema.IO_BACKENDS
    if backend_opt['type'] not in known:
        raise UserError(f'{where}.type: {backend_opt["type"]!r}; accepted: {listed(known)}')
    if backend_opt['type'] not in (own := schema.io_backends(dataset, is_train)):
        raise UserError(f'{where}.type: {backend_opt["type"]}; accepted with {dataset_opt["type"]}: {listed(own)}')
    yield where, backend_opt, {**schema.TYPE, **schema.io_backend_keys(backend_opt['type'])}


def _train_blocks(opt: OptionBlock, model: type) -> Iterator[tuple[str, OptionBlock, Keys]]:
    train_opt, accepted = opt['train'], schema.train_keys(model)
    yield 'train', train_opt, accepted
    for key in ('optim_g', 'optim_d'):
        if train_opt.get(key) is not None:  # or each stage has its own
            yield _chosen(f'train.{key}', train_opt[key], schema.optimizers(), schema.optimizer_keys)
    if 'scheduler' in train_opt:
        yield _chosen('train.scheduler', train_opt['scheduler'], schema.SCHEDULERS, schema.scheduler_keys)
    for key, block in train_opt.items():
        if key.endswith('_opt') and block is not None:
            for where, own in named_losses(key, block, model):
                keys_of = partial(schema.loss_keys, key=key, model=model)
                called = _called(where, own, LOSS_REGISTRY, keys_of, _fits(key, model))
                yield called
                if schema.sums_losses(model):
                    yield from _schedules(*called)
    if 'nonfinite' in train_opt:
        yield 'train.nonfinite', train_opt['nonfinite'], schema.NONFINITE
    if train_opt.get('quantize') is not None:
        yield 'train.quantize', train_opt['quantize'], schema.QUANTIZE
    yield 'logger', opt['logger'], schema.LOGGER
    if opt['logger'].get('wandb') is not None:
        yield 'logger.wandb', opt['logger']['wandb'], schema.WANDB
    distilled = list(teacher_blocks(opt.get('teacher')).items()) if 'distill_opt' in accepted else []
    for where, teacher_opt in distilled:
        yield where, teacher_opt, schema.TEACHER
        if 'network' in teacher_opt:
            yield _called(f'{where}.network', teacher_opt['network'], ARCH_REGISTRY, schema.network_keys)
        if 'expect' in teacher_opt:
            yield f'{where}.expect', teacher_opt['expect'], schema.EXPECT
    for where, block in [('train', train_opt), *distilled]:
        for key in ('compile', 'compile_r'):
            if block.get(key) is not None:
                yield f'{where}.{key}', block[key], schema.COMPILE
    if 'distill_opt' in accepted:
        for index, tap in enumerate(opt.get('taps', [])):
            yield f'taps[{index}]', tap, schema.TAP


# What FACDModel and SRModel take in a block; BasicSR's own models take what its class has been registered for.
ROLES: dict[str, Callable[[type], bool]] = {
    'distill_opt': schema.is_summed,
    'pixel_opt': lambda loss: not issubclass(loss, (DistillLoss, GANLoss, PerceptualLoss)),
    'perceptual_opt': lambda loss: loss is PerceptualLoss,
    'gan_opt': lambda loss: issubclass(loss, GANLoss),
}


def _fits(key: str, model: type) -> Callable[[type], bool]:
    """Which losses there may be in ``train.KEY``."""
    role = ROLES.get(key) if schema.sums_losses(model) else None
    return role or (lambda loss: not issubclass(loss, DistillLoss))


def named_losses(key: str, block: OptionBlock, model: type | None = None) -> Iterator[tuple[str, OptionBlock]]:
    """The losses of ``train.KEY`` with their places in the file; ``model``, if given, may not know several.

    Raises:
        UserError: several where there may be one, or a name that is none for a log.
    """
    check_type(f'train.{key}', block, (dict,))
    several = loss_blocks(block)
    known = key in SEVERAL and (model is None or schema.sums_losses(model))
    for name, own in several.items():
        where = f'train.{key}.{name}' if name else f'train.{key}'
        if name and not known:
            raise UserError(f'train.{key}: {listed(several)}; accepted: one loss with its type')
        if name and not re.fullmatch(r'(?!l(_|$))[A-Za-z]\w*', name, re.ASCII):
            raise UserError(
                f'{where}: accepted as the name of a loss: letters, digits and _, a letter first, not l or l_*'
            )
        yield where, own


def weights_of(train_opt: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(place in ``train``, number or schedule) of every weight of the losses, of a list each item's."""
    for key in SEVERAL:
        for name, block in loss_blocks(train_opt.get(key)).items():
            for own in (own for own in schema.WEIGHTS if own in block):
                yield from items_of('.'.join(filter(None, (key, name, own))), block[own])


def _called(
    where: str,
    block: OptionBlock,
    registry: Registry,
    keys_of: Callable[[Any], Keys],
    fits: Callable[[Any], bool] = lambda _: True,
) -> tuple[str, OptionBlock, Keys]:
    """A block with ``type`` and keyword arguments of what is registered under that type, and ``fits`` here."""
    check_block(where, block, schema.TYPE, complete=False)
    return where, block, {**schema.TYPE, **keys_of(_registered(registry, f'{where}.type', block['type'], fits))}


def _chosen(
    where: str, block: OptionBlock, choices: Mapping[str, type | str], keys_of: Callable[[Any], Keys]
) -> tuple[str, OptionBlock, Keys]:
    """As _called, for what is not in a registry; in the place of a class that is not accepted is the reason."""
    check_block(where, block, schema.TYPE, complete=False)
    if not isinstance(found := choices.get(block['type']), type):
        accepted = listed(name for name, own in choices.items() if isinstance(own, type))
        raise UserError(f'{where}.type: {block["type"]!r}{f" ({found})" * bool(found)}; accepted: {accepted}')
    return where, block, {**schema.TYPE, **keys_of(choices[block['type']])}


def with_defaults(opt: OptionBlock, is_train: bool) -> OptionBlock:
    """A copy of a checked option dict in which every key that has a default is there, and none that ``null`` takes
    out."""
    complete = copy.deepcopy(opt)
    for _, block, keys in option_blocks(complete, is_train):
        _fill_in(block, keys)
    return complete


def _fill_in(block: OptionBlock, keys: Keys) -> None:
    for key, accepted in keys.items():
        if key in block and is_left_out(block[key], accepted):
            del block[key]
        if key not in block and accepted.default is not ...:
            block[key] = copy.deepcopy(accepted.default)


def check_options(opt: OptionBlock, is_train: bool) -> OptionBlock:
    """Checks every key of an option dict as it stands in the file, against tables and signatures.

    Returns:
        Its copy with all defaults, as of :func:`with_defaults`.

    Raises:
        UserError: a key is unknown, missing, of the wrong type, or disagrees with another; in a stage with its place.
    """
    for key in difflib.get_close_matches(BASE, map(str, opt)):  # without its base all else is missing too
        raise UserError(f'{key}: unknown key; did you mean {BASE!r}?')
    check_block('', opt, schema.TOP, complete=False)
    if is_train and 'train' not in opt:
        raise UserError('train: missing; accepted: a file for training such as those in options/train/')
    if not is_train and 'train' in opt:
        raise UserError(
            'train: this is a file for train.py; accepted: a test file such as those in options/test/, or --run with '
            'the folder of its run'
        )
    complete = copy.deepcopy(opt)
    for where, block, keys in option_blocks(complete, is_train):
        check_block(where, block, keys)
        _fill_in(block, keys)
    if is_train and 'stages' in complete['train']:
        _check_stages(complete)
    else:
        _check_together(complete, is_train)
    return complete


def _check_stages(opt: OptionBlock) -> None:
    """Checks each stage as a file of its own, and fills in ``total_iter``."""
    train_opt, stages = opt['train'], opt['train']['stages']
    if not stages:
        raise UserError('train.stages: []; accepted: one block or more, or no stages')
    keys = schema.stage_keys(_registered(MODEL_REGISTRY, 'model_type', opt['model_type']))
    for index, stage in enumerate(stages):
        where = f'train.stages[{index}]'
        check_block(where, stage, keys)
        with locating(where):
            check_options(laid_over(opt, stage), is_train=True)
    total = sum(stage['iterations'] for stage in stages)
    if train_opt.setdefault('total_iter', total) != total:
        raise UserError(
            f'train.total_iter: {train_opt["total_iter"]}; accepted with stages: {total}, the sum of their iterations, '
            'or null'
        )


def laid_over(opt: OptionBlock, stage: OptionBlock) -> OptionBlock:
    """The options of a stage, an entry of ``train.stages``, as a file without stages has them."""
    file_train_opt = {key: value for key, value in opt['train'].items() if key not in ('total_iter', 'stages')}
    changes: OptionBlock = {'train': {key: stage[key] for key in stage if key not in schema.STAGE_PLACES}}
    if 'gt_size' in opt and 'gt_size' in stage:  # of patches of what is made of larger crops
        changes['gt_size'] = stage['gt_size']
    for key in stage.keys() & schema.STAGE_PLACES.keys():
        *blocks, leaf = schema.STAGE_PLACES[key].split('.')
        block = changes
        for name in blocks:
            block[name] = block = dict(block.get(name) or {})
        block[leaf] = stage[key]
    laid = merged({**opt, 'train': file_train_opt}, changes)
    if not laid['train'].get('gan_opt'):
        laid.pop('network_d', None)
    for suffix in [suffix for suffix in ('_r', '_d') if laid.get(f'network{suffix}') is None]:
        if 'path' in laid:
            laid['path'] = {key: value for key, value in laid['path'].items() if not key.endswith(suffix)}
        of_network = {f'{key}{suffix}' for key in schema.EXECUTION}
        laid['train'] = {key: value for key, value in laid['train'].items() if key not in of_network}
    return laid


def stages_of(opt: OptionBlock) -> dict[str, OptionBlock]:
    """The options of each stage of a run, by its place in the file, as those of a run without stages: complete, with
    its iterations in ``train.total_iter``, and in ``stage_begin`` those of the stages before it. Without stages ``opt``
    is the only stage itself, at the place ''.
    """
    found: dict[str, OptionBlock] = {}
    begin = 0
    for index, stage in enumerate(opt['train'].get('stages', []) if 'train' in opt else []):
        found[f'train.stages[{index}]'] = {**with_defaults(laid_over(opt, stage), is_train=True), 'stage_begin': begin}
        begin += stage['iterations']
    return found or {'': opt}


def _check_together(opt: OptionBlock, is_train: bool) -> None:
    """Checks values that must fit each other, or a thing that has no type in YAML."""
    _check_folder_name('name', opt['name'])
    if opt['num_gpu'] != 'auto' and not (isinstance(opt['num_gpu'], int) and opt['num_gpu'] >= 0):
        raise UserError(f'num_gpu: {opt["num_gpu"]!r}; accepted: auto, or a number from 0')
    _check_datasets(opt, is_train)
    for key, network_opt in opt.items():
        if key.startswith('network_'):
            _check_upscale(key, network_opt, opt['scale'])
    if opt['val'] is not None:
        _check_metrics(opt)
    if is_train:
        _check_train(opt)


def _check_folder_name(where: str, name: str) -> None:
    if not name or '/' in name or name.startswith('.'):
        raise UserError(f'{where}: {name!r}; accepted: a folder name')


def _check_datasets(opt: OptionBlock, is_train: bool) -> None:
    for name, dataset_opt in opt['datasets'].items():
        where = f'datasets.{name}'
        gt_size = dataset_opt.get('gt_size')
        if gt_size is not None and gt_size % opt['scale']:
            raise UserError(f'{where}.gt_size: {gt_size}; accepted: a multiple of scale, {opt["scale"]}')
        if dataset_opt['prefetch_mode'] == 'cuda' and not dataset_opt['pin_memory']:
            raise UserError(f'{where}.prefetch_mode: cuda; accepted with pin_memory: true only')
        if dataset_opt['prefetch_mode'] == 'cpu' and dataset_opt.get('num_worker_per_gpu') == 0:
            # its thread would seed the generators that the model draws from
            raise UserError(f'{where}.prefetch_mode: cpu; accepted with num_worker_per_gpu: 1 or more')
        _check_template(f'{where}.filename_tmpl', dataset_opt.get('filename_tmpl', '{}'))
        if dataset_opt['persistent_workers'] and not dataset_opt.get('num_worker_per_gpu'):
            raise UserError(f'{where}.persistent_workers: true; accepted with num_worker_per_gpu: 1 or more')
        _check_folder_name(f'{where}.name', dataset_opt['name'])
        _check_normalization(where, dataset_opt)
    names = [dataset_opt['name'] for dataset_opt in opt['datasets'].values()]
    for name in {name for name in names if names.count(name) > 1}:
        raise UserError(f'datasets: {name!r} is the name of several sets; accepted: a name for each')
    phase = 'train' if is_train else 'test'
    if phase not in {str(name).split('_')[0] for name in opt['datasets']}:
        raise UserError(
            f'datasets.{phase}: missing; accepted: a {phase} set beside {listed(opt["datasets"]) or "nothing"}'
        )


def _check_normalization(where: str, dataset_opt: OptionBlock) -> None:
    channels = 1 if dataset_opt.get('color') == 'y' else 3
    mean, std = dataset_opt.get('mean'), dataset_opt.get('std')
    for key, own, other in (('mean', mean, std), ('std', std, mean)):
        if own is None and other is not None:
            raise UserError(f'{where}.{key}: missing; accepted: mean and std, or none of them')
        if own is not None and len(own) != channels:
            raise UserError(f'{where}.{key}: {own}; accepted: {channels} numbers, one of each channel')


def _check_template(where: str, template: str) -> None:
    try:
        name = template.format('0001')
    except (LookupError, ValueError, AttributeError):
        name = ''
    if '0001' not in name:
        raise UserError(f'{where}: {template!r}; accepted: text with {{}} for the name of the GT, e.g. {{}}x4')


def check_network(where: str, network_opt: OptionBlock, scale: int) -> None:
    """Checks a block with a network's ``type`` and its keys.

    Raises:
        UserError: a key is unknown, missing or of the wrong type, or ``upscale`` is not ``scale``.
    """
    check_block(*_called(where, network_opt, ARCH_REGISTRY, schema.network_keys))
    _check_upscale(where, network_opt, scale)


def _check_upscale(where: str, network_opt: OptionBlock, scale: int) -> None:
    taken = schema.network_keys(ARCH_REGISTRY.get(network_opt['type']))
    for key in schema.UPSCALE:
        if key in taken or key in network_opt:
            found = network_opt.get(key, 'missing')
            if found not in (scale, [scale]):  # IPT's is a list
                raise UserError(f'{where}.{key}: {found}; accepted: {scale}, the scale of this file')


def _check_metrics(opt: OptionBlock) -> None:
    for name, block in (opt['val']['metrics'] or {}).items():
        where = f'val.metrics.{name}'
        if block['type'] in schema.OF_TENSORS:
            fitting = listed(name for name, _ in METRIC_REGISTRY if name not in schema.OF_TENSORS)
            raise UserError(f'{where}.type: {block["type"]} expects tensors, not images; accepted: {fitting}')
    metrics = opt['val']['metrics'] or {}
    all_need_gt = all(needs_gt(METRIC_REGISTRY.get(block['type'])) for block in metrics.values())
    for phase, dataset_opt in opt['datasets'].items():
        if metrics and all_need_gt and _is_without_gt(phase, dataset_opt):
            raise UserError(
                f'val.metrics: {listed(metrics)}: datasets.{phase} has no ground truth; accepted: no metrics, one that '
                f'needs none, e.g. {{type: calculate_niqe, crop_border: {opt["scale"]}}}, or a set of pairs'
            )


def _is_without_gt(phase: str, dataset_opt: OptionBlock) -> bool:
    return phase != 'train' and dataset_opt['type'] == 'SingleImageDataset'


def _check_train(opt: OptionBlock) -> None:
    train_opt = opt['train']
    model = _registered(MODEL_REGISTRY, 'model_type', opt['model_type'])
    accepted = schema.train_keys(model)
    periods = train_opt['scheduler'].get('periods')
    if periods is not None and sum(periods) < train_opt['total_iter']:
        raise UserError(f'train.scheduler.periods: {periods}; accepted: a sum of total_iter or more')
    for key, block in train_opt.items():
        if key.endswith('_opt') and block is not None:
            for where, own in named_losses(key, block):
                check_vgg_layers(where, own)
                if own.get('target') == 'gated' and own.get('reduction') != 'mean':
                    raise UserError(f'{where}.reduction: {own["reduction"]}; accepted with target: gated: mean')
    if (
        'distill_opt' not in accepted
        and 'pixel_opt' in accepted
        and not (train_opt.get('pixel_opt') or train_opt.get('perceptual_opt'))
    ):
        raise UserError('train.pixel_opt: missing; accepted: a loss, e.g. {type: L1Loss}, here or as perceptual_opt')
    for key in ('precision', 'precision_r', 'precision_d'):
        # its loss scale grows until a step fails, again and again
        if train_opt.get(key) == 'fp16' and train_opt['nonfinite']['limit'] < 2:
            raise UserError(f'train.nonfinite.limit: 1; accepted with train.{key}: fp16: 2 or more')
    batch_size, accum_iter = opt['datasets']['train']['batch_size_per_gpu'], train_opt.get('accum_iter', 1)
    if batch_size % accum_iter:
        raise UserError(
            f'train.accum_iter: {accum_iter}; accepted: a divisor of datasets.train.batch_size_per_gpu, {batch_size}'
        )
    if train_opt.get('quantize') is not None and train_opt.get('compile') is not None:
        raise UserError('train.compile: accepted without train.quantize, which torch.compile does not trace; here both')
    every = train_opt.get('log_gradient_share')
    if every and every % opt['logger']['print_freq']:
        raise UserError(
            f'train.log_gradient_share: {every}; accepted: a multiple of logger.print_freq, '
            f'{opt["logger"]["print_freq"]}'
        )
    if train_keys := _degradation_keys(opt, model):
        _check_degradation(opt, train_keys)
    _check_logger(opt['logger'])
    val_opt = opt['val'] or {'val_freq': 1, 'metrics': None}
    for where, value in (
        ('logger.save_checkpoint_freq', opt['logger']['save_checkpoint_freq']),
        ('val.val_freq', val_opt['val_freq']),
    ):
        if value % 1:  # 5e3 is a float
            raise UserError(f'{where}: {value}; accepted: a whole number')
    if opt['logger']['keep_best'] and not (val_opt['metrics'] and len(opt['datasets']) > 1):
        raise UserError('logger.keep_best: true; accepted with val.metrics and datasets.val')
    if opt['logger']['keep_best']:
        name, block = next(iter(val_opt['metrics'].items()))
        phase, dataset_opt = next((phase, block) for phase, block in opt['datasets'].items() if phase != 'train')
        if _is_without_gt(phase, dataset_opt) and needs_gt(METRIC_REGISTRY.get(block['type'])):
            raise UserError(
                f'logger.keep_best: true, which is by the first metric, {name}, on the first set, datasets.{phase}, '
                'which has no ground truth; accepted: a set of pairs first, or a metric that needs none'
            )
    _check_regressors(train_opt, opt.get('network_r'))
    if 'distill_opt' in accepted:
        _check_distillation(opt)


def _check_degradation(opt: OptionBlock, keys: Keys) -> None:
    """Of the keys of Real-ESRGAN's option files."""
    train_set, makes_lq = opt['datasets']['train'], 'gt_usm' in keys
    given, usm_keys = [key for key in ('gt_usm', *schema.USM_KEYS) if key in opt], list(schema.USM_KEYS)
    if given not in ([['gt_usm'], usm_keys] if makes_lq else [[], usm_keys]):
        missing = [key for key in usm_keys if key not in opt] if given else ['gt_usm']
        what = f'gt_usm: given with {", ".join(given[1:])}' if 'gt_usm' in given else f'{missing[0]}: missing'
        raise UserError(f'{what}; accepted: {"gt_usm, or " * makes_lq}{", ".join(usm_keys)}')
    if opt['high_order_degradation'] != makes_lq:
        raise UserError(
            f'high_order_degradation: {str(opt["high_order_degradation"]).lower()}; accepted with datasets.train.type: '
            f'{train_set["type"]}: {str(makes_lq).lower()}'
        )
    patch = opt['gt_size'] if makes_lq else train_set['gt_size']
    if patch < schema.SMALLEST_SHARPENED and 'l1_gt_usm' in given:
        where = 'gt_size' if makes_lq else 'datasets.train.gt_size'
        raise UserError(
            f'{where}: {patch}; accepted with l1_gt_usm: {schema.SMALLEST_SHARPENED} or more, which USM is taken of'
        )
    if makes_lq:
        _check_second_order(opt, train_set)


def _check_second_order(opt: OptionBlock, train_set: OptionBlock) -> None:
    scale, size, crop = opt['scale'], opt['gt_size'], schema.REALESRGAN_CROP
    if crop % scale:
        raise UserError(f'scale: {scale}; accepted with datasets.train.type: {train_set["type"]}: a divisor of {crop}')
    if size % scale:
        raise UserError(f'gt_size: {size}; accepted: a multiple of scale, {scale}')
    if train_set.get('gt_size', size) != size:
        raise UserError(f'datasets.train.gt_size: {train_set["gt_size"]}; accepted: {size}, the gt_size of the file')
    batch_size = train_set['batch_size_per_gpu']
    if opt['queue_size'] % batch_size:
        raise UserError(
            f'queue_size: {opt["queue_size"]}; accepted: a multiple of datasets.train.batch_size_per_gpu, {batch_size}'
        )
    for where, block in (('', opt), ('datasets.train.', train_set)):
        for key, value in block.items():
            kind, why = key.removesuffix('2'), ''
            if kind in ('resize_prob', 'kernel_prob') and not sum(value):
                why = 'one that is not 0'
            elif kind in ('resize_range', 'betag_range', 'betap_range') and not value[0] <= 1 <= value[1]:
                why = 'a range with 1 in it'
            elif kind == 'blur_sigma' and value[0] == value[1]:
                why = 'two different numbers'
            if why:
                raise UserError(f'{where}{key}: {value}; accepted: {why}')
    for suffix in ('', '2'):
        kernels, weights = train_set[f'kernel_list{suffix}'], train_set[f'kernel_prob{suffix}']
        if len(kernels) != len(weights):
            raise UserError(
                f'datasets.train.kernel_prob{suffix}: {len(weights)} numbers; accepted: one for each of '
                f'kernel_list{suffix}, {len(kernels)}'
            )


def _check_logger(logger_opt: OptionBlock) -> None:
    wandb = logger_opt['wandb'] or {'project': None}
    if wandb['project'] and not (logger_opt['use_tb_logger'] and importlib.util.find_spec('wandb')):
        raise UserError(
            f'logger.wandb.project: {wandb["project"]!r}; accepted with use_tb_logger: true and wandb installed'
        )


def _check_regressors(train_opt: OptionBlock, network_opt: OptionBlock | None) -> None:
    for key in schema.EXECUTION:
        if f'{key}_r' in train_opt and network_opt is None:
            raise UserError(f'train.{key}_r: given, but there is no network_r; accepted: no {key}_r')
    if train_opt.get('init_r') == 'first_batch':
        if network_opt is None:
            raise UserError('train.init_r: first_batch, but there is no network_r; accepted: no init_r')
        if not issubclass(ARCH_REGISTRY.get(network_opt['type']), DeepRegressor):
            raise UserError(
                f'train.init_r: first_batch; accepted with network_r.type: {network_opt["type"]}: auto or random, by '
                'which it begins as it is built'
            )
    precision, precision_r = (train_opt.get(key) for key in ('precision', 'precision_r'))
    # they share a backward, and torch has one setting for all of it
    if precision_r in ('fp32', 'tf32') and precision not in (precision_r, 'bf16', 'fp16'):
        raise UserError(
            f'train.precision_r: {precision_r}; accepted with train.precision: {precision_r}, bf16 or fp16, here '
            f'{precision or "not given"}'
        )


def _check_gan(opt: OptionBlock) -> None:
    train_opt = opt['train']
    if train_opt.get('gan_opt') is None:
        for where, block, key in (
            ('', opt, 'network_d'),
            ('train.', train_opt, 'precision_d'),
            ('train.', train_opt, 'channels_last_d'),
        ):
            if key in block:
                raise UserError(f'{where}{key}: given, but there is no train.gan_opt; accepted: no {key}, or a gan_opt')
        return
    for key, block, example in (
        ('network_d', opt.get('network_d'), '{type: UNetDiscriminatorSN, num_in_ch: 3}'),
        ('train.optim_d', train_opt.get('optim_d'), '{type: Adam, lr: 1e-4}'),
    ):
        if block is None:
            raise UserError(f'{key}: missing, and there is a train.gan_opt; accepted: e.g. {example}')


def _check_ground_truth(opt: OptionBlock) -> None:
    train_opt, dataset_opt = opt['train'], opt['datasets']['train']
    if train_opt['ground_truth'] and dataset_opt['type'] == 'SingleImageDataset':
        raise UserError(
            f'datasets.train.type: {dataset_opt["type"]}, without GT; accepted: a set of pairs, or train.ground_truth: '
            "false, which puts the teacher's output in the place of GT"
        )
    if not train_opt['ground_truth'] and not opt.get('teacher'):
        raise UserError('train.ground_truth: false, but there is no teacher; accepted: true, or a teacher')
    if not train_opt['ground_truth'] and train_opt['teacher_target'] == 'nearest':
        raise UserError('train.teacher_target: nearest; accepted with train.ground_truth: false: mean')


def _check_distillation(opt: OptionBlock) -> None:
    _check_gan(opt)
    if 'distill_opt' not in opt['train']:
        raise UserError('train.distill_opt: missing; accepted: as in options/train/FACD_EDSR_x2.yml')
    _check_ground_truth(opt)
    if opt.get('teacher') == []:
        raise UserError('teacher: []; accepted: a block, or a list of one or more')
    for place, own in teacher_blocks(opt.get('teacher')).items():
        with naming(place):
            _check_teacher(opt, own)
    if is_cached(opt.get('teacher')):
        _check_teacher_cache(opt)
    losses = list(named_losses('distill_opt', opt['train']['distill_opt']))
    of_features = [own for own in losses if getattr(LOSS_REGISTRY.get(own[1]['type']), 'reads_features', False)]
    if not of_features:
        for key in ('taps', 'network_r'):
            if opt.get(key):
                types = listed(own['type'] for _, own in losses)
                raise UserError(f'{key}: given, but {types} compares images only; accepted: no {key}')
        return
    if not opt['taps']:
        accepted = 'one {student: PATH, teacher: PATH} or more, as in options/train/FACD_EDSR_x2.yml'
        raise UserError(f'taps: []; accepted: {accepted}, or as facd check --suggest-taps 3 prints them')
    teachers = len(teacher_blocks(opt.get('teacher')))
    for index, tap in enumerate(opt['taps']):
        if isinstance(tap['teacher'], list) and len(tap['teacher']) != teachers:
            raise UserError(
                f'taps[{index}].teacher: {len(tap["teacher"])} paths for {teachers} teachers; accepted: a path for '
                'all, or a list with one for each'
            )
    for where, own in of_features:
        weights = own.get('layer_weights')
        if weights is not None and len(weights) != len(opt['taps']):
            raise UserError(
                f'{where}.layer_weights: {weights} for {len(opt["taps"])} taps; accepted: one weight per tap'
            )
        regressor = own.get('regressor', LOSS_REGISTRY.get(own['type']).regressor)
        if regressor == 'always' and 'network_r' not in opt:
            raise UserError('network_r: missing; accepted: {type: DeepRegressor}, for the loss asks for regressors')


def _check_teacher(opt: OptionBlock, teacher_opt: OptionBlock) -> None:
    layout_format = teacher_opt['format']
    if 'network' in teacher_opt:
        _check_upscale('teacher.network', teacher_opt['network'], opt['scale'])
        if layout_format == 'spandrel':
            raise UserError('teacher.network: accepted with format: spandrel: none, for spandrel reads it off the file')
    elif layout_format in LAYOUTS:
        raise UserError(f'teacher.network: missing; accepted with format: {layout_format}: {{type: EDSR, ...}}')
    sha256 = teacher_opt['sha256']
    if sha256 is not None and not (isinstance(sha256, str) and re.fullmatch(DIGEST, sha256)):
        raise UserError(f'teacher.sha256: {teacher_opt["sha256"]!r}; accepted: 8 to 64 hexadecimal digits, in quotes')
    if 'expect' in teacher_opt:
        sets = [name for name in opt['datasets'] if name != 'train']
        if teacher_opt['expect']['dataset'] not in sets:
            found = teacher_opt['expect']['dataset']
            raise UserError(
                f'teacher.expect.dataset: {found!r}; accepted: {listed(sets) or "val, once there is a datasets.val"}'
            )
        dataset_type = opt['datasets'][teacher_opt['expect']['dataset']]['type']
        if dataset_type == 'SingleImageDataset':
            raise UserError(f'teacher.expect.dataset: a {dataset_type}, without GT; accepted: a set of pairs')


def _check_teacher_cache(opt: OptionBlock) -> None:
    dataset_opt = opt['datasets']['train']
    if len(teacher_blocks(opt['teacher'])) > 1:
        raise UserError('teacher: several, but one has cache: true; accepted: no cache, or one teacher')
    if dataset_opt['type'] != 'PairedImageDataset' or not is_in_memory(dataset_opt):
        raise UserError(
            'teacher.cache: true; accepted with datasets.train: {type: PairedImageDataset, io_backend: {type: memory}}'
        )
    for key in [key for key in ('color', 'mean', 'std') if dataset_opt.get(key) not in (None, 'rgb')]:
        raise UserError(f'teacher.cache: true, but datasets.train has {key}; accepted: images in RGB, not normalized')


def _registered(registry: Registry, where: str, name: str, fits: Callable[[Any], bool] = lambda _: True) -> Any:
    is_known = full_name(registry, name) is not None
    if is_known and fits(registry.get(name)):
        return registry.get(name)
    fitting = {_short_name(registry, key) for key, own in registry if fits(own)}
    if is_known:
        raise UserError(f'{where}: {name!r}; accepted: {listed(fitting)}')
    accepted = did_you_mean(name, fitting)
    if registry is ARCH_REGISTRY and not INSTALLED:
        accepted = f"; spandrel's networks need {SPANDREL_EXTRA}{accepted}"
    if registry is LOSS_REGISTRY:
        accepted += '; docs/extending.md has losses of your own'
    why = why_unknown(name) if registry is ARCH_REGISTRY else ''
    raise UserError(f'{where}: {name!r} is not registered{why or accepted}')


def _short_name(registry: Registry, full: str) -> str:
    """A registered name without BasicSR's or spandrel's suffix, where that finds the same."""
    short = full.removesuffix('_basicsr').removesuffix(f'_{SUFFIX}')
    return short if full_name(registry, short) == full else full
