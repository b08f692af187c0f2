"""Training pairs from folders of HR images."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from facd_basicsr.data.benchmark_sets import write_set
from facd_basicsr.data.bicubic import METHOD, with_bicubic_lr
from facd_basicsr.data.lmdb_pairs import write_lmdbs
from facd_basicsr.data.record import are_finished, files_of
from facd_basicsr.errors import UserError
from facd_basicsr.files.images import image_size, images_in, read_bgr


def prepare_folders(
    folders: Sequence[Path],
    scales: Sequence[int],
    out: Path,
    name: str,
    crop: int,
    step: int,
    min_size: int,
    workers: int,
    hold_out: int = 0,
) -> None:
    """Writes ``{name}_HR_sub.lmdb`` and ``{name}_LR_bicubic_X{scale}_sub.lmdb`` into ``out``.

    HR images are cropped to multiples of all scales, and those whose height or width is below ``min_size`` left out.
    ``hold_out`` of the others, evenly spread in the order of their names, go into a set ``{name}_val`` instead, in the
    layout of the benchmark sets.

    Raises:
        UserError: an input is missing or no image, another output exists, or sizes do not fit the scales.
    """
    if not name or '/' in name or name.startswith('.'):
        raise UserError(f'--name: {name!r}; accepted: the first word of a file name')
    for option, value in (('--crop', crop), ('--step', step)):
        if value < 1 or any(value % scale for scale in scales):
            raise UserError(f'{option}: {value}; accepted: a multiple of every scale')
    multiple = int(np.lcm.reduce(scales))
    images = _images(folders, min_size, multiple)
    if hold_out and hold_out >= len(images):
        raise UserError(f'--hold-out: {hold_out} of {len(images)} images; accepted: fewer than there are')
    held_out = [sorted(images)[index * len(images) // hold_out] for index in range(hold_out)]
    if held_out:
        write_set([images.pop(key) for key in held_out], out / f'{name}_val', scales, workers)
    paths = {1: out / f'{name}_HR_sub.lmdb', **{s: out / f'{name}_LR_bicubic_X{s}_sub.lmdb' for s in scales}}
    made_of = {'lr': METHOD, 'multiple': multiple, 'images': files_of(list(images.values()))}
    already = are_finished(paths.values(), {'crop': crop, 'step': step, **made_of})
    sources = {key: partial(_read, path, multiple) for key, path in images.items()}
    count = write_lmdbs(sources, paths, crop, step, made_of, workers)
    print(f'{count} pairs{" already there" * already}: {", ".join(map(str, paths.values()))}')


def _images(folders: Sequence[Path], min_size: int, multiple: int) -> dict[str, Path]:
    """The images by key. Those smaller than ``min_size`` are left out, and their number is printed."""
    found: dict[str, Path] = {}
    left_out = set()
    for path in [path for folder in folders for path in images_in(folder)]:
        key = path.stem
        if not key.isascii() or '.' in key:  # LMDB keys are ASCII, and BasicSR cuts them at the first dot
            raise UserError(f'{path}: accepted: an ASCII file name without further dots')
        if key in found:
            raise UserError(f'{path} and {found[key]} have the same name; accepted: a name for each image')
        found[key] = path
        height, width = image_size(path)
        if min(height, width) < min_size:
            left_out.add(key)
        elif min(height, width) < multiple:
            raise UserError(f'{path}: {width}x{height} pixels; accepted: {multiple} or more both ways (see --min-size)')
    if min_size:
        print(f'{len(left_out)} of {len(found)} images left out: smaller than {min_size} pixels', flush=True)
    return {key: path for key, path in found.items() if key not in left_out}


def _read(path: Path, multiple: int, scales: list[int]) -> dict[int, np.ndarray]:
    return with_bicubic_lr(read_bgr(path), scales, multiple)
