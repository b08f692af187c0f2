"""What an output was made of, kept beside it: the same again is there already, a part of the same is continued."""

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from facd_basicsr.errors import UserError

RECORD = 'prepare.json'


def files_of(paths: Sequence[Path]) -> list[list]:
    """Name, size and time of change of files, for a record."""
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths]


def partial_of(path: Path) -> Path:
    """Where an output is built until it is whole."""
    return path.with_name(f'.partial_{path.name}')


def are_finished(paths: Iterable[Path], record: dict[str, Any]) -> bool:
    """Whether outputs are all there, made by the same settings from the same files.

    Raises:
        UserError: one is there, but made by other settings or from other files, or nobody knows how.
    """
    return all(_is_finished(path, record) for path in paths)


def _is_finished(path: Path, record: dict[str, Any]) -> bool:
    if not path.exists():
        return False
    found = _read(path)
    if found == record:
        return True
    if found is None:
        reason = f'without a {RECORD}, so not by this command'
    else:
        keys = [key for key in record if found.get(key) != record[key]]
        reason = 'with other ' + ', '.join(
            key if isinstance(record[key], list) else f'{key} ({found.get(key)}, now {record[key]})' for key in keys
        )
    raise UserError(f'{path}: already there, made {reason}; delete it, or choose another --out or --name')


def open_partial(path: Path, record: dict[str, Any]) -> Path:
    """The folder in which an output is built: an earlier one if it has the same record, else a new one."""
    partial = partial_of(path)
    if partial.exists() and _read(partial) != record:
        print(f'{partial}: begun with other settings or files, so started over', flush=True)
        shutil.rmtree(partial)
    if not partial.exists():
        partial.mkdir(parents=True)
        unfinished = partial / f'.{RECORD}'
        unfinished.write_text(json.dumps(record), encoding='utf-8')
        unfinished.replace(partial / RECORD)
    return partial


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / RECORD).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return None
