"""Images in a memory-mapped cache file: made once, read by all processes and runs through the page cache.

The cache of a folder or LMDB lies beside it, as ``ROOT.decoded-DIGEST``: a table, then the pixels of all images. What a
teacher gives of them is ``ROOT.taught-DIGEST``. The digest is of what it was made from, so that a cache of other files
is never read.
"""

import errno
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from glob import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from basicsr.utils import get_root_logger, imfrombytes
from filelock import FileLock, Timeout

from facd_basicsr.data.damaged_images import opened_lmdb
from facd_basicsr.data.lmdb_pairs import meta_info_shapes
from facd_basicsr.data.seeded_dataset import UNREADABLE
from facd_basicsr.errors import UserError
from facd_basicsr.files.atomic import PARTIAL, atomic_path
from facd_basicsr.files.images import image_size
from facd_basicsr.files.parallel import in_threads
from facd_basicsr.progress import ProgressBar

CACHE_FORMAT = 1  # of the file; a part of its digest
GB = 10**9
Put = Callable[[int, np.ndarray | None], None]  # an image, or None, at its number


class CacheNotWrittenError(Exception):
    """Why, what is needed and what is free. No OSError, which ``opened_lmdb`` would take for the LMDB's."""


class DecodedImages:
    """The images of a cache file by their number. A process that unpickles them maps the file itself.

    Raises:
        OSError, ValueError: it cannot be mapped, or is not whole.
    """

    def __init__(self, path: Path, count: int) -> None:
        self.path, self._count = path, count
        self._bytes = np.memmap(path, np.uint8, 'r').view(np.ndarray)  # whose slices are made faster than a memmap's
        self._table = self._bytes[: _empty_table(count).nbytes].view(np.int64).reshape(-1, 3)
        if self._table[-1, 0] != self._bytes.size:
            raise ValueError(f'{path}: cut short')

    def __getitem__(self, index: int) -> np.ndarray | None:
        """(H, W, 3), BGR uint8, read-only; None if it could not be decoded."""
        start, height, width = self._table[index].tolist()
        return self._bytes[start : start + 3 * height * width].reshape(height, width, 3) if height else None

    def __reduce__(self) -> tuple[type['DecodedImages'], tuple[Path, int]]:
        return DecodedImages, (self.path, self._count)

    def are_decoded(self) -> np.ndarray:
        """bool (count,)."""
        return self._table[:-1, 1] > 0

    def sizes(self) -> np.ndarray:
        """int64 (count, 2): heights and widths, 0 of those that could not be decoded."""
        return self._table[:-1, 1:]


def decoded_images(root: Path, files: list[str], where: str, hidden: bool = False) -> DecodedImages:
    """Maps the cache of a folder or LMDB. Of all processes that call it, on all nodes, one makes it if there is none.

    Args:
        root: a folder of images or an LMDB, ``*.lmdb``.
        files: paths in the folder, or keys of the LMDB, in the order of their numbers.
        hidden: begins the name of the file with a dot.

    Raises:
        CacheNotWrittenError: the disk is full or read-only, for example.
        UserError: the LMDB cannot be read.
    """
    root = Path(os.path.normpath(Path.cwd() / root))  # a link is kept: there may be no writing beside what it names
    path = root.with_name(f'{"." * hidden}{root.name}.decoded-{_digest(root, files)}')
    with suppress(OSError, ValueError):
        return DecodedImages(path, len(files))
    table = _planned_table(root, files, where)
    # not the dataset's own LMDB, which is for the process that trains
    with opened_lmdb(root, where) if root.suffix == '.lmdb' else nullcontext() as env:

        def fill(put: Put) -> None:
            def decode(index: int) -> None:
                image = None
                with suppress(*UNREADABLE):
                    if env is None:
                        content: bytes | None = Path(files[index]).read_bytes()
                    else:
                        with env.begin() as txn:
                            content = txn.get(files[index].encode('ascii'))
                    image = imfrombytes(content)
                put(index, image)

            threads = cv2.getNumThreads()
            cv2.setNumThreads(1)  # more would oversubscribe the cores, and forked worker processes lack them
            try:
                in_threads(decode, range(len(files)), where)
            finally:
                cv2.setNumThreads(threads)

        return _made(path, table, fill, f'Decoding {len(files)} images of {root}')


