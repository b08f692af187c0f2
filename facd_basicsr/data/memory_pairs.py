"""BasicSR's pairs of images with all of them decoded once: the same samples, each at the cost of a patch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.data.transforms import augment, paired_random_crop
from basicsr.utils import bgr2ycbcr, get_root_logger, img2tensor
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import normalize

from facd_basicsr.data.decoded_cache import CacheNotWrittenError, DecodedImages, decoded_images, taught_images
from facd_basicsr.runtime.metrics import to_image


def from_memory(dataset: PairedImageDataset) -> 'PairedImageDataset | MemoryPairs':
    """A set whose images are decoded once; after a warning the set as it is, where they cannot be kept.

    Args:
        dataset: of two folders or two LMDBs, in its final order.

    Raises:
        UserError: an LMDB cannot be read.
    """
    where, name, log = f'datasets.{dataset.opt["phase"]}.io_backend', dataset.opt['name'], get_root_logger()
    roots = {'gt': Path(dataset.gt_folder), 'lq': Path(dataset.lq_folder)}

    def decoded(side: str) -> DecodedImages:
        inside_other = roots[side].parent in roots.values()  # where BasicSR takes all but hidden files for images
        return decoded_images(roots[side], [paths[f'{side}_path'] for paths in dataset.paths], where, inside_other)

    try:
        gt, lq = decoded('gt'), decoded('lq')
    except CacheNotWrittenError as error:
        log.warning(
            f'{where}: memory: {error}; accepted: that space in a writable folder. {name} is read from its files, '
            'which is slower; docs/data.md#in-memory'
        )
        return dataset
    log.info(f'{name} is read from {gt.path} and {lq.path}.')
    left_out = int((~(gt.are_decoded() & lq.are_decoded())).sum())
    if left_out:
        log.warning(
            f'{left_out} pairs of {name} are not: damaged, or of another size than listed. They are read from their '
            'files each time.'
        )
    return MemoryPairs(dataset, gt, lq)


def is_in_memory(dataset_opt: dict[str, Any]) -> bool:
    """Whether a set's images are to be decoded once."""
    return (dataset_opt.get('io_backend') or {}).get('type') == 'memory'


def file_backend(dataset_opt: dict[str, Any]) -> str | None:
    """What a set's files are, ``disk`` or ``lmdb``: of one that is decoded once its roots tell."""
    if is_in_memory(dataset_opt):
        return 'lmdb' if Path(dataset_opt['dataroot_gt']).suffix == '.lmdb' else 'disk'
    return (dataset_opt.get('io_backend') or {}).get('type')


class MemoryPairs(Dataset):
    """The samples of BasicSR's ``PairedImageDataset``, to the last bit, with the same numbers drawn in the same order.

    BasicSR decodes both images and makes floats of all their pixels, to take a patch of them. Here the patch is taken
    first. A pair that is not decoded or does not fit is left to BasicSR's dataset, so that it fails as it does there.
    """

    def __init__(self, dataset: PairedImageDataset, gt: DecodedImages, lq: DecodedImages) -> None:
        self.dataset = dataset
        self.opt = dataset.opt
        self.paths = dataset.paths
        self.gt_folder, self.lq_folder = dataset.gt_folder, dataset.lq_folder
        self._gt, self._lq = gt, lq
        self._taught: DecodedImages | None = None

    def read_taught(self, teach: Callable[[Tensor], Tensor], made_by: list[Any]) -> None:
        """From now on samples have a ``teacher``: what a teacher gives of the whole LQ image, in 8 bits, where their GT
        is, and turned alike; their other values stay the same.

        Args:
            teach: (1, 3, h, w) -> (1, 3, h * scale, w * scale), RGB in [0, 1]; not called if there is a cache.
            made_by: what it depends on.

        Raises:
            CacheNotWrittenError: there is none, and it cannot be written.
        """

        def taught(image: np.ndarray) -> np.ndarray:
            return to_image(teach(self._tensor(image)[None]))

        self._taught = taught_images(self._lq, taught, made_by, self.opt['scale'])
        get_root_logger().info(f'What the teacher gives of {self.opt["name"]} is read from {self._taught.path}.')

    @property
    def file_client(self) -> Any:
        """BasicSR's; None before a file was read."""
        return self.dataset.file_client

    def __getitem__(self, index: int) -> dict[str, Any]:
        gt, lq, paths, scale = self._gt[index], self._lq[index], self.paths[index], self.opt['scale']
        if gt is None or lq is None:
            return self._from_files(index)
        own: dict[str, Tensor] = {}
        if self.opt['phase'] == 'train':
            taught = gt if self._taught is None else self._taught[index]
            try:
                (gt, taught), lq = paired_random_crop([gt, taught], lq, self.opt['gt_size'], scale, paths['gt_path'])
            except ValueError:
                return self._from_files(index)
            _, turns = augment([], self.opt['use_hflip'], self.opt['use_rot'], return_status=True)  # only draws
            gt, lq = _turned(gt, *turns), _turned(lq, *turns)
            if self._taught is not None:
                own = {'teacher': self._tensor(_turned(taught, *turns))}
        else:
            gt = gt[: lq.shape[0] * scale, : lq.shape[1] * scale]
        return {'lq': self._tensor(lq), 'gt': self._tensor(gt), **own, **paths}

    def _from_files(self, index: int) -> dict[str, Any]:
        sample = self.dataset[index]
        if self._taught is not None:
            raise ValueError('another size than listed, so that the teacher has no image of it (teacher.cache)')
        return sample

    def __len__(self) -> int:
        return len(self.paths)

    def _tensor(self, image: np.ndarray) -> Tensor:
        """BGR uint8 (H, W, 3) -> (3, H, W) in [0, 1], RGB, or (1, H, W) of ``color: y``; normalized if so asked."""
        if self.opt.get('color') == 'y':
            tensor = img2tensor(bgr2ycbcr(image.astype(np.float32) / 255.0, y_only=True)[..., None])
        else:
            tensor = torch.empty(3, *image.shape[:2])
            for plane, channel in zip(tensor.numpy(), reversed(cv2.split(image))):
                np.divide(channel, np.float32(255), out=plane, dtype=np.float32)
        mean, std = self.dataset.mean, self.dataset.std
        if mean is not None or std is not None:
            normalize(tensor, mean, std, inplace=True)
        return tensor


def _turned(image: np.ndarray, hflip: bool, vflip: bool, rot90: bool) -> np.ndarray:
    """As BasicSR's ``augment``, which flips in place: these pixels are shared."""
    if hflip or vflip:
        image = cv2.flip(image, -1 if hflip and vflip else int(hflip))
    return cv2.transpose(image) if rot90 else image
