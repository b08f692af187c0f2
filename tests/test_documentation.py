"""Pages that name tests name tests that are there."""

import ast
import re
from pathlib import Path

import pytest
from conftest import REPOSITORY

PAGES = sorted(REPOSITORY.glob('docs/*.md'))
LINK = re.compile(r'\]\((?!https?://)([^)#\s]*)(?:#([^)]+))?\)')
NAMED = re.compile(r'`(tests/[\w/]+\.py)(?:::(\w+))?`')


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_every_test_that_a_page_names_is_there(page):
    for path, name in NAMED.findall(page.read_text(encoding='utf-8')):
        tree = ast.parse((REPOSITORY / path).read_text(encoding='utf-8'))
        assert not name or name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name


def headings(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    titles = re.findall(r'^#+ (.+)$', page.read_text(encoding='utf-8'), flags=re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_every_link_to_another_page_or_heading_leads_there(page):
    for path, anchor in LINK.findall(page.read_text(encoding='utf-8')):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in headings(target), f'{path}#{anchor}'


def test_every_promise_of_reliability_names_a_test():
    text = (REPOSITORY / 'docs' / 'reliability.md').read_text(encoding='utf-8')
    rows = [line for line in text.split('## Promises')[1].splitlines() if line.startswith('| ')]
    promises = [line for line in rows if line != '| promise | test |']
    assert len(promises) > 30 and all(NAMED.search(line) for line in promises)
