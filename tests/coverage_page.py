"""The pages that say how much of the package the tests run, made of what `make test` has measured.

    python tests/coverage_page.py coverage/coverage.json --into docs/coverage.md

A block of a page begins with ``<!-- coverage: PART -->`` and ends with ``<!-- end -->``. PART is one of ``PARTS``.
"""

import argparse
import json
import platform
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from facd_basicsr.comparison.summary import with_blocks
from facd_basicsr.errors import UserError, run_command
from facd_basicsr.evaluation.tables import markdown_table

COUNTS = ('num_statements', 'covered_lines', 'num_branches', 'covered_branches')


def share(counts: Mapping[str, int]) -> float:
    """Percent of statements and branches that were run, coverage's own total."""
    return (
        100
        * (counts['covered_lines'] + counts['covered_branches'])
        / (counts['num_statements'] + counts['num_branches'])
    )


def rooms(report: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """The counts of each folder of the package, and of the modules that are in none.

    Args:
        report: what ``coverage json`` writes.
    """
    found: dict[str, dict[str, int]] = {}
    for path, entry in report['files'].items():
        room = found.setdefault(Path(path).parent.as_posix(), dict.fromkeys(COUNTS, 0))
        for count in COUNTS:
            room[count] += entry['summary'][count]
    return {room if room != '.' else 'facd_cli.py': counts for room, counts in sorted(found.items())}


def table(report: Mapping[str, Any]) -> str:
    """A row for each room, and one for all."""
    rows = [row(f'`{room}`', counts) for room, counts in rooms(report).items()]
    return markdown_table(['', 'statements', 'branches', 'run'], [*rows, row('all', report['totals'])])


def row(title: str, counts: Mapping[str, int]) -> list[str]:
    return [title, str(counts['num_statements']), str(counts['num_branches']), f'{share(counts):.1f} %']


def total(report: Mapping[str, Any]) -> str:
    gpu = 'a GPU' if torch.cuda.is_available() else 'no GPU'
    return (
        f'`make test` runs {share(report["totals"]):.0f} % of the statements and branches of the package '
        f'(Python {platform.python_version()}, {gpu}).'
    )


PARTS = {'total': total, 'rooms': table}


def fill(pages: Iterable[Path], report: Mapping[str, Any]) -> None:
    """Makes the blocks of pages anew.

    Raises:
        UserError: a page has no block, or one of an unknown part.
    """

    def content(found: re.Match) -> str:
        if found['part'] not in PARTS:
            raise UserError(f'<!-- coverage: {found["part"]} -->: accepted: {", ".join(PARTS)}')
        return PARTS[found['part']](report)

    for page in pages:
        text, count = with_blocks(page.read_text(encoding='utf-8'), r'<!-- coverage: (?P<part>\S+) -->', content)
        if count == 0:
            raise UserError(f'{page}: no block; accepted: one that begins with <!-- coverage: total -->')
        page.write_text(text, encoding='utf-8')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('report', type=Path, help='What make test has measured: coverage/coverage.json.')
    parser.add_argument('--into', type=Path, nargs='+', required=True, metavar='PAGE')
    args = parser.parse_args()
    if not args.report.is_file():
        raise UserError(f'{args.report}: no such file; accepted: coverage/coverage.json, once make test has written it')
    fill(args.into, json.loads(args.report.read_text(encoding='utf-8')))


if __name__ == '__main__':
    run_command(main)
