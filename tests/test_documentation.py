"""Links of the pages resolve, and the tests, commands and files that they name exist."""

import ast
import re
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY

import facd_basicsr
from facd_cli import COMMANDS

PAGES = sorted(REPOSITORY.glob('docs/*.md'))
ALL_PAGES = sorted({*PAGES, *REPOSITORY.glob('*.md'), *REPOSITORY.glob('*/README.md')})
LINK = re.compile(r'\[[^\]]*\]\(([^)\s]+)\)')
FENCED = re.compile(r'^```.*?^```', re.MULTILINE | re.DOTALL)
NAMED = re.compile(r'`(tests/[\w/]+\.py)(?:::(\w+))?`')


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_every_test_that_a_page_names_exists(page):
    for path, name in NAMED.findall(page.read_text(encoding='utf-8')):
        tree = ast.parse((REPOSITORY / path).read_text(encoding='utf-8'))
        assert not name or name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name


def test_every_promise_of_reliability_names_a_test():
    text = (REPOSITORY / 'docs' / 'reliability.md').read_text(encoding='utf-8')
    rows = [line for line in text.split('## Promises')[1].splitlines() if line.startswith('| ')]
    promises = [line for line in rows if line != '| promise | test |']
    assert len(promises) > 30 and all(NAMED.search(line) for line in promises)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub generates for a page's headings."""
    text = FENCED.sub('', page.read_text(encoding='utf-8'))
    headings = re.findall(r'^#+ (.*)$', text, flags=re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', ALL_PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_link_of_a_page_leads_to_an_existing_file_and_heading(page):
    for target in LINK.findall(FENCED.sub('', page.read_text(encoding='utf-8'))):
        if target.startswith('https://'):
            continue
        path, _, fragment = target.partition('#')
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if fragment and linked.suffix == '.md':
            assert fragment in anchors(linked), target


def test_the_index_links_to_every_page():
    linked = set(LINK.findall((REPOSITORY / 'docs' / 'README.md').read_text(encoding='utf-8')))
    assert {page.name for page in PAGES} - {'README.md'} <= linked


def test_the_readme_is_short_and_lists_every_subcommand():
    text = (REPOSITORY / 'README.md').read_text(encoding='utf-8')
    assert len(text.splitlines()) < 200
    assert re.findall(r'^\| `(\w+)` \|', text, flags=re.MULTILINE)[1:] == list(COMMANDS)


@pytest.mark.parametrize('page', ALL_PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_commands_in_a_page_are_subcommands_and_option_files_exist(page):
    text = page.read_text(encoding='utf-8')
    given = re.findall(r'^`([\w/.]+)`:$', text, flags=re.MULTILINE)  # files in the page, as in docs/extending.md
    for block in FENCED.findall(text):
        for name in re.findall(r'^facd (\w[\w-]*)', block, flags=re.MULTILINE):
            assert name in COMMANDS
        for path in re.findall(r'\boptions/(?:train|test|compare)/[\w/]+\.yml', block):
            assert (REPOSITORY / path).is_file() or path in given


@pytest.mark.parametrize('page', ALL_PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_scripts_and_modules_that_a_page_runs_exist(page):
    text = page.read_text(encoding='utf-8')
    for path in re.findall(r'\bpython ([\w/.]+\.py)\b', text):
        assert (REPOSITORY / path).is_file(), path
    for module in re.findall(r'\bpython -m (facd_basicsr[\w.]*)', text):
        path = REPOSITORY.joinpath(*module.split('.'))
        assert path.with_suffix('.py').is_file() or path.is_dir(), module


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((REPOSITORY / 'CITATION.cff').read_text(encoding='utf-8'))
    latest = re.search(r'^## (\S+) \((\S+)\)', (REPOSITORY / 'CHANGELOG.md').read_text(encoding='utf-8'), re.MULTILINE)
    setup = re.search(r"version='(.*?)'", (REPOSITORY / 'setup.py').read_text(encoding='utf-8'))
    assert facd_basicsr.__version__ == citation['version'] == latest[1] == setup[1]
    assert citation['date-released'] == latest[2]


def test_the_way_through_the_code_names_each_file_once_and_definitions_that_are_there():
    text = (REPOSITORY / 'CONTRIBUTING.md').read_text(encoding='utf-8')
    stations = re.findall(r'^\d+\. `(\S+)`: (.*(?:\n   .*)*)', text, re.MULTILINE)
    files = [name for name, _ in stations]
    assert len(files) == len(set(files)) == 9
    for name, words in stations:
        source = (REPOSITORY / name).read_text(encoding='utf-8')
        found = re.findall(r'`([^`]+)`', words)
        assert found and all(word in source for word in found), name
