"""Atomic writes: a file is complete under its name or not there, whenever the process is killed."""

import errno
import io
import os
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from facd_basicsr.errors import UserError, reraise

PARTIAL = '.partial_'  # before the name of a file or folder that is being written


def partial_of(path: Path) -> Path:
    """The temporary name of a file or folder that is being written."""
    return path.with_name(PARTIAL + path.name)


def make_folder_of(path: Path, where: str) -> None:
    """Makes the folder of a file that is to be written, and those above it, and tries to write there: networks may run
    for minutes before the file does.

    Raises:
        UserError: either fails.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(
            f'{where}: {path} cannot be written ({error.strerror}); accepted: a file in a writable folder'
        ) from error


def atomic_write(path: Path, content: str | bytes | memoryview) -> None:
    """Writes a file, text as UTF-8, under a temporary name, flushes it to the disk and renames it.

    Whenever the process is killed or the machine loses power, ``path`` is what it was before or all of ``content``.

    Raises:
        OSError: with the file's name; nothing of it is left.
    """
    with reraise(OSError, lambda error: named(error, path)), atomic_path(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """As :func:`atomic_write`, for what writes the file itself: gives the temporary name."""
    with atomic_paths([path]) as (partial,):
        yield partial


@contextmanager
def atomic_paths(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Temporary names for files of one folder, which are renamed when all of them are written and checked.

    Those that the body takes out of the list do not get theirs. After an error nothing of them is left.

    Raises:
        OSError: they cannot be flushed to the disk or renamed.
    """
    targets = {partial_of(path): path for path in paths}
    partials = list(targets)
    try:
        yield partials
        for partial in partials:
            with partial.open('rb+') as file:
                os.fsync(file.fileno())
        for partial in partials:
            partial.replace(targets[partial])
    finally:
        for partial in targets:
            partial.unlink(missing_ok=True)
    fsync_directory(paths[0].parent)


def check_creatable(folder: Path) -> None:
    """Refuses, before anything is done, a folder that cannot be created or moved aside.

    Raises:
        UserError: naming the folder above that is not writable.
    """
    parent = next(parent for parent in folder.parents if parent.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise UserError(
            f'cannot create {folder}: {parent} is not a writable directory; accepted: a checkout of your own, where '
            'results go, or the installed package, which writes to the working directory'
        )


def write_partial(path: Path, parts: Iterable[bytes | memoryview]) -> Path:
    """Writes a file in parts, all of it on the disk, under the temporary name that it returns.

    Raises:
        OSError: with the file's name; nothing of it is left, as after any error of what makes the parts.
    """
    partial = partial_of(path)
    try:
        with reraise(OSError, lambda error: named(error, path)), partial.open('wb') as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return partial


def rename_into_place(partial: Path, path: Path) -> None:
    """Gives a file of :func:`write_partial` its name.

    Raises:
        OSError: with the file's name; nothing of ``partial`` is left.
    """
    try:
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise named(error, path) from error
    fsync_directory(path.parent)


def named(error: OSError, path: Path) -> OSError:
    """The error with the file's name, which errors of writing lack."""
    number = error.errno or errno.EIO
    return OSError(number, os.strerror(number), str(path))


def fsync_directory(folder: Path) -> None:
    """Flushes a folder to the disk: without it a new name may be lost when the machine loses power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of file systems that flush no folders
            raise
    finally:
        os.close(descriptor)


def atomic_torch_save(content: Any, path: Path) -> None:
    """As ``torch.save``, atomically.

    torch.save itself ends the process when the disk is full, or says no more than ``unexpected pos``.

    Raises:
        OSError: as :func:`atomic_write`.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    atomic_write(path, buffer.getbuffer())


def verify_checksums(path: Path) -> None:
    """Compares every record of a file by ``torch.save`` with its checksum; ``torch.load`` does not.

    Raises:
        OSError, zipfile.BadZipFile: it cannot be read, or is cut short or altered.
    """
    with zipfile.ZipFile(path) as file:
        damaged = file.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f'the checksum of {damaged} differs')


def remove_unfinished(folder: Path) -> None:
    """Removes the temporary files of a killed process."""
    for path in folder.glob(f'{PARTIAL}*'):
        path.unlink()
