"""Command: training pairs in LMDB from folders of high-resolution images.

    python -m facd_basicsr.tools.prepare datasets/DIV2K/DIV2K_train_HR --scale 2 3 4

writes ``DIV2K_train_HR_sub.lmdb`` and ``DIV2K_train_LR_bicubic_X{2,3,4}_sub.lmdb`` beside the folder, in BasicSR's
format: PNG sub-images and a meta_info.txt.
"""

import argparse
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from basicsr.data.transforms import mod_crop
from basicsr.utils.lmdb_util import LmdbMaker
from basicsr.utils.matlab_functions import imresize
from tqdm import tqdm

from facd_basicsr.errors import UserError, run_command
from facd_basicsr.options.paths import IMAGE_SUFFIXES


def bicubic_lr(hr: np.ndarray, scale: int) -> np.ndarray:
    """MATLAB's antialiased bicubic downscaling: (H, W, C) uint8 -> (H / scale, W / scale, C) uint8.

    H and W must be multiples of ``scale``.
    """
    lr = imresize(hr.astype(np.float32) / 255, 1 / scale)
    return (lr * 255).round().clip(0, 255).astype(np.uint8)


def sub_images(size: int, crop: int, step: int) -> list[tuple[int, int]]:
    """Start and end along one axis of overlapping crops that cover it, the last one flush with the end."""
    if size <= crop:
        return [(0, size)]
    starts = list(range(0, size - crop + 1, step))
    if starts[-1] != size - crop:
        starts.append(size - crop)
    return [(start, start + crop) for start in starts]


