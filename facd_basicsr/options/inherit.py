"""Option files that are based on another: ``base: FILE.yml`` and what differs."""

import copy
import functools
from pathlib import Path
from typing import Any

from facd_basicsr.errors import UserError
from facd_basicsr.options.plain_yaml import load_yaml, option_text

BASE = 'base'  # the key, at the top of a file


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """What ``changes`` makes of ``base``. Neither is changed, and the result shares nothing with them.

    A block is merged key by key, unless it gives its own ``type``: then it stands for the whole block, as the keys of
    one type mean nothing to another. Any other value, a list too, replaces the inherited one; ``~`` takes an inherited
    block or list out.
    """
    result = copy.deepcopy(base)
    for key, value in changes.items():
        inherited = result.get(key)
        if isinstance(inherited, dict) and isinstance(value, dict) and 'type' not in value:
            result[key] = merged(inherited, value)
        elif isinstance(inherited, (dict, list)) and value is None:
            del result[key]
        else:
            result[key] = copy.deepcopy(value)
    return result


def lineage(path: str) -> list[tuple[str, dict[str, Any]]]:
    """An option file, the file it is based on, that one's base and so on: (path, what it holds without ``base``).

    Raises:
        UserError: a file can't be read, holds no option keys, or names a base that is no file or leads back to it.
    """
    files: list[tuple[str, dict[str, Any]]] = []
    seen: set[Path] = set()
    where, found = '-opt', path
    while True:
        content = _content(path, f'{where}: {found}')
        if Path(path).resolve() in seen:
            circle = ' -> '.join([*(name for name, _ in files), path])
            raise UserError(f'{where}: {found} leads back to itself ({circle}); accepted: a file not based on this one')
        seen.add(Path(path).resolve())
        base = content.pop(BASE, ...)
        files.append((path, content))
        if base is ...:
            return files
        if not isinstance(base, str):
            raise UserError(f'{path}: {BASE}: {base!r}; accepted: an option file, relative to the folder of this one')
        where, path = f'{path}: {BASE}', str(Path(path).parent / base)
        found = base if base == path else f'{base} ({path})'


def read_option_file(path: str) -> dict[str, Any]:
    """The option dict of a file, complete: all that it inherits, with its own changes; no ``base``.

    Raises:
        UserError: as of :func:`lineage`.
    """
    contents = [content for _, content in reversed(lineage(path))]
    return functools.reduce(merged, contents)


def complete_text(path: str) -> str:
    """An option file's text, if it stands alone; else that of one which does and says the same.

    Raises:
        UserError: as of :func:`lineage`.
    """
    files = lineage(path)
    if len(files) == 1:
        return Path(path).read_text(encoding='utf-8')
    return option_text(read_option_file(path))


def _content(path: str, where: str) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding='utf-8')
    except (OSError, ValueError) as error:  # the latter: not UTF-8, or a path with a null character
        reason = getattr(error, 'strerror', None) or 'not text'
        raise UserError(f'{where}: {reason}; accepted: an option file such as those in options/') from error
    content = load_yaml(text, path)
    if not isinstance(content, dict):
        raise UserError(f'{path}: holds {type(content).__name__}; accepted: option keys, as in options/train/')
    return content
