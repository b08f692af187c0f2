"""Aligned sub-images of HR images and their LR in LMDBs, as BasicSR's PairedImageDataset reads them.

BasicSR's LmdbMaker cannot continue what was interrupted, hence the ``lmdb`` module itself here: one transaction per
source image and LMDB, so an image is in an LMDB with all its sub-images or not at all.
"""

import itertools
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import lmdb
import numpy as np
from filelock import FileLock, Timeout

from facd_basicsr.data.record import are_finished, key_of, open_partial
from facd_basicsr.errors import UserError
from facd_basicsr.files.atomic import atomic_write, partial_of
from facd_basicsr.files.parallel import in_processes
from facd_basicsr.progress import ProgressBar

# Reads one source image: the scales that are asked for -> {scale: BGR uint8 (H / scale, W / scale, 3)}, 1 for HR. It
# is called in other processes, so it must be picklable.
Source = Callable[[list[int]], dict[int, np.ndarray]]

HEADER = 26  # bytes of a PNG up to its color type
COMPRESSION = 1  # of PNG, BasicSR's default: larger files that decode faster
DATA_PAGE = 'datasets/README.md says how to prepare it'
MAP_SIZE = 2**30  # bytes an LMDB may hold to begin with; it is doubled when that is not enough


def write_lmdbs(
    sources: Mapping[str, Source],
    paths: Mapping[int, Path],
    crop: int,
    step: int,
    made_of: Mapping[str, Any] | None = None,
    workers: int = 1,
) -> int:
    """Writes the sub-images of every source, each LMDB under a temporary name until it is complete.

    What an earlier, interrupted call wrote is continued if it had the same settings, without what it made of files that
    have changed since; an LMDB that exists and had the same settings and files is kept.

    Args:
        sources: by key; sub-images get the keys ``{key}_s001``, ``{key}_s002``, ...
        paths: the LMDB of each scale, ``*.lmdb``, 1 for HR.
        crop: height and width of an HR sub-image, a multiple of every scale; smaller images are kept whole.
        step: distance between HR sub-images, a multiple of every scale.
        made_of: whatever else the content depends on, JSON-serializable.
        workers: processes that read and encode; 1: this one alone. The bytes do not depend on it.

    Returns:
        The number of pairs.

    Raises:
        UserError: a source cannot be read, another LMDB exists under that name, or another process is writing it.
    """
    if not sources:
        raise UserError('no image is left to write; accepted: at least one (see --min-size)')
    record = {'crop': crop, 'step': step, **(made_of or {})}
    if not are_finished(paths.values(), record):
        for path in paths.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        with _exclusive(paths[min(paths)]):
            missing = [scale for scale in sorted(paths, reverse=True) if not are_finished([paths[scale]], record)]
            folders = {scale: open_partial(paths[scale], record, _forget) for scale in missing}
            _fill(sources, folders, crop, step, workers)
            for scale in missing:  # HR is the last
                folders[scale].rename(paths[scale])
    return len((paths[min(paths)] / 'meta_info.txt').read_text(encoding='utf-8').splitlines())


def png_shape(png: bytes) -> tuple[int, int, int]:
    """(height, width, channels) by a PNG's header.

    Raises:
        ValueError: these bytes are no PNG.
    """
    if png[:8] != b'\x89PNG\r\n\x1a\n' or len(png) < HEADER:
        raise ValueError('no PNG')
    width, height, _, color = struct.unpack('>IIBB', png[16:26])
    channels = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # 3: a palette of colors
    return height, width, channels.get(color, 0)


def meta_info_shapes(path: Path, where: str) -> dict[str, tuple[int, int, int]]:
    """{key: (height, width, channels)} by an LMDB's meta_info.txt, whose lines are ``key.png (h,w,c) compression``.

    Raises:
        UserError: it cannot be read, is empty or not in BasicSR's format.
    """
    try:
        lines = (path / 'meta_info.txt').read_text(encoding='utf-8-sig').split('\n')
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'{where}: {path}/meta_info.txt: {error}; {DATA_PAGE}') from error
    shapes = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        match = re.fullmatch(r'(.+)\.png \((\d+),(\d+),(\d+)\) \d+', line.strip())
        if match is None:
            raise UserError(
                f"{where}: {path}/meta_info.txt, line {number} is not in BasicSR's format ({line!r}); accepted: such "
                f"as '0001_s001.png (480,480,3) 1'; {DATA_PAGE}"
            )
        shapes[match[1]] = (int(match[2]), int(match[3]), int(match[4]))
    if not shapes:
        raise UserError(f'{where}: {path}/meta_info.txt is empty, so it is not a finished LMDB; {DATA_PAGE}')
    return shapes


