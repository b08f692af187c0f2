"""BasicSR's pairs of images with all of them decoded in memory: the same samples, each at the cost of a patch."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.data.transforms import augment, paired_random_crop
from basicsr.utils import bgr2ycbcr, get_root_logger, imfrombytes, img2tensor
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import normalize

from facd_basicsr.data.damaged_images import opened_lmdb
from facd_basicsr.data.lmdb_pairs import meta_info_shapes
from facd_basicsr.data.seeded_dataset import UNREADABLE
from facd_basicsr.data.shared_block import SharedBlock, create_once_per_node, new_block
from facd_basicsr.environment import available_memory
from facd_basicsr.errors import UserError
from facd_basicsr.files.images import image_size
from facd_basicsr.files.parallel import in_threads
from facd_basicsr.runtime.processes import Ranks

SIDES = ('gt', 'lq')
ROW = (len(SIDES), 3)  # of the table: offset, height and width of each side; a height of 0: there are no pixels
GB = 10**9


class DecodedPairs:
    """Pairs of images by their number.

    Args:
        block: the table, int64 (count, 2, 3), then the pixels.
        count: of pairs.
    """

    def __init__(self, block: SharedBlock, count: int) -> None:
        self._block = block
        self._count = count
        self._table, self._pixels = _parts(block, count)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        """GT (H, W, 3) and LQ (h, w, 3), BGR uint8, to be read only; None if one of them could not be decoded."""
        (start, height, width), (lq_start, lq_height, lq_width) = self._table[index].tolist()
        if not (height and lq_height):
            return None
        gt = self._pixels[start : start + 3 * height * width].reshape(height, width, 3)
        lq = self._pixels[lq_start : lq_start + 3 * lq_height * lq_width].reshape(lq_height, lq_width, 3)
        return gt, lq

    def __reduce__(self) -> tuple[Callable[..., 'DecodedPairs'], tuple[Any, ...]]:
        return DecodedPairs, (self._block, self._count)


def decoded_pairs(dataset: PairedImageDataset, ranks: Ranks) -> DecodedPairs:
    """Decodes all images of a set, once per node. To be called by all ranks.

    Args:
        dataset: of a folder or an LMDB, in its final order.
        ranks: of the run.

    Raises:
        UserError: they need more memory than is available, or cannot be read.
    """
    block = create_once_per_node(lambda: _decode_all(dataset), ranks)
    return DecodedPairs(block, len(dataset))


def _parts(block: SharedBlock, count: int) -> tuple[np.ndarray, np.ndarray]:
    end = _table_bytes(count)
    return block.bytes[:end].view(np.int64).reshape(count, *ROW), block.bytes[end:]


def _table_bytes(count: int) -> int:
    return count * int(np.prod(ROW)) * np.dtype(np.int64).itemsize


def _decode_all(dataset: PairedImageDataset) -> SharedBlock:
    where, name = f'datasets.{dataset.opt["phase"]}.io_backend', dataset.opt['name']
    sizes = _sizes(dataset, where)
    ends = np.cumsum(sizes).reshape(sizes.shape)
    needed = _table_bytes(len(dataset)) + int(ends.flat[-1])
    free = available_memory()
    refusal = f'{where}: memory: {name} needs {needed / GB:.1f} GB decoded'
    others = 'accepted: lmdb or disk, or fewer images (with memory, whole ones serve as well as overlapping sub-images)'
    if free is not None and needed > free:
        raise UserError(f'{refusal}, {free / GB:.1f} GB are available; {others}')
    log = get_root_logger()
    log.info(f'Decoding {len(dataset)} pairs of {name} into {needed / GB:.1f} GB of memory.')
    start = time.perf_counter()
    try:
        block = new_block(needed)
    except (OSError, RuntimeError) as error:  # RuntimeError: torch's, where it shares the memory
        raise UserError(f'{refusal} ({error}); {others}') from error
    table, pixels = _parts(block, len(dataset))
    with _reader(dataset, where) as read:

        def decode(item: int) -> None:
            index, side = divmod(item, len(SIDES))
            try:
                image = imfrombytes(read(SIDES[side], dataset.paths[index][f'{SIDES[side]}_path']))
            except UNREADABLE:
                return
            if image is not None and image.nbytes == sizes[index, side]:  # it may be another than its list says
                end = ends[index, side]
                pixels[end - image.nbytes : end] = image.reshape(-1)
                table[index, side] = end - image.nbytes, *image.shape[:2]

        with _one_thread_for_each_image():
            in_threads(decode, range(sizes.size), where)
    log.info(f'{name} is in memory after {time.perf_counter() - start:.1f} s.')
    left_out = int((table[:, :, 1] == 0).any(axis=1).sum())
    if left_out:
        log.warning(
            f'{left_out} pairs of {name} are not: damaged, or of another size than listed. They are read from disk '
            'each time.'
        )
    return block


def _sizes(dataset: PairedImageDataset, where: str) -> np.ndarray:
    """Decoded bytes of every image, int64 (count, 2), by lists and headers; 0 if unknown."""
    sizes = np.zeros((len(dataset), len(SIDES)), np.int64)
    if dataset.io_backend_opt['type'] == 'lmdb':
        for side, name in enumerate(SIDES):
            shapes = meta_info_shapes(Path(_root(dataset, name)), where)
            for index, paths in enumerate(dataset.paths):
                height, width, _ = shapes.get(paths[f'{name}_path'], (0, 0, 0))
                sizes[index, side] = 3 * height * width
        return sizes

    def measure(item: int) -> None:
        index, side = divmod(item, len(SIDES))
        try:
            height, width = image_size(Path(dataset.paths[index][f'{SIDES[side]}_path']))
        except UserError:
            return
        sizes[index, side] = 3 * height * width

    in_threads(measure, range(sizes.size), f'{where} (sizes)')
    return sizes


def _root(dataset: PairedImageDataset, side: str) -> str:
    return {'gt': dataset.gt_folder, 'lq': dataset.lq_folder}[side]


@contextmanager
def _reader(dataset: PairedImageDataset, where: str) -> Iterator[Callable[[str, str], bytes | None]]:
    """What reads a file by its side and path. Not the dataset's own client, which is for the process that trains."""
    if dataset.io_backend_opt['type'] != 'lmdb':
        yield lambda side, path: Path(path).read_bytes()
        return
    with ExitStack() as stack:
        roots = {_root(dataset, side) for side in SIDES}  # one LMDB cannot be opened twice
        envs = {root: stack.enter_context(opened_lmdb(Path(root), where)) for root in roots}

        def read(side: str, key: str) -> bytes | None:
            with envs[_root(dataset, side)].begin() as txn:
                return txn.get(key.encode('ascii'))

        yield read


