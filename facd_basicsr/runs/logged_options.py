"""The option dict that a log shows, with what the command line changed: the file that is kept does not have it."""

import ast
import re
from collections.abc import Iterator
from typing import Any

from facd_basicsr.options.schema import DERIVED

LINE = re.compile(r'^( +)([^ :\[][^:]*):(\[$| ?)(.*)$')
# What facd_basicsr.options.parse makes of the run's folder.
FOLDERS = {'experiments_root', 'log', 'models', 'training_states', 'visualization'}


def parsed(text: str) -> dict[str, Any]:
    """What BasicSR's ``dict2str`` has written: nested dicts, whose values are left as text.

    Lines that it can not have written are passed over: a text with line breaks loses all but its first line. Of a text
    that ends within a block there is nothing.
    """
    result: dict[str, Any] = {}
    blocks = [result]
    for line in text.split('\n'):
        indent = len(line) - len(line.lstrip(' '))
        depth = indent // 2
        if line.strip() == ']' and depth == len(blocks) - 1:
            blocks.pop()
            continue
        found = LINE.match(line)
        if not found or depth != len(blocks):
            continue
        _, key, kind, value = found.groups()
        if kind == '[':
            blocks[-1][key] = {}
            blocks.append(blocks[-1][key])
        else:
            blocks[-1][key] = value
    return result if len(blocks) == 1 else {}


def as_run(file: dict[str, Any], logged: dict[str, Any]) -> dict[str, Any]:
    """The options of a run, from its option file and its log.

    Args:
        file: what the file holds.
        logged: from :func:`parsed`; what the file has too and is written alike has the file's type, other values are
            read as Python writes them.
    """
    result = {}
    for key, value in logged.items():
        own = file.get(key, ...)
        if isinstance(value, dict):
            result[key] = as_run(own if isinstance(own, dict) else {}, value)
        else:
            result[key] = own if str(own) == value and own is not ... else _literal(value)
    return result


def changes(file: dict[str, Any], opt: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """What the command line changed: (key, the file's value or ``...``, the run's value or ``...``).

    Args:
        file: what the file holds.
        opt: from :func:`as_run`.
    """
    ours, theirs = dict(_leaves(_without_filled_in(opt))), dict(_leaves(file))
    keys = [*ours, *(key for key in theirs if key not in ours)]
    found = [('.'.join(key), theirs.get(key, ...), ours.get(key, ...)) for key in keys]
    return [change for change in found if change[1] != change[2]]


def _without_filled_in(opt: dict[str, Any]) -> dict[str, Any]:
    """Without what no option file says."""
    result = {key: value for key, value in opt.items() if key not in DERIVED or key == 'scale'}
    result['path'] = {key: value for key, value in opt.get('path', {}).items() if key not in FOLDERS}
    result['datasets'] = {
        name: {key: value for key, value in block.items() if key not in DERIVED}
        for name, block in opt.get('datasets', {}).items()
    }
    return result


def _leaves(opt: dict[str, Any], where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in opt.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*where, str(key)))
        else:
            yield (*where, str(key)), value


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
