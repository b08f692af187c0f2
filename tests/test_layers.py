"""The package has layers: a top-level folder or module, a room, imports only rooms of lower layers."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / 'facd_basicsr'

# From the lowest layer up. Rooms of a layer do not import each other.
LAYERS = [
    ['compat', 'errors', 'environment', 'progress'],
    ['files'],
    ['runtime'],
    ['archs'],
    ['losses'],
    ['distill'],
    ['data'],
    ['models'],
    ['engine'],
    ['options'],
    ['runs'],
    ['evaluation'],
    ['comparison', 'report', 'deploy'],
    ['cli', 'train', 'test'],
    ['tools'],
]
LEVELS = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
MODULES = sorted(path for path in PACKAGE.rglob('*.py') if path != PACKAGE / '__init__.py')


def imported(path: Path) -> Iterator[str]:
    """The dotted names that a module imports from the package, anywhere in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = path.relative_to(PACKAGE.parent).parts[: -node.level]
            names = ['.'.join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f'{node.module}.{alias.name}' for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.startswith('facd_basicsr.'))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix('').parts[0]


def upward_imports(path: Path, names: Iterator[str]) -> list[str]:
    """The imports from the same or a higher layer, as arrows."""
    own = room_of(path)
    return [
        f'{path.relative_to(PACKAGE)} -> {name}'
        for name in names
        if (room := name.split('.')[1]) in LEVELS and room != own and LEVELS[room] >= LEVELS[own]
    ]


@pytest.mark.parametrize('path', MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_rooms_below_its_own(path):
    assert room_of(path) in LEVELS
    assert not upward_imports(path, imported(path))


def test_an_import_from_a_higher_layer_is_reported(tmp_path):
    module = PACKAGE / 'losses' / 'new_loss.py'
    assert upward_imports(module, iter(['facd_basicsr.engine.loop.TrainingLoop', 'facd_basicsr.errors.UserError'])) == [
        'losses/new_loss.py -> facd_basicsr.engine.loop.TrainingLoop'
    ]
    assert upward_imports(PACKAGE / 'report' / 'page.py', iter(['facd_basicsr.deploy.student.Student']))


def defined(path: Path) -> Iterator[str]:
    """The public functions, classes and constants of a module."""
    for node in ast.parse(path.read_text(encoding='utf-8')).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        else:
            continue
        yield from (name for name in names if not name.startswith('_'))


def test_no_two_modules_have_the_same_name():
    counts = Counter(path.stem for path in MODULES if path.stem != '__init__')
    assert [name for name, count in counts.items() if count > 1] == []


def test_no_two_modules_define_the_same_public_name():
    counts = Counter(name for path in MODULES for name in set(defined(path)))
    in_every_command = {'command', 'main'}
    assert {name for name, count in counts.items() if count > 1} <= in_every_command
