"""Data, networks and metrics of a run meet before anything is created: one training sample, and the smallest image of
each other set."""

import copy
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import torch
from basicsr.models.base_model import BaseModel
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from facd_basicsr.archs import CHANNELS, OUT_CHANNELS, channels_argument
from facd_basicsr.data.loaders import Loaders
from facd_basicsr.data.memory_pairs import MemoryPairs
from facd_basicsr.data.paths import lq_sizes
from facd_basicsr.data.seeded_dataset import NamingDataset, SeededDataset
from facd_basicsr.errors import UserError, one_line, reraise
from facd_basicsr.models.safe_model import SafeModel
from facd_basicsr.models.validation import forward_of, runs_as_basicsr, validates_itself
from facd_basicsr.runtime.execution import check_upscaled, reraise_refused_input
from facd_basicsr.runtime.metrics import scores, to_image
from facd_basicsr.runtime.rng import preserve_rng_state


def check_training_sample(model: SafeModel, loaders: Loaders) -> None:
    """Runs the first training sample through ``net_g``, unless the model makes LQ of its own.

    Raises:
        UserError: the sample has no ``lq`` or ``gt``, the network does not take it, or its output has another shape
            than ``gt``.
    """
    if not runs_as_basicsr(model):
        return
    dataset_opt = model.opt['datasets']['train']
    with preserve_rng_state():
        sample = SeededDataset(_copy_of(loaders.train))[next(iter(loaders.sampler))]
    needed = ('lq', 'gt') if model.opt['train'].get('ground_truth', True) else ('lq',)
    _check_keys('datasets.train', dataset_opt, sample, needed)
    net = model.get_bare_model(model.net_g)
    batch = {key: default_collate([sample[key]]).to(model.device) for key in needed}
    lq, gt = batch['lq'], batch.get('gt')
    _check_channels('datasets.train', model, lq)
    training = net.training
    try:
        with torch.no_grad(), reraise_refused_input('network_g', net, lq, model.accepted_patches):
            output = net.eval()(lq)
            check_upscaled('network_g', net, lq, output, model.opt['scale'])
    finally:
        net.train(training)
    _check_output('datasets.train', model.opt, lq, output, gt)


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
        _check_keys(where, dataset_opt, batch, ('lq', 'lq_path'))
        if runs_as_basicsr(model):
            _check_channels(where, model, batch['lq'])
        with forward_of(model, model.reach, model.sizes) as run:
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


def _check_keys(where: str, dataset_opt: dict[str, Any], sample: dict[str, Any], needed: tuple[str, ...]) -> None:
    missing = [key for key in needed if key not in sample]
    if missing:
        raise UserError(
            f'{where}.type: {dataset_opt["type"]} gives no {" and no ".join(missing)}; accepted: a dataset that does, '
            'such as PairedImageDataset'
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
