"""The test sets of option files, image by image."""

import copy
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.data.realesrgan_paired_dataset import RealESRGANPairedDataset
from basicsr.utils import tensor2img

from facd_basicsr.data.loaders import build_ordered_dataset
from facd_basicsr.data.seeded_dataset import NamingDataset
from facd_basicsr.errors import UserError, reraise_data_errors
from facd_basicsr.files.images import is_gray
from facd_basicsr.options.option_check import did_you_mean


@dataclass(frozen=True, eq=False)
class ImagePair:
    """One image of a test set.

    Attributes:
        set: the set's name.
        image: GT's file name without suffix, or its LMDB key.
        lq: BGR uint8 (h, w, 3).
        gt: BGR uint8 (h * scale, w * scale, 3).
        gray: whether GT's file has one channel; then ``gt`` has it three times.
    """

    set: str
    image: str
    lq: np.ndarray
    gt: np.ndarray
    gray: bool = False


def build_sets(opt: dict[str, Any]) -> dict[str, PairedImageDataset]:
    """{name: dataset} of a checked test file, in test.py's order.

    Raises:
        UserError: a set is not of pairs of plain color images, or BasicSR's dataset complains.
    """
    sets = {}
    for phase, block in sorted(opt['datasets'].items()):
        for key in ('color', 'mean', 'std'):
            if block.get(key) is not None:
                raise UserError(
                    f'datasets.{phase}.{key}: {block[key]!r}; accepted here: none, for color images in [0, 1] are '
                    'compared; test.py evaluates others'
                )
        dataset_opt = copy.deepcopy(block) | {'phase': phase.split('_')[0], 'scale': opt['scale']}
        with reraise_data_errors():
            dataset = build_ordered_dataset(dataset_opt)
        if not isinstance(dataset, PairedImageDataset | RealESRGANPairedDataset):
            accepted = 'PairedImageDataset, RealESRGANPairedDataset'
            raise UserError(f'datasets.{phase}.type: {block["type"]}; accepted here: {accepted}')
        sets[block['name']] = dataset
    return sets


def pairs(sets: dict[str, PairedImageDataset]) -> Iterator[ImagePair]:
    """Every image of every set as BasicSR's dataset reads it, in the order of GT's names.

    Raises:
        UserError: an image cannot be read, or GT is smaller than the upscaled LQ is.
    """
    for name, dataset in sets.items():
        naming, scale = NamingDataset(dataset), dataset.opt['scale']
        gt_paths = [paths['gt_path'] for paths in dataset.paths]
        for gt_path, index in sorted(zip(gt_paths, range(len(gt_paths)))):
            data = naming[index]
            lq, gt = tensor2img(data['lq']), tensor2img(data['gt'])
            if gt.shape[:2] != (scale * lq.shape[0], scale * lq.shape[1]):
                raise UserError(
                    f'datasets: {gt_path}: {gt.shape[1]} x {gt.shape[0]} pixels; accepted: {scale} times the '
                    f'{lq.shape[1]} x {lq.shape[0]} of its LQ'
                )
            gray = is_gray(io.BytesIO(dataset.file_client.get(gt_path, 'gt')))
            yield ImagePair(name, Path(gt_path).stem, lq, gt, gray)


def select(sets: dict[str, PairedImageDataset], set_name: str | None, images: Sequence[str] = ()) -> list[ImagePair]:
    """The images of one set or of all, by name.

    Args:
        sets: from :func:`build_sets`.
        set_name: the set; None: all of them.
        images: the images' names without suffix; none: all of them.

    Raises:
        UserError: there is no such set, or no such image in it.
    """
    if set_name is not None and set_name not in sets:
        raise UserError(f'--set: {set_name!r} is not in the option files{did_you_mean(set_name, sets)}')
    found = list(pairs(sets if set_name is None else {set_name: sets[set_name]}))
    names = {pair.image for pair in found}
    for image in images:
        if image not in names:
            raise UserError(f'--image: {image!r} is not in {set_name or ", ".join(sets)}{did_you_mean(image, names)}')
    return [pair for pair in found if not images or pair.image in images]
