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
from basicsr.data.single_image_dataset import SingleImageDataset
from basicsr.utils import tensor2img

from facd_basicsr.data.loaders import build_ordered_dataset
from facd_basicsr.data.memory_pairs import file_backend, is_in_memory
from facd_basicsr.data.paths import check_paths
from facd_basicsr.data.seeded_dataset import NamingDataset
from facd_basicsr.errors import UserError, reraise_data_errors
from facd_basicsr.files.images import is_gray
from facd_basicsr.options.option_check import did_you_mean
from facd_basicsr.runtime.metrics import NIQE, niqe_options


@dataclass(frozen=True, eq=False)
class LqImage:
    """One image of a test set without ground truth.

    Attributes:
        set: the set's name.
        image: GT's file name without suffix, or its LMDB key; without GT that of LQ.
        lq: BGR uint8 (h, w, 3).
    """

    set: str
    image: str
    lq: np.ndarray


@dataclass(frozen=True, eq=False)
class ImagePair(LqImage):
    """One image of a test set.

    Attributes:
        gt: BGR uint8 (h * scale, w * scale, 3).
        gray: whether GT's file has one channel; then ``gt`` has it three times.
    """

    gt: np.ndarray
    gray: bool = False


PAIRED = (PairedImageDataset, RealESRGANPairedDataset)
Sets = dict[str, PairedImageDataset | RealESRGANPairedDataset | SingleImageDataset]


def build_sets(opt: dict[str, Any], lq_only: bool = False) -> Sets:
    """{name: dataset} of a checked test file, in test.py's order.

    Args:
        lq_only: whether sets without ground truth are accepted too. NIQE is what they can be compared by.

    Raises:
        UserError: a set is not of pairs of plain color images, an image is too small for NIQE, or BasicSR's dataset
            complains.
    """
    accepted = (*PAIRED, SingleImageDataset) if lq_only else PAIRED
    sets = {}
    for phase, block in sorted(opt['datasets'].items()):
        for key in ('color', 'mean', 'std'):
            if block.get(key) is not None:
                raise UserError(
                    f'datasets.{phase}.{key}: {block[key]!r}; accepted here: none, for color images in [0, 1] are '
                    'compared; test.py evaluates others'
                )
        dataset_opt = copy.deepcopy(block) | {'phase': phase.split('_')[0], 'scale': opt['scale']}
        if is_in_memory(block):  # which training maps; the files are the same
            dataset_opt['io_backend'] = {'type': file_backend(block)}
        with reraise_data_errors():
            dataset = build_ordered_dataset(dataset_opt)
        if not isinstance(dataset, accepted):
            names = ', '.join(cls.__name__ for cls in accepted)
            raise UserError(f'datasets.{phase}.type: {block["type"]}; accepted here: {names}')
        if isinstance(dataset, SingleImageDataset):
            of_niqe = {'datasets': {phase: block}, 'val': {'metrics': {NIQE: niqe_options(opt['scale'])}}}
            check_paths({**of_niqe, 'scale': opt['scale'], 'path': {}}, is_train=False)
        sets[block['name']] = dataset
    return sets


def validation_pairs(opt: dict[str, Any]) -> tuple[list[ImagePair], list[str]]:
    """The images of the sets of a train or test file that are not trained on, and why sets were left out."""
    found: list[ImagePair] = []
    problems = []
    for phase, block in opt['datasets'].items():
        if phase.split('_')[0] != 'train':
            try:
                found += pairs(build_sets({**opt, 'datasets': {phase: block}}))
            except UserError as error:
                problems.append(str(error))
    return found, problems


def pairs(sets: Sets) -> Iterator[ImagePair]:
    """As :func:`images`, of the sets that have ground truth."""
    return (image for image in images(sets) if isinstance(image, ImagePair))


def images(sets: Sets) -> Iterator[LqImage]:
    """Every image of every set as BasicSR's dataset reads it, in the order of GT's names.

    Raises:
        UserError: an image cannot be read, or GT is smaller than the upscaled LQ is.
    """
    for name, dataset in sets.items():
        naming, scale = NamingDataset(dataset), dataset.opt['scale']
        if isinstance(dataset, SingleImageDataset):
            for index, path in enumerate(dataset.paths):
                yield LqImage(name, Path(path).stem, tensor2img(naming[index]['lq']))
            continue
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


def select(sets: Sets, set_name: str | None, names: Sequence[str] = ()) -> list[ImagePair]:
    """The images of one set or of all, by name.

    Args:
        set_name: the set; None: all of them.
        names: the images' names without suffix, or SET/NAME; none: all of them.

    Raises:
        UserError: there is no such set, or no such image in it.
    """
    if set_name is not None and set_name not in sets:
        raise UserError(f'--set: {set_name!r} is not in the option files{did_you_mean(set_name, sets)}')
    found = list(pairs(sets if set_name is None else {set_name: sets[set_name]}))
    there = {pair.image for pair in found} | {f'{pair.set}/{pair.image}' for pair in found}
    for name in names:
        if name not in there:
            known = {name for name in there if '/' not in name}
            raise UserError(f'--image: {name!r} is not in {set_name or ", ".join(sets)}{did_you_mean(name, known)}')
    return [pair for pair in found if not names or any(is_called(pair, name) for name in names)]


def is_called(pair: ImagePair, name: str) -> bool:
    """Whether a user's ``NAME`` or ``SET/NAME`` is that of an image."""
    return name in (pair.image, f'{pair.set}/{pair.image}')
