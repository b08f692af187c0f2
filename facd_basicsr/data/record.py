"""What an output was made of, stored next to it: a finished output is kept, an unfinished one resumed."""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from facd_basicsr.errors import UserError
from facd_basicsr.files.atomic import atomic_write, partial_of

PREPARE_RECORD = 'prepare.json'


def files_of(images: Mapping[str, Path]) -> list[list]:
    """Name, size and time of change of images by key, for a record; a name is the key with the suffix of the file."""
    return [[f'{key}{path.suffix}', path.stat().st_size, path.stat().st_mtime_ns] for key, path in images.items()]


def key_of(name: str) -> str:
    """The key of an image by its name in a record."""
    return name.rpartition('.')[0]


def recorded_keys(path: Path) -> list[str]:
    """The keys of the images that a finished output was made of; none of another."""
    images = (_read(path) or {}).get('images')
    return [key_of(name) for name, *_ in images] if isinstance(images, list) else []


def are_finished(paths: Iterable[Path], record: dict[str, Any]) -> bool:
    """Whether outputs are all there, made by the same settings from the same files.

    Raises:
        UserError: one exists, but of other or unknown settings or files.
    """
    for path in paths:
        if not path.exists():
            return False
        found = _read(path)
        if found == record:
            continue
        if found is None:
            reason = f'without a {PREPARE_RECORD}, so not by this command'
        else:
            reason = 'with other ' + ', '.join(
                key if isinstance(value, list) else f'{key} ({found.get(key)}, now {value})'
                for key, value in record.items()
                if found.get(key) != value
            )
        raise UserError(f'{path}: already exists, made {reason}; delete it, or choose another --out or --name')
    return True


def open_partial(path: Path, record: dict[str, Any], forget: Callable[[Path, Sequence[str]], None]) -> Path:
    """The folder in which an output is built: an earlier one if it was started with the same settings, else a new one.

    Args:
        record: its settings, and in ``images`` the :func:`files_of` what it is made of.
        forget: called with the folder and the names of files that have changed or gone since it was started; removes
            what was made of them.
    """
    partial = partial_of(path)
    begun = _read(partial)
    if partial.exists() and _settings(begun) != _settings(record):
        print(f'{partial}: begun with other settings, so started over', flush=True)
        shutil.rmtree(partial)
        begun = None
    if begun is not None:
        now = record.get('images')
        stale = [image[0] for image in begun['images'] if image not in now] if isinstance(now, list) else []
        if stale:
            forget(partial, stale)
    partial.mkdir(parents=True, exist_ok=True)
    atomic_write(partial / PREPARE_RECORD, json.dumps(record))
    return partial


def _settings(record: dict[str, Any] | None) -> dict[str, Any] | None:
    """A record without the list of files."""
    return record and {key: value for key, value in record.items() if not isinstance(value, list)}


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / PREPARE_RECORD).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return None
