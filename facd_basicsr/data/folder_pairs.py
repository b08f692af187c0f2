"""Training pairs from folders of HR images."""

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from facd_basicsr.data.benchmark_sets import write_set
from facd_basicsr.data.bicubic import METHOD, with_bicubic_lr
from facd_basicsr.data.lmdb_pairs import write_lmdbs
from facd_basicsr.data.record import PREPARE_RECORD, are_finished, files_of, recorded_keys
from facd_basicsr.errors import UserError
from facd_basicsr.files.images import IMAGE_SUFFIXES, image_size, read_bgr

LONGEST_KEY = 200  # an LMDB takes 511 bytes, and a file name 255
LOW_RESOLUTION = re.compile(r'(.*[-_])?l[rq]((bic|x\d|[-_]).*)?|.*bicubic.*', re.IGNORECASE)  # names of folders


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
    ``hold_out`` of the others, evenly spread in the order of their keys, go into a set ``{name}_val`` instead, in the
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
    held_out = recorded_keys(out / f'{name}_val')  # which stay when an unreadable image was removed
    if len(held_out) != hold_out or not images.keys() >= {*held_out}:
        held_out = [sorted(images)[index * len(images) // hold_out] for index in range(hold_out)]
    if held_out:
        write_set({key: images.pop(key) for key in held_out}, out / f'{name}_val', scales, workers)
    paths = {1: out / f'{name}_HR_sub.lmdb', **{s: out / f'{name}_LR_bicubic_X{s}_sub.lmdb' for s in scales}}
    made_of = {'lr': METHOD, 'multiple': multiple, 'images': files_of(images)}
    already = are_finished(paths.values(), {'crop': crop, 'step': step, **made_of})
    sources = {key: partial(_read, path, multiple) for key, path in images.items()}
    count = write_lmdbs(sources, paths, crop, step, made_of, workers)
    print(f'{count} pairs{" already there" * already}: {", ".join(map(str, paths.values()))}')


def _images(folders: Sequence[Path], min_size: int, multiple: int) -> dict[str, Path]:
    """The images by key. What is left out is printed."""
    searched: dict[Path, Path] = {}
    for folder in folders:
        for path in _found_in(folder):
            searched.setdefault(path, folder.resolve())  # one of two folders, of which one is in the other, counts once
    images = keys_of(searched)
    left_out = set()
    for key, path in images.items():
        height, width = image_size(path)
        if min(height, width) < min_size:
            left_out.add(key)
        elif min(height, width) < multiple:
            raise UserError(f'{path}: {width}x{height} pixels; accepted: {multiple} or more both ways (see --min-size)')
    if min_size:
        print(f'{len(left_out)} of {len(images)} images left out: smaller than {min_size} pixels', flush=True)
    return {key: path for key, path in images.items() if key not in left_out}


def _found_in(folder: Path) -> list[Path]:
    """The images of a folder and of those in it, but for LR images and what this command has made."""
    if not folder.is_dir():
        raise UserError(f'{folder}: no such folder')
    root = folder.resolve()
    entries = sorted(_entries_below(root))
    images = [path for path in entries if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    if not images:
        raise UserError(f'{folder}: no images; accepted: {", ".join(sorted(IMAGE_SUFFIXES))}, also in its folders')
    inner = sorted({path.parent.relative_to(root) for path in images})
    for name in (name for parent in inner for name in parent.parts if LOW_RESOLUTION.fullmatch(name)):
        raise UserError(
            f'{folder}: has a folder {name}, of low-resolution images by its name; accepted: folders of HR images '
            'alone, each of them given'
        )
    if len(inner) > 1:
        print(f'{folder}: {len(images)} images, in {len(inner)} folders', flush=True)
    others = sorted({*entries} - {*images})
    if others:
        more = f' and {len(others) - 1} more' if others[1:] else ''
        print(
            f'{folder}: left out: {others[0].relative_to(root)}{more}; accepted: {", ".join(sorted(IMAGE_SUFFIXES))}; '
            'of a folder that is a link, itself as HR_DIR',
            flush=True,
        )
    return images


def _entries_below(folder: Path) -> Iterator[Path]:
    """Files, and links to folders, which may lead in a circle; not what is hidden, or an output of this command."""
    for path in folder.iterdir():
        if path.name.startswith('.'):
            continue
        if path.is_symlink() or not path.is_dir():
            yield path
        elif not (path / PREPARE_RECORD).is_file():
            yield from _entries_below(path)


def keys_of(images: Mapping[Path, Path]) -> dict[str, Path]:
    """Images by the keys that they get in an LMDB: ASCII, without dots, where BasicSR cuts them.

    A key is the image's path in its folder without suffix, ``000/00000001.png`` being ``000_00000001``, as in BasicSR's
    LMDBs. Accents are dropped, and whatever else a key cannot have becomes ``-``. Where that makes one key of several
    images, or a long one, each gets eight digits of its path.

    Args:
        images: each with the folder that was searched.
    """
    plain = {path: _plain_key(path.relative_to(folder)) for path, folder in images.items()}
    counts = Counter(plain.values())
    found = {}
    for path, key in plain.items():
        if counts[key] > 1 or not 0 < len(key) <= LONGEST_KEY:
            digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
            key = f'{key[:LONGEST_KEY]}-{digest}'
        found[key] = path
    return found


def _plain_key(path: Path) -> str:
    letters = unicodedata.normalize('NFKD', '_'.join(path.with_suffix('').parts))
    return re.sub(r'[^ -~]|\.', '-', ''.join(letter for letter in letters if not unicodedata.combining(letter)))


def _read(path: Path, multiple: int, scales: list[int]) -> dict[int, np.ndarray]:
    return with_bicubic_lr(read_bgr(path), scales, multiple)
