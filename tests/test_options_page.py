"""Tables, defaults and examples of docs/options.md agree with the code."""

import inspect
import re

import pytest
import torch
from basicsr.utils.dist_util import init_dist
from conftest import REPOSITORY, imported_script, run

from facd_basicsr.errors import UserError
from facd_basicsr.models.nonfinite import NonFiniteGuard
from facd_basicsr.options import load_yaml, read_option_file, schema
from facd_basicsr.options.build import dry_run
from facd_basicsr.options.option_check import check_block, check_options
from facd_basicsr.options.option_files import merged
from facd_basicsr.options.signatures import Key
from facd_basicsr.runtime.execution import Execution

SCRIPT = REPOSITORY / 'docs' / 'options_page.py'
options_page = imported_script(SCRIPT)
PAGE = REPOSITORY / 'docs' / 'options.md'
TEXT = PAGE.read_text(encoding='utf-8')
MADE = options_page.tables()
EXAMPLES = re.findall(r'```yaml\n(.*?)```', TEXT, flags=re.DOTALL)
TABLES = {name: own for name, own in vars(schema).items() if isinstance(own, dict) and name.isupper()}
# docstrings say the rest
OF_ARGUMENTS = ('NETWORK', 'REGRESSOR', 'LOSS', 'PERCEPTUAL', 'METRIC', 'PERCEPTUAL_METRIC', 'OPTIM', 'SCHEDULER')
TABLES = {
    name: own
    for name, own in TABLES.items()
    if all(isinstance(key, Key) for key in own.values()) and name.removesuffix('_KEYS') not in OF_ARGUMENTS
}


def rows(text: str) -> list[list[str]]:
    """The cells of a Markdown table, below its header."""
    lines = [line for line in text.splitlines() if line.startswith('| ')]
    return [[cell.strip() for cell in re.split(r'(?<!\\)\|', line)[1:-1]] for line in lines[2:]]


def unexplained(text: str) -> list[str]:
    """The keys of a table without a meaning, or optional ones without a default or its explanation."""
    return [
        key
        for key, _, _, left_out, meaning in rows(text)
        if not meaning or (left_out.startswith('-') and not re.search('[Ll]eft out|Required', meaning))
    ]


@pytest.mark.skipif(
    f'\ntorch=={torch.__version__.split("+")[0]}\n'
    not in (REPOSITORY / 'requirements' / 'constraints.txt').read_text(encoding='utf-8'),
    reason='the page lists the keys of optimizers of another torch version',
)
def test_the_page_has_the_current_tables():
    assert options_page.with_tables(TEXT) == TEXT, 'stale: python docs/options_page.py --into docs/options.md'


def test_every_table_is_on_the_page_once_and_in_the_order_of_an_option_file():
    assert re.findall(r'<!-- options: (.+) -->', TEXT) == list(MADE)


@pytest.mark.parametrize('name', MADE)
def test_every_key_has_a_meaning_and_a_default_or_its_explanation(name):
    assert rows(MADE[name]) and unexplained(MADE[name]) == []


def test_a_key_without_a_meaning_is_found():
    own = {'a': Key(), 'b': Key(meaning='said'), 'c': Key(meaning='Left out: nothing')}
    assert unexplained(options_page.table(own)) == ['`a`', '`b`']


@pytest.mark.parametrize('name', TABLES)
def test_every_key_of_every_table_of_the_check_has_a_meaning(name):
    assert [key for key, own in TABLES[name].items() if not own.meaning] == []


def test_every_optimizer_and_scheduler_is_named():
    for name in (*[name for name, cls in schema.optimizers().items() if isinstance(cls, type)], *schema.SCHEDULERS):
        assert f'`{name}`' in TEXT


def test_a_table_has_value_file_and_default_of_each_key():
    number = Key((int,), required=True, least=1, below=9, meaning='a | b')
    train = {'a': number, 'b': Key((str,), choices=('x', 'y'), default='x', meaning='c')}
    test = {'b': Key((str,), required=True, choices=('x', 'y'), meaning='c')}
    assert options_page.table(train, test) == (
        '| key | value | file | default | meaning |\n'
        '| --- | --- | --- | --- | --- |\n'
        '| `a` | a whole number, 1 or more, less than 9 | train | **required** | a \\| b |\n'
        '| `b` | `x`, `y` | both | `x`; **required** in test | c |'
    )


def test_the_items_of_lists_are_described():
    numbers = Key((list, type(None)), items=(int, float), least=0)
    assert options_page.value_words(numbers) == 'a list of numbers or `null`, 0 or more'
    assert options_page.value_words(Key((list,), items=(int,))) == 'a list of whole numbers'


def test_an_unknown_table_is_refused_by_its_name():
    with pytest.raises(UserError, match=r'^<!-- options: trian -->: accepted: file, top, datasets, '):
        options_page.with_tables('<!-- options: trian -->\n<!-- end -->')


@pytest.mark.slow
def test_the_command_updates_a_stale_page(tmp_path):
    page = tmp_path / 'options.md'
    page.write_text(TEXT.replace('iterations between lines of progress', 'something else'), encoding='utf-8')
    done = run(SCRIPT, '--into', page, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert '| iterations between lines of progress |' in page.read_text(encoding='utf-8')


@pytest.mark.parametrize('example', EXAMPLES, ids=lambda text: text.splitlines()[-1].strip()[:40])
def test_every_example_is_accepted_as_a_part_of_a_complete_file(example):
    kind = 'test' if example.startswith('# of a test file') else 'train'
    changes = load_yaml(example, 'docs/options.md')
    base = changes.pop('base', 'FACD_EDSR_x4.yml')
    opt = merged(read_option_file(str(REPOSITORY / 'options' / kind / base)), changes)
    check_options(opt, is_train=kind == 'train')
    dry_run({**opt, 'teacher': {}}, is_train=kind == 'train')  # its 43 M parameters are built by other tests


@pytest.mark.parametrize(
    ('block', 'target'),
    [
        (schema.NONFINITE, NonFiniteGuard),
        (schema.EXECUTION, Execution),
        ({'backend': schema.DIST_PARAMS['backend']}, init_dist),
        ({key: own for key, own in schema.COMPILE.items() if key != 'mode'}, torch.compile),  # whose None means default
    ],
)
def test_a_default_is_the_one_of_the_signature_that_the_block_is_passed_to(block, target):
    signature = inspect.signature(target).parameters
    stated = {key: own.default for key, own in block.items() if own.default is not ...}
    assert stated and {key: signature[key].default for key in stated} == stated


@pytest.mark.parametrize('name', [name for name in TABLES if name != 'PATH_NETWORK'])
def test_a_default_is_an_accepted_value(name):
    check_block(
        name,
        {key: own.default for key, own in TABLES[name].items() if own.default is not ...},
        {key: own for key, own in TABLES[name].items() if own.default is not ...},
    )
