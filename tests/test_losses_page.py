"""docs/losses.md links to the current lines of code and lists every option of every loss."""

import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from basicsr.utils.registry import LOSS_REGISTRY
from conftest import REPOSITORY, imported_script, run
from states import LOSSES

from facd_basicsr.errors import UserError
from facd_basicsr.losses.pixel_loss import PixelLoss
from facd_basicsr.options.signatures import signature_keys

SCRIPT = REPOSITORY / 'docs' / 'code_lines.py'
PAGE = REPOSITORY / 'docs' / 'losses.md'
TEXT = PAGE.read_text(encoding='utf-8')
OPTIONS = PAGE.with_name('options.md').read_text(encoding='utf-8')
PIXEL_LOSSES = {name: loss for name, loss in LOSS_REGISTRY if issubclass(loss, PixelLoss)}
SECTIONS = dict(re.findall(r'^##+ (\w+)\n(.*?)(?=^##+ |\Z)', TEXT, flags=re.MULTILINE | re.DOTALL))


@pytest.fixture(scope='module')
def code_lines() -> ModuleType:
    return imported_script(SCRIPT)


@pytest.mark.parametrize('path', sorted(PAGE.parent.glob('*.md')), ids=lambda path: path.name)
def test_every_link_to_code_has_current_line_numbers(code_lines, path):
    text = path.read_text(encoding='utf-8')
    assert code_lines.with_lines(text, path.parent) == text, f'stale: python docs/code_lines.py docs/{path.name}'


def test_every_link_of_the_page_to_code_is_checked(code_lines):
    assert len(code_lines.LINK.findall(TEXT)) == len(re.findall(r'\.py(#L[\d-]+L?\d*)?\)', TEXT)) > 40


def test_every_loss_has_a_section_with_a_formula_and_its_code():
    assert SECTIONS.keys() >= LOSSES.keys() | PIXEL_LOSSES.keys()
    for name, loss in (LOSSES | PIXEL_LOSSES).items():
        module = Path(inspect.getfile(loss)).name
        assert '```math' in SECTIONS[name] and f'[{module}, ' in SECTIONS[name], name


@pytest.mark.parametrize('name', sorted(LOSSES | PIXEL_LOSSES))
def test_every_option_of_a_loss_is_in_its_table_with_the_default_of_the_code(name):
    rows = re.findall(r'^\| `(\w+)` \| (.*?) \| (.*?) \|$', SECTIONS[name], flags=re.MULTILINE)
    loss = LOSS_REGISTRY.get(name)
    parameters = inspect.signature(loss).parameters.values()
    expected = dict(zip(signature_keys(loss), (parameter.default for parameter in parameters)))
    if name in PIXEL_LOSSES:  # those of all are said once
        expected = {key: value for key, value in expected.items() if key not in ('loss_weight', 'reduction')}
    assert [key for key, _, _ in rows] == list(expected)
    for key, default, meaning in rows:
        value = expected[key]
        assert (
            (default == '**required**' and value is inspect.Parameter.empty)
            or yaml.safe_load(default) == (list(value) if isinstance(value, tuple) else value)
            or float(default) == value
        )
        assert meaning


def test_every_pixel_loss_of_the_option_page_is_in_the_table_of_sizes():
    (table,) = re.findall(r'^\| \| loss \| of \| size .*?\n\n', TEXT, flags=re.MULTILINE | re.DOTALL)
    named = re.findall(r'^\| `(\w+)` ', table, flags=re.MULTILINE)
    assert named == re.findall(r'<!-- options: train.pixel_opt (\w+) -->', OPTIONS) and {*named} >= PIXEL_LOSSES.keys()


CODE = """
class A:
    def f(self, x):
        y = x  # 4
        y += (
            1
        )
        if x:
            return 0
        z: int = y
        return (
            z
        )


def g():
    y = 2
"""


@pytest.mark.parametrize(
    ('text', 'lines'),
    [
        ('A', 'L2-L13'),
        ('A.f', 'L3-L13'),
        ('A.f: y', 'L4-L7'),
        ('A.f: z', 'L10'),
        ('A.f: return', 'L11-L13'),
        ('g: y', 'L17'),
    ],
)
def test_lines_are_found_by_name(code_lines, text, lines, tmp_path):
    (tmp_path / 'a.py').write_text(CODE)
    for stale in ('', '#L1', '#L99-L100'):
        page = f'See [a.py, {text}](a.py{stale}), and [another](b.md#L1).'
        assert code_lines.with_lines(page, tmp_path) == page.replace(f'a.py{stale})', f'a.py#{lines})')


@pytest.mark.parametrize(
    ('link', 'message'),
    [
        ('[a.py, h](a.py)', r'no h; accepted: A, g'),
        ('[a.py, A.g](a.py)', r'no g; accepted: f'),
        ('[a.py, A.f: x](a.py)', r'no x in A.f; accepted: y, return, z'),
        ('[b.py, g](b.py)', r'no such file'),
        ('[b.py, g](a.py)', r'no such file'),
    ],
)
def test_a_link_to_a_missing_target_is_refused_with_its_text(code_lines, link, message, tmp_path):
    (tmp_path / 'a.py').write_text(CODE)
    with pytest.raises(UserError, match=message) as error:
        code_lines.with_lines(f'See {link}.', tmp_path)
    assert str(error.value).startswith(link)


def test_the_command_updates_a_page(tmp_path):
    (tmp_path / 'a.py').write_text(CODE)
    (tmp_path / 'page.md').write_text('[a.py, g](a.py)')
    done = run(SCRIPT, 'page.md', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'page.md').read_text() == '[a.py, g](a.py#L16-L17)'
