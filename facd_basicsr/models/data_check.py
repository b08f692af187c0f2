"""Data, model, networks and metrics of a run meet before anything is created: the first training batch, and the
smallest image of each other set."""

import copy
import inspect
from collections.abc import Collection
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from basicsr.models.base_model import BaseModel
from basicsr.utils.registry import DATASET_REGISTRY
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, default_collate

from facd_basicsr.archs import CHANNELS, OUT_CHANNELS, channels_argument
from facd_basicsr.data.dataset_rules import rules_of
from facd_basicsr.data.loaders import Loaders, reraise_missing_option
from facd_basicsr.data.memory_pairs import MemoryPairs
from facd_basicsr.data.paths import lq_sizes
from facd_basicsr.data.seeded_dataset import NamingDataset, SeededDataset
from facd_basicsr.errors import UserError, one_line, reraise
from facd_basicsr.models.safe_model import SafeModel, SafeSRModel
from facd_basicsr.models.validation import forward_of, runs_as_basicsr, validates_itself
from facd_basicsr.runtime.execution import (
    REFUSALS,
    check_upscaled,
    is_lack_of_memory,
    refusal_reason,
    reraise_refused_input,
)
from facd_basicsr.runtime.metrics import scores, to_image
from facd_basicsr.runtime.rng import preserve_rng_state


def check_training_sample(model: SafeModel, loaders: Loaders) -> None:
    """Feeds the first batch to the model. SRModel and FACDModel, which try their losses when they are built, run an
    image of it through ``net_g``; others take a step, which is undone.

    Raises:
        UserError: the samples make no batch, lack what the model needs, or a network does not take them; or its output
            has another shape than ``gt``.
    """
    fed, dataset_opt = copy.copy(model), model.opt['datasets']['train']
    batch = _Asked()
    with preserve_rng_state(), _refusing(model, dataset_opt, batch.asked):
        numbers = list(islice(loaders.sampler, loaders.train.batch_size))
        with reraise_missing_option(dataset_opt):
            samples = SeededDataset(_copy_of(loaders.train)).__getitems__(numbers)
        batch.update(default_collate(samples))
        fed.feed_data(model.degraded(batch, pool=False))
        if isinstance(fed, SafeSRModel):
            own = fed._batch()
            _check_image(model, own.lq[:1], None if own.gt is None else own.gt[:1])
        else:
            _try_step(model, fed)
            output, gt = vars(fed).get('output'), vars(fed).get('gt')
            if isinstance(output, Tensor) and isinstance(gt, Tensor):
                _check_same(output, gt)


