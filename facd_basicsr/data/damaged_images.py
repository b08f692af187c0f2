"""Damaged images: finding them by reading every byte, naming them, and skipping them in training."""

import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
from PIL import Image, UnidentifiedImageError

from facd_basicsr.data.lmdb_pairs import DATA_PAGE, meta_info_shapes, png_shape
from facd_basicsr.errors import UserError, locating, one_line
from facd_basicsr.files.images import DAMAGED, reraise_damaged
from facd_basicsr.files.parallel import in_threads
from facd_basicsr.runtime.processes import Ranks


def check_files(paths: Sequence[Path], where: str) -> int:
    """Reads image files completely, PNG by the checksum of every chunk, others by decoding them; returns their number.

    Raises:
        UserError: naming the first that is missing, empty, damaged or no image.
    """

    def check(path: Path) -> None:
        with locating(where), reraise_damaged(path), Image.open(path) as image:
            read_completely(image)

    return in_threads(check, paths, where)


def check_lmdb(path: Path, where: str) -> int:
    """Reads an LMDB completely: every key of meta_info.txt exists and is an undamaged PNG of the size that it names.

    Returns the number of its images; other keys do not count, since BasicSR does not read them.

    Raises:
        UserError: naming the LMDB and the first key that is missing, damaged or of another size.
    """
    shapes = meta_info_shapes(path, where)

    def check(key: str) -> None:
        with env.begin() as txn:
            png = txn.get(key.encode('utf-8'))
        if png is None:
            raise UserError(f'{where}: {path} lacks {key}, which its meta_info.txt lists')
        try:
            shape = png_shape(png)
            with Image.open(io.BytesIO(png)) as image:
                read_completely(image)
        except DAMAGED as error:
            raise UserError(f'{where}: {path}: {key} is damaged ({one_line(error)})') from error
        if shape != shapes[key]:
            raise UserError(f'{where}: {path}: {key} is {shape}, but its meta_info.txt says {shapes[key]}')

    with opened_lmdb(path, where) as env:
        return in_threads(check, list(shapes), where)


@contextmanager
def opened_lmdb(path: Path, where: str) -> Iterator[lmdb.Environment]:
    """Opens an LMDB for reading, after checking its length: reading a missing page would kill the process (SIGBUS).

    Raises:
        UserError: it cannot be opened, or its file is shorter than its own count of pages.
    """
    try:
        with lmdb.open(str(path), readonly=True, lock=False, readahead=False, max_readers=4096) as env:
            if (path / 'data.mdb').stat().st_size < (env.info()['last_pgno'] + 1) * env.stat()['psize']:
                raise UserError(f'{where}: {path}/data.mdb is cut short; {DATA_PAGE}')
            yield env
    except (OSError, lmdb.Error) as error:
        raise UserError(f'{where}: {path}: {error}; {DATA_PAGE}') from error


def read_completely(image: Image.Image) -> None:
    """Reads an image to its last byte: a PNG by the checksum of every chunk, others by decoding them."""
    if image.format == 'PNG':
        image.verify()
    else:
        image.load()


def describe_damage(dataset: Any, index: int, error: Exception) -> str:
    """The file of a sample that is damaged and what is wrong with it, found by reading its files once more.

    BasicSR's datasets say ``'NoneType' object has no attribute 'astype'``.

    Args:
        dataset: with ``paths`` and ``file_client``, as BasicSR's; of others only the index is known.

    Raises:
        UserError: the LMDB or folder itself cannot be read.
        AttributeError, TypeError: the error itself, where all files are intact: a bug in the dataset's code.
    """
    reason = one_line(error)
    if not (hasattr(dataset, 'paths') and hasattr(dataset, 'file_client')):
        if isinstance(error, (AttributeError, TypeError)):
            raise error
        return f'image {index} of {type(dataset).__name__}: {reason}'
    entry = dataset.paths[index]
    if dataset.file_client is None:
        raise UserError(f'datasets: {reason}; datasets/README.md describes the layout') from error
    paths = entry if isinstance(entry, dict) else {'lq_path' if 'dataroot_lq' in dataset.opt else 'gt_path': entry}
    for key, path in sorted(paths.items()):
        client = key.removesuffix('_path')
        try:
            content = dataset.file_client.get(path, client)
            if content is None:
                return f'{_name(dataset, client, path)}: missing'
            with Image.open(io.BytesIO(content)) as image:
                read_completely(image)
        except DAMAGED as damage:  # of which UnidentifiedImageError names a memory address
            found = 'of no known format' if isinstance(damage, UnidentifiedImageError) else one_line(damage)
            return f'{_name(dataset, client, path)}: not a readable image ({found})'
    if isinstance(error, (AttributeError, TypeError)):
        raise error
    key, path = min(paths.items())
    return f'{_name(dataset, key.removesuffix("_path"), path)}: {reason}'


def _name(dataset: Any, client: str, path: str) -> str:
    """A file's path, or that of the LMDB and the key in it."""
    return f'{getattr(dataset, f"{client}_folder")}: {path}' if dataset.file_client.backend == 'lmdb' else str(path)


class DamagedImages:
    """Ends the run at the first damaged image, or counts them.

    Args:
        skip: ``datasets.train.skip_damaged``.
        ranks: whose findings are reported together.
        warn: called once for each file.
    """

    def __init__(self, skip: bool, ranks: Ranks, warn: Callable[[str], None]) -> None:
        self._skip = skip
        self._ranks = ranks
        self._warn = warn
        self._found: Counter[str] = Counter()  # samples by complaint, of this rank
        self._known: set[str] = set()  # reported before

    def look(self, complaints: Sequence[str]) -> None:
        """To be given the ``damaged`` of every batch (:class:`facd_basicsr.data.seeded_dataset.SeededDataset`).

        Raises:
            UserError: naming a damaged file, without ``skip``.
        """
        for complaint in filter(None, '\n'.join(complaints).splitlines()):
            if not self._skip:
                raise UserError(
                    f'datasets.train: {complaint}; accepted: whole images (facd check reads every file), or '
                    'datasets.train.skip_damaged: true, which takes another image in the place of a damaged one'
                )
            self._found[complaint] += 1

    def report(self) -> None:
        """Warns of files that are new since the last report. To be called by all ranks."""
        if not self._skip:
            return
        total = self._total()
        for complaint in sorted(total.keys() - self._known):
            self._warn(
                f'datasets.train: {complaint}; another image takes its place ({len(total)} damaged, in '
                f'{sum(total.values())} samples so far).'
            )
        self._known |= total.keys()

    def end(self) -> None:
        """Reports what is new and how often each image was replaced. To be called by all ranks."""
        self.report()
        if self._known:
            total = self._total()
            counts = ', '.join(f'{complaint.split(": ")[0]} {samples}' for complaint, samples in sorted(total.items()))
            self._warn(f'Damaged images, and in how many samples another took their place: {counts}.')

    def _total(self) -> Counter[str]:
        """Samples by complaint, of all ranks."""
        return sum(self._ranks.gather(self._found), Counter())
