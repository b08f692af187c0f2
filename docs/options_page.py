"""Generates the tables of docs/options.md from the schema that the option check uses.

    python docs/options_page.py --into docs/options.md

A table is between ``<!-- options: BLOCK -->`` or ``<!-- options: BLOCK TYPE -->`` and ``<!-- end -->``;
:func:`tables` lists them. The rest of the page is written by hand.
"""

import argparse
import functools
import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import facd_basicsr  # noqa: F401  must come before basicsr

# isort: split
import yaml
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.data.realesrgan_dataset import RealESRGANDataset
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY

from facd_basicsr.comparison.summary import with_blocks
from facd_basicsr.data.lq_patches import SingleImageDataset
from facd_basicsr.errors import UserError, reraise_disk_errors, run_command
from facd_basicsr.evaluation.tables import markdown_table
from facd_basicsr.losses import DistillLoss
from facd_basicsr.models import FACDModel
from facd_basicsr.options import schema
from facd_basicsr.options.option_check import bounds, choice_names, type_names
from facd_basicsr.options.option_files import ORDER, OptionDumper
from facd_basicsr.options.schema import Keys
from facd_basicsr.options.signatures import Key

HEADER = ('key', 'value', 'file', 'default', 'meaning')
NETWORKS = ('EDSRStudent', 'RCANStudent', 'EDSR', 'RCAN')  # the documented ones of BasicSR's registry
PIXEL_LOSSES = ('L1Loss', 'MSELoss', 'CharbonnierLoss', 'FFTLoss', 'WaveletLoss', 'GradientLoss')
# The others expect tensors, not images.
METRICS = ('calculate_psnr', 'calculate_ssim', 'calculate_niqe', 'calculate_lpips', 'calculate_dists')
MODELS = (FACDModel, SRModel)
SYNONYM = 'MultiStepRestartLR'  # of MultiStepLR
AS_IN = 'as in '  # followed by the class whose meaning applies


def tables() -> dict[str, str]:
    """Every table of the page, by its name in the marker."""
    train, test = (
        _model_keys(functools.partial(schema.top_keys, is_train=is_train), ORDER) for is_train in (True, False)
    )
    in_train = [*schema.TRAIN, *schema.TRAIN_KEYS, *schema.OPTIMIZATION, *schema.EXECUTION_TRAIN]
    schedulers = {name: cls for name, cls in schema.SCHEDULERS.items() if name != SYNONYM}
    return {
        'file': _shared_table(schema.FILE),
        'top': table(train, test),
        'datasets': table({**schema.DATASET, **schema.DATASET_TRAIN}, schema.DATASET),
        **{
            f'datasets {dataset.__name__}': _dataset_table(dataset)
            for dataset in (PairedImageDataset, SingleImageDataset)
        },
        'datasets RealESRGANDataset': _dataset_table(RealESRGANDataset, in_test=False),
        'degradation': table(schema.DEGRADATION),
        'datasets.*.io_backend lmdb': _shared_table(schema.io_backend_keys('lmdb')),
        **{f'network_g {name}': _shared_table(schema.network_keys(ARCH_REGISTRY.get(name))) for name in NETWORKS},
        'teacher': table(schema.TEACHER),
        'teacher.expect': table(schema.EXPECT),
        'taps': table(schema.TAP),
        'network_r DeepRegressor': table(schema.regressor_keys(ARCH_REGISTRY.get('DeepRegressor'))),
        'path': table(
            schema.path_keys(['network_g', 'network_r', 'network_d'], is_train=True),
            schema.path_keys(['network_g'], is_train=False),
        ),
        'train': table(_model_keys(schema.train_keys, in_train)),
        'compile': table(schema.COMPILE),
        'train.nonfinite': table(schema.NONFINITE),
        'train.quantize': table(schema.QUANTIZE),
        'train.stages': table(schema.STAGE),
        'train.optim_g': _optimizer_table(),
        **{f'train.scheduler {name}': table(schema.scheduler_keys(cls)) for name, cls in schedulers.items()},
        **{f'train.pixel_opt {name}': table(_loss_keys(name)) for name in PIXEL_LOSSES},
        'train.perceptual_opt PerceptualLoss': table(_loss_keys('PerceptualLoss')),
        'train.gan_opt GANLoss': table(_loss_keys('GANLoss')),
        'train.distill_opt entry': table(schema.DISTILL_LOSS),
        'train.distill_opt target': table(schema.PIXEL_LOSS),
        'schedule': table(schema.SCHEDULE),
        **{f'train.distill_opt {name}': _distill_opt_table(name) for name in distillation_losses()},
        'val': table(schema.VAL_TRAIN, schema.VAL_TEST),
        **{f'val.metrics {name}': _metric_table(name) for name in METRICS},
        'logger': table(schema.LOGGER),
        'logger.wandb': table(schema.WANDB),
        'dist_params': table(schema.DIST_PARAMS),
    }


def distillation_losses() -> list[str]:
    """The registered losses of this package, FACD's first."""
    own = [
        name
        for name, loss in LOSS_REGISTRY
        if issubclass(loss, DistillLoss) and loss.__module__.startswith('facd_basicsr.')
    ]
    return sorted(own, key=lambda name: (name != 'FACDLoss', name))


def table(train: Keys, test: Keys | None = None) -> str:
    """The Markdown table of a block.

    Args:
        train, test: what the block accepts in a file for train.py and in one for test.py; None: no such block there.
    """
    rows = []
    test = test or {}
    for name, key in {**train, **test, **train}.items():
        where = 'both' if name in train and name in test else 'train' if name in train else 'test'
        required = [file for file, own in (('train', train), ('test', test)) if name in own and own[name].required]
        rows.append([f'`{name}`', value_words(key), where, _default_cell(key, where, required), key.meaning])
    return markdown_table(HEADER, rows, numbers=False)