class _Asked(dict[str, Any]):
    """A batch that keeps the names of what a model takes of it, or would."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)


def _check_image(model: SafeModel, lq: Tensor, gt: Tensor | None) -> None:
    if lq.dim() != 4:
        raise ValueError(f'lq of {lq.dim()} dimensions, not (N, C, H, W)')
    net = model.get_bare_model(model.net_g)
    _check_channels('datasets.train', model, lq)
    training = net.training
    try:
        with torch.no_grad(), reraise_refused_input('network_g', net, lq, model.accepted_patches):
            output = net.eval()(lq)
            check_upscaled('network_g', net, lq, output, model.opt['scale'])
    finally:
        net.train(training)
    _check_output('datasets.train', model.opt, lq, output, gt)
    if gt is not None:
        _check_same(output, gt)


def _check_same(output: Tensor, gt: Tensor) -> None:
    """A loss would compare one with several of the other."""
    if output.shape != gt.shape:
        raise ValueError(f'gt of {tuple(gt.shape)} for an output of {tuple(output.shape)}')


def _try_step(model: SafeModel, fed: BaseModel) -> None:
    """A step of ``fed``, a copy that has a batch, without DDP and by optimizers that move nothing. What else it changes
    in networks, averages for one, is undone."""
    nets = {name: value for name, value in vars(model).items() if isinstance(value, nn.Module)}
    still = {
        optimizer: torch.optim.SGD([{'params': group['params']} for group in optimizer.param_groups], lr=0.0)
        for optimizer in model.optimizers
    }
    own = {name: still[value] for name, value in vars(model).items() if isinstance(value, Optimizer)}
    vars(fed).update({name: model.get_bare_model(net) for name, net in nets.items()} | own)
    fed.opt, fed.optimizers = {**model.opt, 'dist': False}, list(still.values())
    weights = [value for net in nets.values() for value in (*net.parameters(), *net.buffers())]
    saved = [(value, value.detach().clone(), value.requires_grad) for value in weights]
    try:
        fed.optimize_parameters(model.opt.get('stage_begin', 0) + 1)
    finally:
        with torch.no_grad():
            for value, before, requires_grad in saved:
                value.copy_(before).requires_grad_(requires_grad).grad = None


def _refusing(model: SafeModel, dataset_opt: dict[str, Any], asked: Collection[str]) -> AbstractContextManager[None]:
    """Turns what a dataset, a model or its networks raise of samples that are not theirs, or too many, into a
    UserError.

    Args:
        asked: what the model has asked of a sample.
    """
    kind, needing = dataset_opt['type'], model.opt['model_type']
    clips = _of_clips(kind)

    def translated(error: Exception) -> UserError:
        if is_lack_of_memory(error):
            return UserError(
                f'datasets.train.batch_size_per_gpu: {dataset_opt["batch_size_per_gpu"]}: no memory for a step '
                f'({one_line(error, 100)}); accepted: a smaller one, or smaller patches or networks'
            )
        if type(error) is NameError:
            return UserError(
                f'model_type: {needing}: {error}; accepted: BasicSR with its extensions built (BASICSR_EXT=True), or '
                'another model'
            )
        missing = str(*error.args) if isinstance(error, KeyError) else getattr(error, 'name', None)
        keys = {*asked, missing or ''}
        if missing and (giving := _datasets(keys, clips) or _datasets(keys, not clips)):
            return UserError(
                f'datasets.train.type: {kind} gives no {missing}, which {needing} needs; accepted: {giving}'
            )
        reason = f'no {missing}' if isinstance(error, KeyError) else refusal_reason(error)
        return UserError(
            f'datasets.train.type: {kind}: {needing} with {model.opt["network_g"]["type"]} fails on its first batch '
            f'({reason}); accepted: networks and options that fit it, or another dataset, as of '
            f'{"images" if clips else "clips"}: {_datasets(asked, not clips)}'
        )

    return reraise(REFUSALS, translated)


def _datasets(keys: Collection[str], clips: bool) -> str:
    """The registered datasets, of images or of clips, whose code names these keys of a sample."""
    return ', '.join(
        sorted(
            name.removesuffix('_basicsr')
            for name, dataset in DATASET_REGISTRY
            if _of_clips(name) == clips and all(repr(key) in inspect.getsource(dataset.__getitem__) for key in keys)
        )
    )


def _of_clips(name: str) -> bool:
    rules = rules_of({'type': name})
    return rules is not None and rules.clips


def check_smallest_image(model: SafeModel, phase: str, loader: DataLoader) -> None:
    """Upscales and scores the smallest image of the set ``datasets.PHASE``, unless the model validates by itself.

    Raises:
        UserError: the network does not take the image, its output has another shape than ``gt``, or a metric has no
            value for it.
    """
    if validates_itself(model) or model.opt['val'] is None:
        return
    where, dataset_opt = f'datasets.{phase}', model.opt['datasets'][phase]
    with preserve_rng_state():
        dataset = _copy_of(loader)
        batch = default_collate([NamingDataset(dataset)[_smallest(where, dataset)]])
        missing = [key for key in ('lq', 'lq_path') if key not in batch]
        if missing:
            raise UserError(
                f'{where}.type: {dataset_opt["type"]} gives no {" and no ".join(missing)}; accepted: a dataset that '
                'does, such as PairedImageDataset'
            )
        if runs_as_basicsr(model):
            _check_channels(where, model, batch['lq'])
        with forward_of(model) as run:
            result, gt = run(batch)
    _check_output(where, model.opt, batch['lq'], result, gt)
    image, target = to_image(result), None if gt is None else to_image(gt)
    for name, metric_opt in (model.opt['val']['metrics'] or {}).items():
        size = f'{Path(batch["lq_path"][0]).name}, the smallest image of {where}, {image.shape[0]} x {image.shape[1]}'
        with _reraise(f'val.metrics.{name}: {metric_opt["type"]} fails for {size}'):
            scores(image, target, {name: metric_opt})


def _reraise(where: str) -> AbstractContextManager[None]:
    return reraise(
        (ValueError, IndexError, ArithmeticError, AssertionError, TypeError),
        lambda error: UserError(f'{where} ({one_line(error)}); accepted: a metric that takes it'),
    )


def _check_channels(where: str, model: BaseModel, lq: Tensor) -> None:
    """By what the option file says, which tells more than the error of a convolution."""
    network_opt, channels = model.opt['network_g'], lq.shape[1]
    key, taken = channels_argument(network_opt, CHANNELS)
    if taken != channels:
        raise UserError(
            f'network_g: {network_opt["type"]} takes {taken} channels ({key}), but {where} gives LQ of {channels}; '
            'accepted: equal numbers: 3, or 1 with color: y in every set'
        )


def _check_output(where: str, opt: dict[str, Any], lq: Tensor, output: Tensor, gt: Tensor | None) -> None:
    network, scale = opt['network_g']['type'], opt['scale']
    channels = lq.shape[1] if gt is None else gt.shape[1]
    if output.shape[1] != channels:
        key, _ = channels_argument(opt['network_g'], OUT_CHANNELS)
        raise UserError(
            f'network_g: {network} gives {output.shape[1]} channels ({key}), but {where} has images of '
            f'{channels}; accepted: equal numbers'
        )
    expected = tuple(scale * side for side in lq.shape[2:])
    if output.shape[2:] != expected:
        found = ' x '.join(map(str, output.shape[2:]))
        raise UserError(
            f'network_g: {network} gives {found} for LQ of {lq.shape[2]} x {lq.shape[3]} in {where}; accepted: '
            f'{expected[0]} x {expected[1]}, as scale: {scale} asks for'
        )


def _copy_of(loader: DataLoader) -> Any:
    """The dataset for this check alone: an LMDB that it opens is closed with it, before workers are forked."""
    dataset = cast(SeededDataset | NamingDataset, loader.dataset).dataset
    own = copy.copy(dataset.dataset if isinstance(dataset, MemoryPairs) else dataset)
    vars(own).update({name: dict(value) for name, value in vars(own).items() if isinstance(value, dict)})
    return own  # whose option dicts are its own, since BasicSR's datasets pop keys


def _smallest(where: str, dataset: Any) -> int:
    """Number of the image whose shorter side is the shortest; 0 where the sizes are not known."""
    sizes = dict(lq_sizes(where, dataset.opt))
    if not sizes:
        return 0
    names = [path['lq_path'] if isinstance(path, dict) else path for path in dataset.paths]
    return min(range(len(names)), key=lambda index: sorted(sizes[names[index]]))
