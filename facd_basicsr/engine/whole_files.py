"""Files that are there whole or not at all."""

import errno
import hashlib
import io
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

PARTIAL = '.partial_'  # before the name of a file that is being written


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Writes a file under a temporary name, flushes it to the disk and then gives it its name.

    Whenever the process is killed or the machine loses power, ``path`` is what it was before or all of ``content``.

    Raises:
        OSError: with the file's name; nothing of it is left.
    """
    partial = path.with_name(PARTIAL + path.name)
    try:
        with partial.open('wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        number = error.errno or errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """Without this the new name itself may be lost with the machine's power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of file systems that flush no folders
            raise
    finally:
        os.close(descriptor)


def save_whole(content: Any, path: Path) -> str:
    """As ``torch.save``, whole or not at all.

    torch.save itself ends the process when the disk is full, or says no more than ``unexpected pos``.

    Returns:
        The file's SHA-256.

    Raises:
        OSError: as :func:`write_whole`.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_whole(path, buffer.getbuffer())
    return hashlib.sha256(buffer.getbuffer()).hexdigest()


@contextmanager
def written_together(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Temporary names for files of one folder, which get their own when all of them are written and checked.

    After an error nothing of them is left.

    Raises:
        OSError: they can not be flushed to the disk or renamed.
    """
    partials = [path.with_name(PARTIAL + path.name) for path in paths]
    try:
        yield partials
        for partial in partials:
            with partial.open('rb+') as file:
                os.fsync(file.fileno())
        for partial, path in zip(partials, paths):
            partial.replace(path)
    finally:
        for partial in partials:
            partial.unlink(missing_ok=True)
    _flush_folder(paths[0].parent)


def check_whole(path: Path) -> None:
    """Compares every record of a file by ``torch.save`` with its checksum; ``torch.load`` does not.

    Raises:
        OSError, zipfile.BadZipFile: it can't be read, or is cut short or altered.
    """
    with zipfile.ZipFile(path) as file:
        damaged = file.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f'the checksum of {damaged} differs')


def remove_partial(folder: Path) -> None:
    """Removes what a killed process left unfinished."""
    for path in folder.glob(f'{PARTIAL}*'):
        path.unlink()
