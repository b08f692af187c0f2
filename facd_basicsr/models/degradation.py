"""LQ that are made of GT in training, on the device: Real-ESRGAN's second-order degradation, by BasicSR's own code."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from basicsr.models.realesrgan_model import RealESRGANModel
from basicsr.models.realesrnet_model import RealESRNetModel
from basicsr.utils import DiffJPEG, USMSharp, get_root_logger
from basicsr.utils.dist_util import get_dist_info
from torch import Tensor

from facd_basicsr.runtime.rng import seed_for, seeded_rng

USM_OF_TARGET = {'gt': 'l1_gt_usm', 'percep_gt': 'percep_gt_usm', 'gan_gt': 'gan_gt_usm'}


class ContiguousJPEG(DiffJPEG):
    """The same values in BasicSR's layout for ``filter2D``, which on a CPU could not take a view of DiffJPEG's."""

    def forward(self, x: Tensor, quality: Tensor) -> Tensor:
        return super().forward(x, quality).contiguous()


class Degradation:
    """Makes the pairs of a step of a batch of ``RealESRGANDataset``: with the option ``gt_usm`` as RealESRNetModel,
    with ``l1_gt_usm``, ``percep_gt_usm`` and ``gan_gt_usm`` as RealESRGANModel, which makes LQ of the sharpened GT and
    leaves to each loss what it compares with. Of pairs, without ``high_order_degradation``, it sharpens the GT.

    BasicSR's functions are called with this object in the place of a model: it has the attributes that they read. What
    their constructors and their pool make is made here, since theirs ask for CUDA.

    What is drawn for a batch depends on the seed of its first sample and on nothing that was drawn before: every model
    that trains on the data sees the same pairs. Only batches of other loaders, without seeds, draw as BasicSR's.

    Args:
        opt: of the run, with the keys of Real-ESRGAN's option files at its top.
        device: of the model.

    Attributes:
        queue_lr, queue_gt, queue_ptr: the pool of training pairs: (queue_size, 3, h, w), (queue_size, 3, h * scale,
            w * scale), and how many it has.
        gt_path: of the batch's samples.
    """

    is_train = True
    lq: Tensor
    gt: Tensor
    gt_usm: Tensor

    def __init__(self, opt: dict[str, Any], device: torch.device) -> None:
        self.opt, self.device = opt, device
        self._basicsr = RealESRNetModel if 'gt_usm' in opt else RealESRGANModel
        self.jpeger = ContiguousJPEG(differentiable=False).to(device)
        self.usm_sharpener = USMSharp().to(device)
        self.gt_path: list[str] = []
        self._queue_paths: list[str] = []
        self._has_pool = opt['high_order_degradation']
        if self._has_pool:
            self.queue_size, self.queue_ptr = opt['queue_size'], 0
            sizes = (opt['gt_size'] // opt['scale'], opt['gt_size'])
            self.queue_lr, self.queue_gt = (
                torch.zeros(self.queue_size, 3, size, size, device=device) for size in sizes
            )

    def __call__(self, data: Mapping[str, Any], pool: bool = True) -> dict[str, Any]:
        """The batch as a dataset of pairs gives it, on the device, with the pool's pairs in the place of its own once
        the pool is full.

        Args:
            data: as the loader gives it.
            pool: whether the pool takes part, or the batch is only looked at.

        Returns:
            What ``data`` has beside its tensors; ``lq``, (N, 3, h, w); and, (N, 3, h * scale, w * scale) each, ``gt``,
            with which pixel and distillation losses compare, and, unless there is ``gt_usm``, ``percep_gt`` and
            ``gan_gt``, with which the perceptual and the GAN's do.
        """
        self._pools, self.gt_path = pool, list(data['gt_path'])
        seed = seed_for(int(data['seed'][0]), 'degradation') if 'seed' in data else None
        with nullcontext() if seed is None else seeded_rng(seed):
            self._basicsr.feed_data(self, data)
        targets = {name: self.opt[key] for name, key in USM_OF_TARGET.items() if key in self.opt}
        targets = {name: self.gt_usm if sharpened else self.gt for name, sharpened in targets.items()}
        rest = {key: value for key, value in data.items() if not isinstance(value, Tensor)}
        return {**rest, 'gt_path': self.gt_path, 'lq': self.lq, 'gt': self.gt, **targets}

    def _dequeue_and_enqueue(self) -> None:
        """BasicSR's, and the files' names with the pairs."""
        if not self._pools:
            return
        if self.queue_ptr < self.queue_size:
            self._queue_paths += self.gt_path
        else:
            with torch.random.fork_rng(devices=[]):
                order = torch.randperm(self.queue_size).tolist()  # as BasicSR's will be
            shuffled, taken = [self._queue_paths[index] for index in order], len(self.gt_path)
            self._queue_paths, self.gt_path = [*self.gt_path, *shuffled[taken:]], shuffled[:taken]
        self._basicsr._dequeue_and_enqueue(self)

    def state(self) -> dict[str, Any] | None:
        """The pool, for a training state; None: there is none.

        180 pairs of 64 and 256 pixels take 38 MB in it, of each rank, as LQ and GT have the values of 8 bits; 144 MB
        with ``gt_usm: true``, by which the pool has sharpened GT.
        """
        if not self._has_pool:
            return None
        pairs = {key: _stored(queue[: self.queue_ptr]) for key, queue in self.queues.items()}
        return {**pairs, 'gt_path': list(self._queue_paths)}

    @property
    def queues(self) -> dict[str, Tensor]:
        """The pool's images, none without a pool."""
        return {'lq': self.queue_lr, 'gt': self.queue_gt} if self._has_pool else {}

    def load_state(self, states: Sequence[dict[str, Any]]) -> None:
        """Restores :meth:`state`, of as many ranks as there are now; otherwise the pool stays empty, as a warning says.

        Args:
            states: of all ranks; none if the state that is resumed is BasicSR's.
        """
        rank, size = get_dist_info()
        if not self._has_pool:
            return
        if len(states) != size:
            _warn(f'the pools of {len(states)} processes, not {size}')
            return
        own = states[rank]
        missing = self.queue_size - len(own['gt_path'])
        if missing < 0 or missing % self.opt['datasets']['train']['batch_size_per_gpu']:
            _warn(f'{len(own["gt_path"])} pairs, which batches do not complete to queue_size: {self.queue_size}')
        elif any(own[key]['levels'].shape[1:] != queue.shape[1:] for key, queue in self.queues.items()):
            _warn('pairs of another gt_size')
        else:
            self.queue_ptr, self._queue_paths = len(own['gt_path']), list(own['gt_path'])
            for key, queue in self.queues.items():
                _restore(own[key], queue)


