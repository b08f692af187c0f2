"""Validation of BasicSR's models: its ``nondist_validation`` in less time, on any number of ranks."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from basicsr.models.base_model import BaseModel
from basicsr.models.sr_model import SRModel
from basicsr.utils import imwrite
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from facd_basicsr.archs import input_channels
from facd_basicsr.data.seeded_dataset import dataset_of
from facd_basicsr.errors import Stopped, UserError
from facd_basicsr.runtime.metrics import scores, to_image
from facd_basicsr.runtime.processes import Ranks
from facd_basicsr.runtime.tiling import receptive_field_radius, tiled


def feed_data_non_blocking(self: SRModel, data: dict[str, Any]) -> None:
    """As ``SRModel.feed_data``, but with non-blocking copies from pinned memory."""
    self.lq = data['lq'].to(self.device, non_blocking=True)
    if 'gt' in data:
        self.gt = data['gt'].to(self.device, non_blocking=True)


Sample = dict[str, Any]  # of one image, as the loader gives it

WINDOW = 16  # images in memory at a time, to be grouped by shape
BATCH_PIXELS = 2**16  # of LQ: more do not keep a GPU busier, and 64 features of a x4 output are 256 MiB
SCORERS = 2  # threads
SCORED_LATER = 4  # images that may wait to be scored


class ValidationNetwork(nn.Module):
    """A network as validation runs it: in tiles if asked for, and on the CPU in channels_last.

    Input (N, C, h, w); output (N, C, h * scale, w * scale).

    Args:
        scale, tile, reach: see :func:`facd_basicsr.runtime.tiling.tiled`; tile 0: whole images.
    """

    def __init__(self, net: nn.Module, scale: int, tile: int, reach: int) -> None:
        super().__init__()
        self.net = net
        self._scale, self._tile, self._reach = scale, tile, reach

    def forward(self, lq: Tensor) -> Tensor:
        if self._tile and max(lq.shape[2:]) > self._tile:
            return tiled(self._run, lq, self._scale, self._tile, self._reach)
        return self._run(lq)

    def _run(self, lq: Tensor) -> Tensor:
        if lq.device.type == 'cpu':  # where this layout is the faster one
            lq = lq.contiguous(memory_format=torch.channels_last)
        return self.net(lq)


def runs_as_basicsr(model: BaseModel) -> bool:
    """Whether an image passes through a model as through SRModel, so that batches, tiles and layouts are allowed."""
    methods = {name: getattr(type(model), name, None) for name in ('feed_data', 'test', 'get_current_visuals')}
    fed = methods.pop('feed_data') in (SRModel.feed_data, feed_data_non_blocking)
    return fed and all(method is getattr(SRModel, name) for name, method in methods.items())


def validated_receptive_field(model: BaseModel, own_validation: bool) -> int:
    """The receptive field radius of a model's network beyond the tiles of ``val.tile``; 0 without tiles.

    Args:
        own_validation: whether the model has one in the place of :func:`validate`.

    Raises:
        UserError: the model, or its network, does not work in tiles.
    """
    opt = model.opt
    tile = (opt.get('val') or {}).get('tile')
    if tile is None:
        return 0
    if own_validation or not runs_as_basicsr(model):
        raise UserError(f'val.tile: {tile} for {opt["model_type"]} which has its own test(); accepted: no val.tile')
    net = model.get_bare_model(model.net_g)
    return receptive_field_radius(net, input_channels(opt['network_g']), opt['scale'], tile)


def validate(
    model: BaseModel, reach: int, loader: DataLoader, current_iter: int | str, save_img: bool
) -> list[list[float]]:
    """Upscales, scores and, if asked for, saves the images of a set, each rank every R-th of them.

    Args:
        model: SRModel or a model that passes images as it does.
        reach: from :func:`validated_receptive_field`.
        loader: of batches of one.
        current_iter, save_img: as ``nondist_validation`` has them.

    Returns:
        For each image, in the order of the set, the values of ``val.metrics``: on every rank those of all.

    Raises:
        Stopped: on all ranks, when the loader's ``stop`` has ended it on one.
    """
    rank, size, images = model.opt['rank'], model.opt['world_size'], len(loader)
    own = loader if size == 1 else DataLoader(Subset(loader.dataset, range(rank, images, size)))
    stop = getattr(loader, 'stop', lambda: False)
    name = dataset_of(loader).opt['name']
    metrics = model.opt['val'].get('metrics') or {}

    def score(result: Tensor, gt: Tensor | None, stem: str) -> list[float]:
        image = to_image(result)
        if save_img:
            imwrite(image, image_path(model.opt, name, stem, current_iter))
        return scores(image, None if gt is None else to_image(gt), metrics)

    values: list[list[float]] | None
    try:
        with _with_validation_networks(model, reach), ThreadPoolExecutor(SCORERS) as scorers:
            scored = (
                (index, stem, scorers.submit(score, result, gt, stem))
                for index, stem, result, gt in _upscaled(model, own, stop)
            )
            values = _in_order(scored, len(own), model.opt['val'].get('pbar', False) and rank == 0)
    except Stopped:
        values = None  # tells the others
    by_rank = Ranks().gather(values)
    if None in by_rank:
        raise Stopped
    return [by_rank[index % size][index // size] for index in range(images)]


def image_path(opt: dict[str, Any], dataset: str, image: str, current_iter: int | str) -> str:
    """Where ``nondist_validation`` would write an image."""
    folder = Path(opt['path']['visualization'])
    if opt['is_train']:
        return str(folder / image / f'{image}_{current_iter}.png')
    return str(folder / dataset / f'{image}_{opt["val"]["suffix"] or opt["name"]}.png')


@contextmanager
def _with_validation_networks(model: BaseModel, reach: int) -> Iterator[None]:
    """Replaces the networks by their fastest form, without DDP, whose forward may wait for other ranks."""
    networks = {name: net for name in ('net_g', 'net_g_ema') if (net := vars(model).get(name)) is not None}
    try:
        for name, net in networks.items():
            bare = model.get_bare_model(net)
            tile = model.opt['val'].get('tile', 0)
            fast = ValidationNetwork(bare, model.opt['scale'], tile, reach) if runs_as_basicsr(model) else bare
            setattr(model, name, fast)
        yield
    finally:
        vars(model).update(networks)
        for name in ('lq', 'gt', 'output'):  # the last images', as large as they may be
            vars(model).pop(name, None)


def _upscaled(
    model: BaseModel, loader: Iterable[Sample], stop: Callable[[], bool]
) -> Iterator[tuple[int, str, Tensor, Tensor | None]]:
    """Number, name, result and GT (None without) of every image, (1, C, H, W), in any order."""
    pixels = BATCH_PIXELS if model.device.type == 'cuda' and runs_as_basicsr(model) else 0
    for group in _by_shape(_read_ahead(loader), pixels):
        if stop():
            raise Stopped
        model.feed_data(_batch([sample for _, sample in group]))
        model.test()
        visuals = model.get_current_visuals()
        for position, (index, sample) in enumerate(group):
            own = (
                visuals if len(group) == 1 else {key: value[position : position + 1] for key, value in visuals.items()}
            )
            gt = own['gt'] if 'gt' in sample else None  # visuals may have that of the last training batch
            yield index, Path(sample['lq_path'][0]).stem, own['result'], gt


def _in_order(scored: Iterable[tuple[int, str, Future]], images: int, bar: bool) -> list[list[float]]:
    """The values that the threads compute for each image, by its number."""
    values: list[list[float]] = [[]] * images
    waiting: deque[tuple[int, str, Future]] = deque()
    with tqdm(total=images, unit='image', disable=not bar) as progress:

        def take() -> None:
            index, stem, future = waiting.popleft()
            values[index] = future.result()
            progress.update()
            progress.set_description(f'Test {stem}')

        for one in scored:
            waiting.append(one)
            if len(waiting) > SCORED_LATER:
                take()
        while waiting:
            take()
    return values


def _read_ahead(loader: Iterable[Sample]) -> Iterator[Sample]:
    """The loader's samples, one read ahead."""
    samples = iter(loader)
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(next, samples, None)
        while (sample := following.result()) is not None:
            following = reader.submit(next, samples, None)
            yield sample


def _by_shape(samples: Iterable[Sample], pixels: int) -> Iterator[list[tuple[int, Sample]]]:
    """Groups of numbered samples of equal shapes with no more LQ pixels together, but of one sample at least."""
    numbered = enumerate(samples)
    while window := list(islice(numbered, WINDOW if pixels else 1)):
        by_shape: dict[tuple, list[tuple[int, Sample]]] = {}
        for index, sample in window:
            shapes = tuple(sample[key].shape for key in ('lq', 'gt') if key in sample)
            by_shape.setdefault(shapes, []).append((index, sample))
        for (lq, *_), same in by_shape.items():
            size = max(1, pixels // (lq[2] * lq[3]))
            yield from (same[first : first + size] for first in range(0, len(same), size))


def _batch(samples: list[Sample]) -> Sample:
    if len(samples) == 1:
        return samples[0]
    return {key: torch.cat([sample[key] for sample in samples]) for key in ('lq', 'gt') if key in samples[0]}
