"""Validation of BasicSR's models: its ``nondist_validation`` in less time, on any number of ranks."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from basicsr.models.base_model import BaseModel
from basicsr.models.sr_model import SRModel
from basicsr.utils import imwrite
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from facd_basicsr.archs import input_channels, network_sizes
from facd_basicsr.data.seeded_dataset import dataset_of
from facd_basicsr.errors import Stopped, UserError, locating
from facd_basicsr.progress import ProgressBar
from facd_basicsr.runtime.execution import check_upscaled, reraise_refused_input
from facd_basicsr.runtime.metrics import scores, to_image
from facd_basicsr.runtime.processes import Ranks
from facd_basicsr.runtime.size_requirements import Padded, SizeRequirements
from facd_basicsr.runtime.tiling import receptive_field_radius, tiled


def feed_data_non_blocking(self: SRModel, data: dict[str, Any]) -> None:
    """As ``SRModel.feed_data``, but with non-blocking copies from pinned memory, and the samples' seeds and, if they
    have one, the teacher's image and what perceptual and GAN losses compare with."""
    self.lq = data['lq'].to(self.device, non_blocking=True)
    if 'gt' in data:
        self.gt = data['gt'].to(self.device, non_blocking=True)
    self.seeds = tuple(map(int, data.get('seed', range(len(self.lq)))))
    self.percep_gt, self.gan_gt = data.get('percep_gt'), data.get('gan_gt')  # None: gt
    self.taught = data['teacher'].to(self.device, non_blocking=True) if 'teacher' in data else None


Sample = dict[str, Any]  # of one image, as the loader gives it

WINDOW = 16  # images in memory at a time, to be grouped by shape
BATCH_PIXELS = 2**16  # of LQ: more do not keep a GPU busier, and 64 features of a x4 output are 256 MiB
SCORERS = 2  # threads
SCORED_LATER = 4  # images that may wait to be scored


class Interruptible:
    """A loader for a model's own validation: raises ``Stopped`` instead of the next image."""

    def __init__(self, loader: DataLoader, stop: Callable[[], bool]) -> None:
        self.dataset = loader.dataset  # BasicSR's validation reads the set's name there
        self._loader, self._stop = loader, stop

    def __iter__(self) -> Iterator[Sample]:
        for sample in self._loader:
            if self._stop():
                raise Stopped
            yield sample

    def __len__(self) -> int:
        return len(self._loader)


def validation_forward(net: nn.Module, lq: Tensor, scale: int, tile: int, reach: int) -> Tensor:
    """A network as validation runs it, (N, C, h, w) -> (N, C, h * scale, w * scale): in tiles of
    :func:`facd_basicsr.runtime.tiling.tiled`, with tile 0 whole images, and on the CPU in channels_last."""

    def run(lq: Tensor) -> Tensor:
        if lq.device.type == 'cpu':  # where this layout is the faster one
            lq = lq.contiguous(memory_format=torch.channels_last)
        return net(lq)

    return tiled(run, lq, scale, tile, reach) if tile and max(lq.shape[2:]) > tile else run(lq)


def runs_as_basicsr(model: BaseModel) -> bool:
    """Whether an image passes through a model as through SRModel, so that batches, tiles and layouts are allowed."""
    methods = {name: getattr(type(model), name, None) for name in ('feed_data', 'test', 'get_current_visuals')}
    fed = methods.pop('feed_data') in (SRModel.feed_data, feed_data_non_blocking)
    return fed and all(method is getattr(SRModel, name) for name, method in methods.items())


def validates_itself(model: BaseModel) -> bool:
    """Whether a model has a validation of its own, where SRModel's becomes :func:`validate`."""
    methods = ('dist_validation', 'nondist_validation')
    return any(getattr(type(model), name, None) is not getattr(SRModel, name) for name in methods)


def validated_receptive_field(model: BaseModel, sizes: SizeRequirements) -> int:
    """The receptive field radius of a model's network beyond the tiles of ``val.tile``; 0 without tiles.

    Raises:
        UserError: the model, or its network, does not work in tiles.
    """
    opt = model.opt
    tile = (opt['val'] or {}).get('tile')
    if tile is None:
        return 0
    if validates_itself(model) or not runs_as_basicsr(model):
        raise UserError(f'val.tile: {tile} for {opt["model_type"]} which has its own test(); accepted: no val.tile')
    net = model.get_bare_model(model.net_g)
    return receptive_field_radius(net, input_channels(opt['network_g']), opt['scale'], tile, sizes)


def validated_sizes(model: BaseModel) -> SizeRequirements:
    """The sizes of LQ that a model's network takes; none are required of a model with a ``test`` of its own."""
    if not runs_as_basicsr(model):
        return SizeRequirements()
    return network_sizes(model.get_bare_model(model.net_g), model.opt['network_g'], model.opt['scale'])


