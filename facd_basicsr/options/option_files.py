"""Option files: safe YAML in and out, and ``base:``, the file that one inherits from."""

import copy
import functools
import re
from pathlib import Path
from typing import Any

import yaml

from facd_basicsr.errors import UserError

# Of the blocks and keys at the top of an option file, in the order in which the files of options/ have them.
ORDER = (
    *('name', 'model_type', 'scale', 'num_gpu', 'manual_seed', 'deterministic', 'find_unused_parameters'),
    *('datasets', 'network_g', 'teacher', 'taps', 'network_r', 'path', 'train', 'val', 'logger', 'dist_params'),
)
MAX_DEPTH = 50  # blocks within blocks; option files have five
MAX_BITS = 1000  # of a whole number; longer ones are no floats, and the longest Python refuses to write out
MAX_VALUES = 100_000  # with every alias written out; option files have a few hundred
FLOAT = 'tag:yaml.org,2002:float', re.compile(r'[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$'), list('-+0123456789')


class OptionLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which builds plain data only, with two of YAML 1.1's surprises removed.

    Duplicate keys in a block are refused, and ``1e-4`` is a number, not text. Attacks are refused: nesting that would
    exhaust the stack, and aliases of aliases that expand to huge data.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._values: dict[int, int] = {}  # by node: how many values it holds, aliases written out

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        mark = self.peek_event().start_mark
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, f'nested more than {MAX_DEPTH} deep', mark)
        is_alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if not is_alias:
            items = node.value if isinstance(node, yaml.CollectionNode) else []
            inner = [item for pair in items for item in pair] if isinstance(node, yaml.MappingNode) else items
            self._values[id(node)] = 1 + sum(self._values[id(item)] for item in inner)
        elif id(node) not in self._values:
            raise yaml.composer.ComposerError(None, None, 'an alias within what it stands for', mark)
        if self._values[id(node)] > MAX_VALUES:
            raise yaml.composer.ComposerError(None, None, f'aliases that stand for more than {MAX_VALUES} values', mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.value != '<<']
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f'the key {key!r} stands twice', node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value = super().construct_yaml_int(node)
        if value.bit_length() > MAX_BITS:
            raise yaml.constructor.ConstructorError(
                None, None, f'a number of more than {MAX_BITS} bits', node.start_mark
            )
        return value


class OptionDumper(yaml.SafeDumper):
    """Writes lists as the files of ``options/`` do: [0.5, 0.3, 0.2] and {student: body.4, teacher: body.9} inline."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        node = super().represent_sequence(tag, sequence, flow_style)
        node.flow_style = all(isinstance(item, yaml.ScalarNode) for item in node.value)
        for item in node.value:
            if isinstance(item, yaml.MappingNode) and len(item.value) <= 4:  # more would not fit on a line
                item.flow_style = all(isinstance(value, yaml.ScalarNode) for _, value in item.value)
        return node

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """In double quotes where needed: in single ones PyYAML would lose a line break that is not ``\\n``."""
        return self.represent_scalar('tag:yaml.org,2002:str', text, style=None if text.isprintable() else '"')


OptionLoader.add_constructor('tag:yaml.org,2002:int', OptionLoader.construct_yaml_int)
OptionLoader.add_implicit_resolver(*FLOAT)
OptionDumper.add_implicit_resolver(*FLOAT)  # the text '1e-4' is put in quotes
OptionDumper.add_representer(str, OptionDumper.represent_text)
OptionDumper.add_representer(type(None), lambda dumper, _: dumper.represent_scalar('tag:yaml.org,2002:null', 'null'))


def load_yaml(text: str, source: str) -> Any:
    """Plain data from YAML text.

    Args:
        text: the YAML.
        source: file name or option, for messages.

    Raises:
        UserError: it is not valid YAML, asks for a Python object, has a key twice, or is nested or grows without end.
    """
    try:
        return yaml.load(text, Loader=OptionLoader)
    # the last three from `2024-13-45`, `!!timestamp x` and `!!bool x`
    except (yaml.YAMLError, ValueError, AttributeError, LookupError) as error:
        mark = getattr(error, 'problem_mark', None)
        line = f', line {mark.line + 1}' if mark else ''
        problem = getattr(error, 'problem', None) or str(error).splitlines()[0]
        raise UserError(f'{source}{line}: {problem}; accepted: plain YAML') from error


def option_text(opt: dict[str, Any]) -> str:
    """An option dict as YAML, in the usual order of keys, which :func:`load_yaml` reads back equal."""
    known = [key for key in ORDER if key in opt]
    paragraphs = []
    for key in [*known, *(key for key in opt if key not in ORDER)]:
        text = yaml.dump({key: opt[key]}, Dumper=OptionDumper, sort_keys=False, allow_unicode=True, width=120)
        paragraphs.append('\n' + text if isinstance(opt[key], (dict, list)) else text)
    return ''.join(paragraphs) or '{}\n'


BASE = 'base'  # the key, at the top of a file
RUN = 'run'  # in the options.yml of a run, what train.py says of each start
SEVERAL = ('distill_opt', 'pixel_opt')  # one block with a type, or several by name


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """What ``changes`` makes of ``base``. Neither is changed, and the result shares nothing with them.

    A block is merged key by key, unless it gives its own ``type``: then it stands for the whole block, as the keys of
    one type mean nothing to another. So do several losses in the place of one. Any other value, a list too, replaces
    the inherited one; ``null`` takes an inherited block or list out.
    """
    result = copy.deepcopy(base)
    for key, value in changes.items():
        inherited = result.get(key)
        if isinstance(inherited, dict) and isinstance(value, dict) and not _stands_alone(key, value, inherited):
            result[key] = merged(inherited, value)
        elif isinstance(inherited, (dict, list)) and value is None:
            del result[key]
        else:
            result[key] = copy.deepcopy(value)
    return result


def _stands_alone(key: str, block: dict[str, Any], inherited: dict[str, Any]) -> bool:
    typed = [isinstance(own, dict) and 'type' in own for own in block.values()]
    return 'type' in block or (key in SEVERAL and 'type' in inherited and bool(typed) and all(typed))


def lineage(path: str) -> list[tuple[str, dict[str, Any]]]:
    """An option file, the file it is based on, that one's base and so on: (path, its options).

    Raises:
        UserError: a file cannot be read, holds no option keys, or names a base that is no file or leads back to it.
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
        base = content.get(BASE, ...)
        files.append((path, {key: value for key, value in content.items() if key not in (BASE, RUN)}))
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
