"""Checking one block of keys, and saying what is accepted."""

import difflib
import math
from collections.abc import Iterable
from typing import Any

from facd_basicsr.errors import UserError
from facd_basicsr.options.signatures import Key


def check_block(where: str, block: dict[str, Any], keys: dict[str, Key], complete: bool = True) -> None:
    """Checks one mapping: required keys, types and, if ``complete``, that it has no key beyond ``keys``."""
    check_type(where or 'the file', block, (dict,))
    dot = f'{where}.' if where else ''
    if complete:
        for key in block:
            if key not in keys:
                raise UserError(f'{dot}{key}: unknown key{did_you_mean(str(key), keys)}')
    for key, accepted in keys.items():
        if key in block:
            check_type(dot + key, block[key], accepted.types)
            if isinstance(block[key], list) and accepted.items:
                for index, item in enumerate(block[key]):
                    check_type(f'{dot}{key}[{index}]', item, accepted.items)
                    _check_bounds(f'{dot}{key}[{index}]', item, accepted)
            else:
                _check_bounds(dot + key, block[key], accepted)
            if accepted.choices and block[key] not in accepted.choices:
                raise UserError(f'{dot}{key}: {block[key]!r}; accepted: {", ".join(choice_names(accepted))}')
        elif accepted.required:
            raise UserError(f'{dot}{key}: missing; accepted: {type_names(accepted.types)}')


def check_type(where: str, value: Any, types: tuple[type, ...]) -> None:
    fits = isinstance(value, types) and not (isinstance(value, bool) and bool not in types)
    if types and not fits:
        raise UserError(f'{where}: {value!r}; accepted: {type_names(types)}')
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f'{where}: {value!r}; accepted: a finite number')


def _check_bounds(where: str, value: Any, accepted: Key) -> None:
    if not isinstance(value, (int, float)):
        return
    kept = accepted.least is None or value >= accepted.least
    kept &= accepted.above is None or value > accepted.above
    kept &= accepted.below is None or value < accepted.below
    if not kept:
        raise UserError(f'{where}: {value}; accepted: {", ".join(bounds(accepted))}')


def bounds(accepted: Key) -> list[str]:
    """The bounds of a number, in words."""
    named = (('{} or more', accepted.least), ('more than {}', accepted.above), ('less than {}', accepted.below))
    return [words.format(bound) for words, bound in named if bound is not None]


def choice_names(accepted: Key) -> list[str]:
    """The values that there are, as an option file has them."""
    return ['~' if choice is None else choice for choice in accepted.choices]


def type_names(types: tuple[type, ...]) -> str:
    """Types of YAML values, in words."""
    names = {
        str: 'text',
        int: 'a whole number',
        float: 'a number',
        bool: 'true or false',
        list: 'a list',
        dict: 'a block of keys',
        type(None): 'nothing (~)',
    }
    return ' or '.join(names[t] for t in types if t is not int or float not in types) or 'any value'


def did_you_mean(name: str, accepted: Iterable[str]) -> str:
    """The nearest accepted name and all of them, as the end of a message."""
    accepted = sorted(accepted)
    close = difflib.get_close_matches(name, accepted, n=1, cutoff=0.0)
    return (f'; did you mean {close[0]!r}?' if close else '') + f' Accepted: {listed(accepted)}'


def listed(names: Iterable[str]) -> str:
    return ', '.join(sorted(map(str, names)))
