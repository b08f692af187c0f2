"""Runs what docs/networks.md says of each network, and writes its table.

    python docs/networks_page.py --into docs/networks.md
    python docs/networks_page.py --into docs/networks.md --only SwinIR "RRDBNet x2" --columns ONNX

The page is written after each network; with ``--only`` and ``--columns`` the other cells stay as they are. A cell is
run by its function in tests/networks.py. The column compile takes as long as all others together.
"""

import argparse
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'tests'))

import facd_basicsr  # noqa: F401  must come before basicsr

# isort: split
from networks import COLUMNS, NETWORKS, YES, outcome

from facd_basicsr.comparison.summary import END, with_blocks
from facd_basicsr.errors import UserError, reraise_disk_errors, run_command
from facd_basicsr.evaluation.tables import markdown_table

MARKER = '<!-- networks -->'
NOT_RUN = '-'
NUMBER = re.compile(r'no \((?P<number>\d+)\)')
REASON = re.compile(r'^(?P<number>\d+)\. (?P<reason>.+)$', re.MULTILINE)
Cells = Mapping[str, Mapping[str, str]]  # of each network by column, if it was run: YES, or the reason why not


def table(cells: Cells) -> str:
    """The Markdown table, and below it the numbered reasons of its cells."""
    reasons: dict[str, int] = {}

    def cell(found: str) -> str:
        return found if found in (YES, NOT_RUN) else f'no ({reasons.setdefault(found, len(reasons) + 1)})'

    rows = [[name, *(cell(found.get(column, NOT_RUN)) for column in COLUMNS)] for name, found in cells.items()]
    made = markdown_table(['network', *COLUMNS], rows, numbers=False)
    return '\n\n'.join([made, '\n'.join(f'{number}. {reason}' for reason, number in reasons.items())]).rstrip()


def cells_of(page: str) -> dict[str, dict[str, str]]:
    """The reverse of :func:`table`, of a page that has it."""
    text = page.partition(MARKER)[2].partition(END)[0]
    reasons = {found['number']: found['reason'] for found in REASON.finditer(text)}
    cells = {}
    for line in text.splitlines():
        name, *found = [cell.strip() for cell in line.strip('|').split('|')]
        if len(found) == len(COLUMNS) and all(cell in (YES, NOT_RUN) or NUMBER.fullmatch(cell) for cell in found):
            cells[name] = {
                column: reasons[number['number']] if (number := NUMBER.fullmatch(cell)) else cell
                for column, cell in zip(COLUMNS, found)
                if cell != NOT_RUN
            }
    return cells


def with_table(page: str, cells: Cells) -> str:
    """The page with another table."""
    return with_blocks(page, MARKER, lambda found: table(cells))[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--into', type=Path, required=True, help='the page, docs/networks.md')
    parser.add_argument('--only', nargs='+', metavar='NETWORK', help='the rows to run; default: all')
    parser.add_argument('--columns', nargs='+', choices=COLUMNS, default=list(COLUMNS), help='default: all')
    args = parser.parse_args()
    names = [network.name for network in NETWORKS]
    if unknown := set(args.only or ()) - set(names):
        raise UserError(f'--only: {", ".join(sorted(unknown))}; accepted: {", ".join(names)}')
    known = cells_of(args.into.read_text(encoding='utf-8'))
    for network in NETWORKS:
        if args.only and network.name not in args.only:
            continue
        known.setdefault(network.name, {})
        for column in [column for column in network.columns if column in args.columns]:
            start = time.perf_counter()
            known[network.name][column] = found = outcome(network, column)
            print(f'{network.name}, {column}: {found} ({time.perf_counter() - start:.1f} s)', flush=True)
        with reraise_disk_errors():
            page = args.into.read_text(encoding='utf-8')
            ordered = {name: known[name] for name in names if name in known}
            args.into.write_text(with_table(page, ordered), encoding='utf-8')


if __name__ == '__main__':
    run_command(main)
