"""What a class's or function's docstring says of its arguments."""

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

INDENT = 4
# `num_feat (int): Channel number` as BasicSR writes it, `student, teacher: SR` as this package does
ENTRY = re.compile(r'(?P<names>\w+(?:, \w+)*)(?: \(.*?\))?:\s+(?P<text>.*)')
DEFAULT = re.compile(r'\s*\bDefault: .*')  # which the signature says


@functools.cache
def argument_meanings(target: Callable[..., Any]) -> Mapping[str, str]:
    """{argument: what the ``Args:`` of its docstring say of it}, in one line each.

    Args:
        target: class or function; a class without a docstring has that of its base.
    """
    lines = (inspect.getdoc(target) or '').splitlines()
    if 'Args:' not in lines:
        return MappingProxyType({})
    texts: dict[str, list[str]] = {}
    for line in lines[lines.index('Args:') + 1 :]:
        indent = len(line) - len(line.lstrip())
        if line.strip() and indent == 0:
            break
        entry = ENTRY.match(line.strip()) if indent == INDENT else None
        if entry:
            latest = [entry['text']]
            texts |= dict.fromkeys(entry['names'].split(', '), latest)
        elif texts and indent > INDENT:
            latest.append(line.strip())
    return MappingProxyType({name: _one_line(text) for name, text in texts.items()})


def _one_line(text: list[str]) -> str:
    return DEFAULT.sub('', ' '.join(' '.join(text).split())).removesuffix('.')
