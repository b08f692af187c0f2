"""What option keys a registered class accepts, read off its signature or its source."""

import ast
import functools
import inspect
import keyword
import re
import textwrap
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from types import MappingProxyType
from typing import Any

INDENT = 4
# `num_feat (int): Channel number` as BasicSR writes it, `student, teacher: SR` as this package does
ENTRY = re.compile(r'(?P<names>\w+(?:, \w+)*)(?: \(.*?\))?:\s+(?P<text>.*)')
DEFAULT = re.compile(r'\s*(\bDefault: |\(default: ).*')  # which the signature says


@functools.cache
def argument_meanings(target: Callable[..., Any]) -> Mapping[str, str]:
    """{argument: what the ``Args:`` of its docstring say of it}, in one line each.

    Args:
        target: class or function; the bases' docstrings say what a class's own does not.
    """
    documented = reversed(inspect.getmro(target)) if inspect.isclass(target) else [target]
    return MappingProxyType({name: text for own in documented for name, text in _arguments(own.__doc__ or '').items()})


def _arguments(docstring: str) -> dict[str, str]:
    lines = inspect.cleandoc(docstring).splitlines()
    if 'Args:' not in lines:
        return {}
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
    joined = {name: ' '.join(' '.join(text).split()) for name, text in texts.items()}
    return {name: DEFAULT.sub('', text).removesuffix('.') for name, text in joined.items()}


@dataclass(frozen=True)
class Key:
    """What an option key accepts, and what docs/options.md says of it.

    Attributes:
        types: types of its value; empty: anything.
        required: whether it must be there.
        items: types of a list's items; empty: anything.
        choices: the values there are, or a list's items; empty: any of the types.
        length: of a list; 0: any. One of two is a range, its lower end first.
        least, above, below, most: bounds of a number, or of a list's items: ``least`` and ``most`` are accepted.
        is_weight: whether it, or a list's item, may be a schedule, a block with the values at its ends.
        meaning: what it does, in Markdown; where it may be left out and has no default, also what happens then. Of a
            class's argument that has none here, the class's docstring says it, or a loss's option.
        default: the value that leaving it out stands for, which is filled in when the file is read; ``...``: there is
            none, and what leaving it out means is in ``meaning``.
    """

    types: tuple[type, ...] = ()
    required: bool = False
    items: tuple[type, ...] = ()
    choices: tuple[str | None, ...] = ()
    length: int = 0
    least: float | None = None
    above: float | None = None
    below: float | None = None
    most: float | None = None
    is_weight: bool = False
    meaning: str = field(default='', compare=False)
    default: Any = field(default=..., compare=False)


def signature_keys(
    target: Callable[..., Any], supplied: Sequence[str] = (), known: Mapping[str, Key] = MappingProxyType({})
) -> dict[str, Key]:
    """The option keys that a registered class or function accepts, read off its signature.

    Types come from annotations where they are plain types, else from the defaults; meanings from the docstring. A
    loss's bounds, choices and meanings come from its options (losses/base.py, option).

    Args:
        target: class or function that is called with an option block as keyword arguments.
        supplied: parameters that the caller fills in, not the option file.
        known: what to say of a parameter instead of what its signature says; it is required if either says so.
    """
    return {
        key: _merged(known[key], own) if key in known else own
        for key, (name, own) in _own_keys(target).items()
        if name not in supplied
    }


@functools.cache
def _own_keys(target: Callable[..., Any]) -> Mapping[str, tuple[str, Key]]:
    """{option key: its parameter, and what the signature says of it}."""
    function = target.__init__ if inspect.isclass(target) else target
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError):
        hints = {}
    keys, meanings = {}, argument_meanings(target)
    metadata = {own.name: own.metadata for own in fields(target)} if is_dataclass(target) else {}
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        option_name = name[:-1] if name.endswith('_') and keyword.iskeyword(name[:-1]) else name
        hint = hints.get(name)
        own = Key(
            _types(hint, parameter.default),
            parameter.default is parameter.empty,
            _item_types(hint, parameter.default),
            default=_plain(parameter.default),
            **{'meaning': meanings.get(name, ''), **metadata.get(name, {})},
        )
        keys[option_name] = name, own
    return MappingProxyType(keys)


def _merged(key: Key, own: Key) -> Key:
    """An explicit key, with the signature's default and, if it has none, meaning."""
    return replace(key, required=key.required or own.required, meaning=key.meaning or own.meaning, default=own.default)


def _plain(default: Any) -> Any:
    """A default as an option file has it; ``...`` where it has none: without a default, or of one that YAML lacks."""
    if isinstance(default, (list, tuple)):
        items = [_plain(item) for item in default]
        return ... if ... in items else items
    return default if isinstance(default, (bool, int, float, str, type(None))) else ...


def _types(hint: Any, default: Any) -> tuple[type, ...]:
    if hint in (bool, str, int):
        return (hint,)
    if hint is float:
        return (int, float)
    own = typing.get_args(hint)
    if len(own) == 2 and own[1] is type(None):  # float | None
        return (*types, type(None)) if (types := _types(own[0], ...)) else ()
    if typing.get_origin(hint) is Sequence or isinstance(default, (list, tuple)):
        return (list,)
    if isinstance(default, (bool, str)):
        return (type(default),)
    if isinstance(default, (int, float)):
        return (int, float)  # BasicSR writes res_scale=1 where 0.1 is meant too
    return ()


def _item_types(hint: Any, default: Any) -> tuple[type, ...]:
    if typing.get_origin(hint) is Sequence:
        return _types(typing.get_args(hint)[0], None)
    if isinstance(default, (list, tuple)) and default and all(isinstance(item, (int, float)) for item in default):
        return (int, float)
    return ()


@functools.cache
def keys_read(cls: type, variable: str) -> frozenset[str]:
    """The keys that a class reads from a dict called ``variable`` or ``self.variable``, from its source.

    BasicSR's models and datasets take their whole option block as one dict, so no signature says what they know.
    Only the methods that the class resolves to count: one that a subclass overrides only if its own calls ``super()``.
    """
    found = set()
    for name, _ in inspect.getmembers(cls, inspect.isfunction):
        for owner in (base for base in inspect.getmro(cls) if inspect.isfunction(vars(base).get(name))):
            tree = ast.parse(textwrap.dedent(inspect.getsource(vars(owner)[name])))
            found |= {key for node in ast.walk(tree) if (key := _key_read(node, variable)) is not None}
            if not any(isinstance(node, ast.Name) and node.id == 'super' for node in ast.walk(tree)):
                break
    return frozenset(found)


def _key_read(node: ast.AST, variable: str) -> str | None:
    holder, key = _lookup(node)
    name = getattr(holder, 'attr', getattr(holder, 'id', None))
    if name == variable and isinstance(key, ast.Constant) and isinstance(key.value, str):
        return key.value
    return None


def _lookup(node: ast.AST) -> tuple[ast.AST | None, ast.AST | None]:
    """(d, key) of ``d[key]``, ``d.get(key, ...)`` or ``key in d``; (None, None) of anything else."""
    if isinstance(node, ast.Subscript):
        return node.value, node.slice
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == 'get' and node.args:
        return node.func.value, node.args[0]
    if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In):
        return node.comparators[0], node.left
    return None, None