def validate(
    model: BaseModel,
    loader: DataLoader,
    current_iter: int | str,
    save_img: bool,
    stop: Callable[[], bool],
) -> list[dict[str, float]]:
    """Upscales, scores and, if asked for, saves the images of a set, each rank every R-th of them.

    Args:
        model: SRModel or a model that passes images as it does.
        loader: of batches of one.
        stop: asked before each image; True ends it.

    Returns:
        For each image, in the order of the set, the values of ``val.metrics`` by name: on every rank those of all.
        Without GT those that need it are left out.

    Raises:
        Stopped: on all ranks, when ``stop`` has ended it on one.
    """
    rank, size, images = model.opt['rank'], model.opt['world_size'], len(loader)
    own = loader if size == 1 else DataLoader(Subset(loader.dataset, range(rank, images, size)))
    name = dataset_of(loader).opt['name']
    metrics = model.opt['val']['metrics'] or {}

    def score(result: Tensor, gt: Tensor | None, stem: str) -> dict[str, float]:
        image = to_image(result)
        if save_img:
            imwrite(image, image_path(model.opt, name, stem, current_iter))
        with locating(stem):
            return scores(image, None if gt is None else to_image(gt), metrics)

    pixels = BATCH_PIXELS if model.device.type == 'cuda' and runs_as_basicsr(model) else 0
    values: list[dict[str, float]] | None
    try:
        with forward_of(model) as run, ThreadPoolExecutor(SCORERS) as scorers:
            scored = (
                (index, stem, scorers.submit(score, result, gt, stem))
                for index, stem, result, gt in _upscaled(run, own, pixels, stop)
            )
            values = _in_order(scored, len(own), model.opt['val']['pbar'] and rank == 0)
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


Forward = Callable[[Sample], tuple[Tensor, Tensor | None]]  # a batch's results and GT, each (N, C, H, W) on the CPU


def forward_of(model: BaseModel) -> AbstractContextManager[Forward]:
    """How a model upscales the images of a set."""
    return _network(model) if runs_as_basicsr(model) else _own_test(model)


@contextmanager
def _network(model: BaseModel) -> Iterator[Forward]:
    """What ``SRModel.test`` runs: the average of ``net_g`` if there is one. Without DDP, whose forward may wait for
    other ranks."""
    net = model.get_bare_model(getattr(model, 'net_g_ema', model.net_g))  # BasicSR's, which may not have it
    scale, tile, training = model.opt['scale'], model.opt['val']['tile'] or 0, net.training
    padded = Padded(net, scale, model.sizes)

    @torch.no_grad()
    def run(batch: Sample) -> tuple[Tensor, Tensor | None]:
        lq = batch['lq'].to(model.device, non_blocking=True)
        with reraise_refused_input('network_g', net, lq):
            sr = validation_forward(padded, lq, scale, tile, model.reach)
            check_upscaled('network_g', net, lq, sr, scale)
        return sr.cpu(), batch.get('gt')

    try:
        padded.eval()
        yield run
    finally:
        net.train(training)


@contextmanager
def _own_test(model: BaseModel) -> Iterator[Forward]:
    """A model's own ``test``. It takes the networks from the model, so that without DDP they must be put there."""
    networks = {name: net for name in ('net_g', 'net_g_ema') if (net := vars(model).get(name)) is not None}

    def run(batch: Sample) -> tuple[Tensor, Tensor | None]:
        model.feed_data(batch)
        model.test()
        visuals = model.get_current_visuals()  # whose GT may be that of the last training batch
        return visuals['result'], visuals['gt'] if 'gt' in batch else None

    try:
        vars(model).update({name: model.get_bare_model(net) for name, net in networks.items()})
        yield run
    finally:
        vars(model).update(networks)
        for name in ('lq', 'gt', 'output'):  # the last image's, as large as they may be
            vars(model).pop(name, None)


def _upscaled(
    run: Forward, loader: Iterable[Sample], pixels: int, stop: Callable[[], bool]
) -> Iterator[tuple[int, str, Tensor, Tensor | None]]:
    """Number, name, result and GT (None without) of every image, (1, C, H, W), in any order."""
    for group in _by_shape(_read_ahead(loader), pixels):
        if stop():
            raise Stopped
        results, gts = run(_batch([sample for _, sample in group]))
        for (index, sample), result, gt in zip(group, results, [None] * len(group) if gts is None else gts):
            yield index, Path(sample['lq_path'][0]).stem, result[None], None if gt is None else gt[None]


def _in_order(scored: Iterable[tuple[int, str, Future]], images: int, bar: bool) -> list[dict[str, float]]:
    """The values that the threads compute for each image, by its number."""
    values: list[dict[str, float]] = [{}] * images
    waiting: deque[tuple[int, str, Future]] = deque()
    with ProgressBar(total=images, unit='image', disable=not bar) as progress:

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