def write_lmdbs(
    images: Iterable[tuple[str, np.ndarray]], hr_path: Path, lr_paths: dict[int, Path], crop: int, step: int
) -> int:
    """Writes aligned sub-images of HR images and their bicubic LR to LMDBs, under temporary names until all is done.

    Args:
        images: (key, BGR uint8 (H, W, 3)) of each HR image.
        hr_path: LMDB of HR sub-images, ``*.lmdb``.
        lr_paths: LMDB of LR sub-images for each scale.
        crop: height and width of an HR sub-image, a multiple of every scale; smaller images are kept whole.
        step: distance between HR sub-images, a multiple of every scale.

    Returns:
        The number of pairs written.
    """
    paths = {1: hr_path, **lr_paths}
    partial = {scale: path.with_name(f'.partial_{path.name}') for scale, path in paths.items()}
    for path in partial.values():
        shutil.rmtree(path, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
    makers = {scale: LmdbMaker(str(path)) for scale, path in partial.items()}
    try:
        count = sum(_put(makers, key, image, crop, step) for key, image in images)
        for maker in makers.values():
            maker.close()
        if count == 0:
            raise UserError('no image is left to write; accepted: at least one (see --min-size)')
        for scale, path in paths.items():
            partial[scale].rename(path)
    finally:
        for path in partial.values():
            shutil.rmtree(path, ignore_errors=True)
    return count


def _put(makers: dict[int, LmdbMaker], key: str, image: np.ndarray, crop: int, step: int) -> int:
    """Adds an image's sub-images to the LMDB of every scale, 1 for HR. Returns their number."""
    multiple = int(np.lcm.reduce(list(makers)))
    hr = mod_crop(image, multiple)
    if 0 in hr.shape:
        raise UserError(f'{key}: {image.shape[1]}x{image.shape[0]} pixels; accepted: at least {multiple} both ways')
    versions = {scale: hr if scale == 1 else bicubic_lr(hr, scale) for scale in makers}
    boxes = [
        (top, bottom, left, right)
        for top, bottom in sub_images(hr.shape[0], crop, step)
        for left, right in sub_images(hr.shape[1], crop, step)
    ]
    for index, box in enumerate(boxes, start=1):
        for scale, maker in makers.items():
            top, bottom, left, right = (edge // scale for edge in box)
            part = np.ascontiguousarray(versions[scale][top:bottom, left:right])
            png = cv2.imencode('.png', part, [cv2.IMWRITE_PNG_COMPRESSION, maker.compress_level])[1]
            maker.put(png.tobytes(), f'{key}_s{index:03d}', part.shape)
    return len(boxes)


def read_images(folders: Sequence[Path], min_size: int) -> Iterator[tuple[str, np.ndarray]]:
    """(key, BGR uint8 image) of the images in ``folders``, gray ones as three equal channels, with progress.

    Images whose height or width is less than ``min_size`` are left out, and their number is printed.

    Raises:
        UserError: a folder has no image, a file can't be decoded, or two files have the same key.
    """
    paths = [path for folder in folders for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES]
    if not paths:
        raise UserError(f'{", ".join(map(str, folders))}: no images; accepted: {", ".join(sorted(IMAGE_SUFFIXES))}')
    seen: dict[str, Path] = {}
    left_out = 0
    for path in tqdm(paths, unit='image'):
        key = path.stem
        if not key.isascii() or '.' in key:  # LMDB keys are ASCII, and BasicSR cuts them at the first dot
            raise UserError(f'{path}: accepted: an ASCII file name without further dots')
        if key in seen:
            raise UserError(f'{path} and {seen[key]} have the same name; accepted: a name for each image')
        seen[key] = path
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise UserError(f'{path}: not a readable image')
        if min(image.shape[:2]) < min_size:
            left_out += 1
        else:
            yield key, image
    if min_size:
        print(f'{left_out} of {len(paths)} images left out: smaller than {min_size} pixels', flush=True)


def prepare(
    folders: Sequence[Path], scales: Sequence[int], out: Path, name: str, crop: int, step: int, min_size: int
) -> None:
    """Writes ``{name}_HR_sub.lmdb`` and ``{name}_LR_bicubic_X{scale}_sub.lmdb`` into ``out``.

    Raises:
        UserError: an input is missing, an output is there already, or sizes do not fit the scales.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f'{folder}: no such folder')
    if not name or '/' in name or name.startswith('.'):
        raise UserError(f'--name: {name!r}; accepted: the first word of a file name')
    for key, value in (('--crop', crop), ('--step', step)):
        if value < 1 or any(value % scale for scale in scales):
            raise UserError(f'{key}: {value}; accepted: a multiple of every scale')
    hr_path = out / f'{name}_HR_sub.lmdb'
    lr_paths = {scale: out / f'{name}_LR_bicubic_X{scale}_sub.lmdb' for scale in scales}
    for path in (hr_path, *lr_paths.values()):
        if path.exists():
            raise UserError(f'{path}: already there; delete it to make it again')
    count = write_lmdbs(read_images(folders, min_size), hr_path, lr_paths, crop, step)
    print(f'{count} pairs: {hr_path}, {", ".join(map(str, lr_paths.values()))}')


def main() -> None:
    parser = argparse.ArgumentParser(prog='python -m facd_basicsr.tools.prepare', description=__doc__.splitlines()[0])
    parser.add_argument('folders', nargs='+', type=Path, help='folders of high-resolution images')
    parser.add_argument('--scale', nargs='+', type=int, choices=[2, 3, 4], required=True)
    parser.add_argument('--out', type=Path, help='where the LMDBs go; default: beside the first folder')
    parser.add_argument('--name', help="their first word; default: the first folder's name without _HR")
    parser.add_argument('--crop', type=int, default=480, help='sub-image size in HR pixels (default 480)')
    parser.add_argument('--step', type=int, help='distance between sub-images (default: half of --crop)')
    parser.add_argument('--min-size', type=int, default=0, help='leave out images smaller than this (default: none)')
    args = parser.parse_args()
    first = args.folders[0]
    out = args.out or first.parent
    name = args.name or first.resolve().name.removesuffix('_HR')
    run_command(
        lambda: prepare(args.folders, args.scale, out, name, args.crop, args.step or args.crop // 2, args.min_size)
    )


if __name__ == '__main__':
    main()