def value_words(key: Key) -> str:
    """What a key accepts: ``a list of numbers, 0 or more``."""
    if key.choices and key.items:
        return f'a list of {", ".join(f"`{name}`" for name in choice_names(key))}'
    if key.choices:
        return ', '.join(f'`{name}`' for name in choice_names(key))
    words = type_names(key.types)
    if key.items:
        of = 'text' if str in key.items else 'numbers' if float in key.items else 'whole numbers'
        words = words.replace('a list', f'a list of {key.length or ""} {of}'.replace('  ', ' '), 1)
    or_schedule = ['each, or its [schedule](#a-schedule)' if key.items else 'or a [schedule](#a-schedule)']
    return ', '.join([words.replace('nothing (null)', '`null`'), *bounds(key), *(or_schedule if key.is_weight else [])])


def shown(value: Any) -> str:
    """A value as in an option file, on one line."""
    value = list(value) if isinstance(value, tuple) else value
    text = yaml.dump(value, Dumper=OptionDumper, default_flow_style=True, width=1000, allow_unicode=True)
    return text.removesuffix('\n').removesuffix('\n...')


def _default_cell(key: Key, where: str, required: list[str]) -> str:
    if required and (where != 'both' or len(required) == 2):
        return '**required**'
    words = '-' if key.default is ... else f'`{shown(key.default)}`'
    return f'{words}; **required** in {required[0]}' if required else words


def _optimizer_table() -> str:
    """One for all of torch's: the optimizers that have a key, and its default in each."""
    able = {name: cls for name, cls in schema.optimizers().items() if isinstance(cls, type)}
    found: dict[tuple[str, str, str], dict[str, list[str]]] = {}  # key, value and meaning: default: optimizers
    for optimizer, cls in able.items():
        for name, key in schema.optimizer_keys(cls).items():
            cell = _default_cell(key, 'train', ['train'] * key.required).replace('`0.0`', '`0`')
            found.setdefault((name, value_words(key), key.meaning), {}).setdefault(cell, []).append(optimizer)
    rows = []
    for (name, value, meaning), by_default in found.items():
        (usual, _), *others = sorted(by_default.items(), key=lambda item: -len(item[1]))
        having = sorted(own for names in by_default.values() for own in names)
        where = 'all' if len(having) == len(able) else ', '.join(f'`{own}`' for own in having)
        default = '; '.join([usual, *(f'{cell} of {", ".join(own)}' for cell, own in others)])
        rows.append((-len(having), [f'`{name}`', value, where, default, meaning]))
    rows.sort(key=lambda row: row[0])
    return markdown_table(('key', 'value', 'type', 'default', 'meaning'), [row for _, row in rows], numbers=False)


def _shared_table(own: Keys) -> str:
    return table(own, own)


def _metric_table(name: str) -> str:
    own = schema.metric_keys(METRIC_REGISTRY.get(name))
    return _shared_table({argument: key for argument, key in own.items() if argument != 'type'})


def _ordered(own: Keys, order: Iterable[str]) -> Keys:
    """The keys in the order of ``order``."""
    return {name: own[name] for name in order if name in own}


def _model_keys(keys_of: Callable[[type], Keys], order: Iterable[str]) -> Keys:
    """The keys that any of the models accepts."""
    return _ordered({name: key for model in MODELS for name, key in keys_of(model).items()}, order)


def _dataset_table(dataset: type, in_test: bool = True) -> str:
    train, test = (_ordered(schema.dataset_keys(dataset, training), schema.DATASET_KEYS) for training in (True, False))
    return table(train, test if in_test else None)


def _loss_keys(name: str) -> Keys:
    own = schema.loss_keys(LOSS_REGISTRY.get(name), model=FACDModel)
    return {argument: replace(key, meaning=_resolved_meaning(argument, key.meaning)) for argument, key in own.items()}


def _resolved_meaning(argument: str, meaning: str) -> str:
    """A meaning; one like ``as in FACDLoss`` is replaced by that of the other loss."""
    if not meaning.startswith(AS_IN):
        return meaning
    return _loss_keys(meaning.removeprefix(AS_IN).rstrip('.'))[argument].meaning


def _distill_opt_table(name: str) -> str:
    """Summary, requirements and keys of a distillation loss."""
    loss, own = LOSS_REGISTRY.get(name), _loss_keys(name)
    needs = ['no `taps` and no `network_r`']
    if loss.reads_features:
        needs = ['`taps`', '`network_r` (see `regressor`)' if 'regressor' in own else 'no `network_r`']
    if loss.min_batch > 1:
        needs.append(f'a batch of {loss.min_batch} or more over all processes')
    summary = (inspect.getdoc(loss) or '').partition('\n')[0]
    return f'{summary} Takes {", ".join(needs)}.\n\n{table(own)}'


def with_tables(page: str) -> str:
    """The page with updated tables.

    Raises:
        UserError: the page names an unknown table.
    """
    known = tables()

    def content(found: re.Match) -> str:
        if found['name'] not in known:
            raise UserError(f'<!-- options: {found["name"]} -->: accepted: {", ".join(known)}')
        return known[found['name']]

    return with_blocks(page, r'<!-- options: (?P<name>[^\n]+) -->', content)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--into', type=Path, required=True, help='the page, docs/options.md')
    page = parser.parse_args().into
    with reraise_disk_errors():
        page.write_text(with_tables(page.read_text(encoding='utf-8')), encoding='utf-8')


if __name__ == '__main__':
    run_command(main)