def degradation_of(opt: dict[str, Any], device: torch.device) -> Degradation | None:
    """Of a run whose pairs are made or sharpened on the device; None: its dataset gives them as they are."""
    return Degradation(opt, device) if {'gt_usm', 'l1_gt_usm'} & opt.keys() else None


def _stored(images: Tensor) -> dict[str, Tensor]:
    """Images, (n, 3, H, W), as ``values[levels]``, a byte for each number, where they have no more values than 8 bits;
    others, which no division by 255 has made, as ``levels`` alone, which are the images."""
    images, values = images.cpu(), torch.zeros(256)
    levels = torch.empty(images.shape, dtype=torch.uint8)
    for image, level in zip(images, levels):  # one at a time: an index has 8 bytes a number
        index = (image * 255).round().clamp(0, 255).long()
        values[index] = image
        level.copy_(index)
    if all(torch.equal(values[level.long()], image) for image, level in zip(images, levels)):
        return {'levels': levels, 'values': values}
    return {'levels': images.clone()}


def _restore(stored: Mapping[str, Tensor], images: Tensor) -> None:
    """Writes what :func:`_stored` gave into the first of ``images``."""
    for image, level in zip(images, stored['levels']):
        image.copy_(stored['values'][level.long()] if 'values' in stored else level)


def _warn(found: str) -> None:
    get_root_logger().warning(
        f'Resume is not exact: the pool of training pairs starts empty, since the state has {found}.'
    )