@contextmanager
def _one_thread_for_each_image() -> Iterator[None]:
    """OpenCV's threads would oversubscribe the cores, and forked worker processes lack them."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def is_in_memory(dataset_opt: dict[str, Any]) -> bool:
    """Whether a set's images are to be held in memory."""
    return (dataset_opt.get('io_backend') or {}).get('type') == 'memory'


def file_backend(dataset_opt: dict[str, Any]) -> str | None:
    """What a set's files are, ``disk`` or ``lmdb``: of one that is held in memory its roots tell."""
    if is_in_memory(dataset_opt):
        return 'lmdb' if Path(dataset_opt['dataroot_gt']).suffix == '.lmdb' else 'disk'
    return (dataset_opt.get('io_backend') or {}).get('type')


class MemoryPairs(Dataset):
    """The samples of BasicSR's ``PairedImageDataset``, to the last bit, with the same numbers drawn in the same order.

    BasicSR decodes both images and makes floats of all their pixels, to take a patch of them. Here the patch is taken
    first. A pair that is not in memory or does not fit is left to BasicSR's dataset, so that it fails as it does there.

    Args:
        dataset: BasicSR's, of the same files.
        pixels: its images.
    """

    def __init__(self, dataset: PairedImageDataset, pixels: DecodedPairs) -> None:
        self.dataset = dataset
        self.opt = dataset.opt
        self.paths = dataset.paths
        self.gt_folder, self.lq_folder = dataset.gt_folder, dataset.lq_folder
        self._pixels = pixels

    @property
    def file_client(self) -> Any:
        """BasicSR's; None before a file was read."""
        return self.dataset.file_client

    def __getitem__(self, index: int) -> dict[str, Any]:
        pair = self._pixels[index]
        if pair is None:
            return self.dataset[index]
        (gt, lq), paths, scale = pair, self.paths[index], self.opt['scale']
        if self.opt['phase'] == 'train':
            try:
                gt, lq = paired_random_crop(gt, lq, self.opt['gt_size'], scale, paths['gt_path'])
            except ValueError:
                return self.dataset[index]
            _, turns = augment([], self.opt['use_hflip'], self.opt['use_rot'], return_status=True)  # only draws
            gt, lq = _turned(gt, *turns), _turned(lq, *turns)
        else:
            gt = gt[: lq.shape[0] * scale, : lq.shape[1] * scale]
        return {'lq': self._tensor(lq), 'gt': self._tensor(gt), **paths}

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
