"""Whether images and LMDBs are whole: every byte is looked at, which the checks at the start of training do not do."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import lmdb
from PIL import Image

from facd_basicsr.data.images import DAMAGED, damage_named
from facd_basicsr.data.lmdb_pairs import DATA_PAGE, meta_info_shapes, png_shape
from facd_basicsr.data.threads import in_threads
from facd_basicsr.errors import UserError


def check_files(paths: Sequence[Path], where: str) -> int:
    """Reads image files whole: PNG by the checksum of every chunk, others by decoding them.

    Args:
        where: the option key that names their folder.

    Returns:
        Their number.

    Raises:
        UserError: naming the first that is missing, empty, damaged or no image.
    """

    def check(path: Path) -> None:
        try:
            with damage_named(path), Image.open(path) as image:
                read_whole(image)
        except UserError as error:
            raise UserError(f'{where}: {error}') from error

    return in_threads(check, paths, where)


def check_lmdb(path: Path, where: str) -> int:
    """Reads an LMDB whole: every key of meta_info.txt is there, an undamaged PNG of the size that it names.

    Other keys do not count, since BasicSR does not read them.

    Args:
        where: the option key that names the LMDB.

    Returns:
        The number of its images.

    Raises:
        UserError: naming the LMDB and the first key that is missing, damaged or of another size.
    """
    shapes = meta_info_shapes(path, where)
    with opened_lmdb(path, where) as env:
        return _check_images(env, path, where, shapes)


@contextmanager
def opened_lmdb(path: Path, where: str) -> Iterator[lmdb.Environment]:
    """An LMDB to read from, of which no page is missing: to read one that is would end the process by a signal.

    Args:
        where: the option key that names the LMDB.

    Raises:
        UserError: it can't be opened, or its file is shorter than its own count of pages.
    """
    try:
        with lmdb.open(str(path), readonly=True, lock=False, readahead=False, max_readers=4096) as env:
            if (path / 'data.mdb').stat().st_size < (env.info()['last_pgno'] + 1) * env.stat()['psize']:
                raise UserError(f'{where}: {path}/data.mdb is cut short; {DATA_PAGE}')
            yield env
    except (OSError, lmdb.Error) as error:
        raise UserError(f'{where}: {path}: {error}; {DATA_PAGE}') from error


def _check_images(env: lmdb.Environment, path: Path, where: str, shapes: dict[str, tuple[int, int, int]]) -> int:
    def check(key: str) -> None:
        with env.begin() as txn:
            png = txn.get(key.encode('utf-8'))
        if png is None:
            raise UserError(f'{where}: {path} lacks {key}, which its meta_info.txt lists')
        try:
            shape = png_shape(png)
            with Image.open(io.BytesIO(png)) as image:
                read_whole(image)
        except DAMAGED as error:
            raise UserError(f'{where}: {path}: {key} is damaged ({" ".join(str(error).split())})') from error
        if shape != shapes[key]:
            raise UserError(f'{where}: {path}: {key} is {shape}, but its meta_info.txt says {shapes[key]}')

    return in_threads(check, list(shapes), where)


def read_whole(image: Image.Image) -> None:
    """Reads an image to its last byte: a PNG by the checksum of every chunk, others by decoding them."""
    if image.format == 'PNG':
        image.verify()
    else:
        image.load()