def _fill(sources: Mapping[str, Source], folders: Mapping[int, Path], crop: int, step: int, workers: int) -> None:
    """Adds what is missing to unfinished LMDBs, then their meta_info.txt."""
    with ExitStack() as stack:
        envs = {scale: lmdb.open(str(folder), map_size=MAP_SIZE) for scale, folder in folders.items()}
        for env in envs.values():
            stack.callback(env.close)
        todo = {key: source for key, source in sources.items() if not all(_holds(env, key) for env in envs.values())}
        calls = {key: partial(_encode, source, list(envs), crop, step) for key, source in todo.items()}
        results = stack.enter_context(in_processes(calls, workers))
        for key, parts in ProgressBar(
            results, total=len(sources), initial=len(sources) - len(todo), unit='image', disable=len(sources) < 2
        ):
            for scale, env in envs.items():
                _put(env, key, parts[scale])
        counts = {scale: _write_meta_info(env, folders[scale]) for scale, env in envs.items()}
        if len(set(counts.values())) > 1:
            found = ', '.join(f'{count} in {folders[scale]}' for scale, count in counts.items())
            raise UserError(f'sub-images do not pair: {found}; delete these to start over')


def _encode(source: Source, scales: list[int], crop: int, step: int) -> dict[int, list[bytes]]:
    """The PNGs of a source's sub-images by scale."""
    versions = source(scales)
    scale, image = next(iter(versions.items()))
    height, width = (length * scale for length in image.shape[:2])
    parts: dict[int, list[bytes]] = {}
    for scale, image in versions.items():
        parts[scale] = []
        for box in boxes(height, width, crop, step):
            top, bottom, left, right = (edge // scale for edge in box)
            part = np.ascontiguousarray(image[top:bottom, left:right])
            parts[scale].append(cv2.imencode('.png', part, [cv2.IMWRITE_PNG_COMPRESSION, COMPRESSION])[1].tobytes())
    return parts


def _holds(env: lmdb.Environment, key: str) -> bool:
    with env.begin() as txn:
        return txn.get(f'{key}_s001'.encode('ascii')) is not None


def _write(env: lmdb.Environment, change: Callable[[lmdb.Transaction], None]) -> None:
    """One transaction, in a map that grows until it has room for it: deleting takes pages too."""
    while True:
        try:
            with env.begin(write=True) as txn:
                change(txn)
            return
        except lmdb.MapFullError:
            env.set_mapsize(2 * env.info()['map_size'])


def _put(env: lmdb.Environment, key: str, parts: list[bytes]) -> None:
    def put(txn: lmdb.Transaction) -> None:
        for index, png in enumerate(parts, start=1):
            txn.put(f'{key}_s{index:03d}'.encode('ascii'), png)

    _write(env, put)


def _forget(folder: Path, images: Sequence[str]) -> None:
    """Removes what was made of images from an unfinished LMDB."""

    def delete(txn: lmdb.Transaction) -> None:
        for image in images:
            index = itertools.count(1)
            while txn.delete(f'{key_of(image)}_s{next(index):03d}'.encode('ascii')):
                pass

    with lmdb.open(str(folder), map_size=MAP_SIZE) as env:
        _write(env, delete)


def _write_meta_info(env: lmdb.Environment, folder: Path) -> int:
    """Writes BasicSR's list of an LMDB's images, ``0001_s001.png (480,480,3) 1``. Returns their number."""
    with env.begin(buffers=True) as txn:  # without buffers each PNG would be read whole
        shapes = {bytes(key).decode('ascii'): png_shape(bytes(png[:HEADER])) for key, png in txn.cursor()}
    lines = [f'{key}.png ({h},{w},{c}) {COMPRESSION}\n' for key, (h, w, c) in shapes.items()]
    atomic_write(folder / 'meta_info.txt', ''.join(lines))
    env.sync(True)
    return len(lines)


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Keeps a second process from building the same output."""
    lock = partial_of(path).with_suffix('.lock')
    try:
        with FileLock(lock, timeout=0):
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
    except Timeout as error:
        raise UserError(f'{path}: another process is writing it') from error


def sub_images(size: int, crop: int, step: int) -> list[tuple[int, int]]:
    """Start and end along one axis of overlapping crops that cover it, the last one flush with the end."""
    starts = [*range(0, size - crop, step), max(0, size - crop)]
    return [(start, min(start + crop, size)) for start in starts]


def boxes(height: int, width: int, crop: int, step: int) -> list[tuple[int, int, int, int]]:
    """Top, bottom, left, right of an image's sub-images, row by row, which is how BasicSR numbers them."""
    rows, columns = (sub_images(size, crop, step) for size in (height, width))
    return [(*row, *column) for row, column in itertools.product(rows, columns)]