def taught_images(
    lq: DecodedImages, teach: Callable[[np.ndarray], np.ndarray], made_by: list[Any], scale: int
) -> DecodedImages:
    """Maps the cache of what a teacher gives of whole LQ images, by their numbers; as :func:`decoded_images` makes it.

    Args:
        teach: (h, w, 3), BGR uint8 -> (h * scale, w * scale, 3), called for one image after the other.
        made_by: what it depends on, for the digest.

    Raises:
        CacheNotWrittenError: the disk is full or read-only, for example.
    """
    stem, _, digest = lq.path.name.rpartition('.decoded-')
    path = lq.path.with_name(f'{stem}.taught-{_hashed([digest, *made_by])}')
    sizes = lq.sizes()
    with suppress(OSError, ValueError):
        return DecodedImages(path, len(sizes))

    def fill(put: Put) -> None:  # in this thread, whose GPU is the process's
        for index in ProgressBar(range(len(sizes)), desc='teacher.cache', unit='image'):
            if (image := lq[index]) is not None:
                put(index, teach(image))

    return _made(path, _laid_out(scale * sizes), fill, f'Running the teacher on {len(sizes)} LQ images')


def _made(path: Path, table: np.ndarray, fill: Callable[[Put], None], what: str) -> DecodedImages:
    """Makes a cache, unless another process does. ``fill`` puts its images."""
    needed, count, stem = int(table[-1, 0]), len(table) - 1, path.name.rpartition('-')[0]
    try:
        with _locked(path.with_name(f'{PARTIAL}{stem}.lock'), stem):
            with suppress(OSError, ValueError):  # another process was faster
                return DecodedImages(path, count)
            for partial in path.parent.glob(f'{PARTIAL}{escape(stem)}-*'):  # of a killed process
                partial.unlink()
            if needed > shutil.disk_usage(path.parent).free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            get_root_logger().info(f'{what} into {needed / GB:.1f} GB of {path}.')
            start = time.monotonic()
            _build(path, table, fill)
            get_root_logger().info(f'{path.name} was made in {time.monotonic() - start:.1f} s.')
            return DecodedImages(path, count)
    except OSError as error:
        free = shutil.disk_usage(path.parent).free
        raise CacheNotWrittenError(
            f'{path.parent}: {error.strerror or error}, {needed / GB:.1f} GB needed for {path.name}, '
            f'{free / GB:.1f} GB free'
        ) from error


def _digest(root: Path, files: list[str]) -> str:
    """Of names, sizes and times of change, and of what else the pixels depend on."""
    is_lmdb = root.suffix == '.lmdb'
    stamps = []
    for source in [root / 'meta_info.txt', root / 'data.mdb'] if is_lmdb else files:
        with suppress(OSError):  # one that is missing cannot be decoded
            found = Path(source).stat()
            stamps.append((os.path.relpath(source, root), found.st_size, found.st_mtime_ns))
    names = files if is_lmdb else [os.path.relpath(file, root) for file in files]
    return _hashed([cv2.__version__, names, stamps])


def _hashed(made_of: list[Any]) -> str:
    return hashlib.sha256(json.dumps([CACHE_FORMAT, *made_of]).encode()).hexdigest()[:8]


def _empty_table(count: int) -> np.ndarray:
    """int64 (count + 1, 3): where an image's pixels begin, height, width; (the end of the file, 0, 0) is the last row.
    A height of 0: there are no pixels."""
    return np.zeros((count + 1, 3), np.int64)


def _planned_table(root: Path, files: list[str], where: str) -> np.ndarray:
    """By lists and headers."""
    sizes = np.zeros((len(files), 2), np.int64)
    if root.suffix == '.lmdb':
        shapes = meta_info_shapes(root, where)
        sizes[:] = [shapes.get(key, (0, 0, 0))[:2] for key in files]
    else:

        def measure(index: int) -> None:
            with suppress(UserError):
                sizes[index] = image_size(Path(files[index]))

        in_threads(measure, range(len(files)), f'{where} (sizes)')
    return _laid_out(sizes)


def _laid_out(sizes: np.ndarray) -> np.ndarray:
    """Of images of these heights and widths, (count, 2)."""
    table = _empty_table(len(sizes))
    table[:-1, 1:] = sizes
    lengths = 3 * table[:, 1] * table[:, 2]
    table[:, 0] = table.nbytes + np.cumsum(lengths) - lengths
    return table


def _build(path: Path, table: np.ndarray, fill: Callable[[Put], None]) -> None:
    turn, planned = threading.Lock(), table.tolist()
    table[:, 1:] = 0
    with atomic_path(path) as partial, partial.open('wb') as file:
        file.truncate(planned[-1][0])

        def write(offset: int, content: np.ndarray) -> None:  # not to a mapping: on a full disk that kills the process
            with turn:
                file.seek(offset)
                file.write(np.ascontiguousarray(content).data)

        def put(index: int, image: np.ndarray | None) -> None:
            offset, height, width = planned[index]
            if image is not None and image.nbytes == 3 * height * width:  # it may be another than its list says
                write(offset, image)
                table[index, 1:] = image.shape[:2]

        fill(put)
        write(0, table)


@contextmanager
def _locked(path: Path, stem: str) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        get_root_logger().info(f'Another process makes {path.parent / stem}-*; waiting for it.')
        lock.acquire()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()
