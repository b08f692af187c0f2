"""The tables in the project's pages are those of the committed results."""

import json
import re

import pytest
from conftest import REPOSITORY, imported_script

from facd_basicsr.comparison.summary import filled

PAGES = [REPOSITORY / 'README.md', *sorted((REPOSITORY / 'docs').glob('*.md'))]
MARK = re.compile(r'<!-- facd compare: (\S+) \S+ -->')
BLOCKS = sorted({(page, name) for page in PAGES for name in MARK.findall(page.read_text(encoding='utf-8'))})


@pytest.mark.parametrize(('page', 'name'), BLOCKS, ids=lambda value: getattr(value, 'name', value))
def test_a_pages_tables_are_made_from_the_committed_results(page, name):
    results = json.loads((REPOSITORY / 'benchmarks' / 'results' / f'{name}.json').read_text(encoding='utf-8'))
    text = page.read_text(encoding='utf-8')
    assert filled(text, results) == text, f'facd compare benchmarks/results/{name}.json --into {page.name}'


def test_the_readme_has_a_table_of_results():
    assert (REPOSITORY / 'README.md') in {page for page, _ in BLOCKS}


def test_the_costs_of_the_papers_trainings_are_the_committed_ones():
    gpu_hours = imported_script(REPOSITORY / 'benchmarks' / 'gpu_hours.py')
    costs = json.loads((REPOSITORY / 'benchmarks' / 'results' / 'gpu_hours.json').read_text())['runs']
    page = (REPOSITORY / 'docs' / 'reproduce.md').read_text(encoding='utf-8')
    assert gpu_hours.filled(page, costs) == page
    assert gpu_hours.BEGIN in page and '| FACD EDSR |' in page
    files = [tuple(of) for _, *of in gpu_hours.papers_files()]
    assert [(run['method'], run['network'], run['scale']) for run in costs] == files
