"""Tables of text, Markdown, LaTeX and HTML."""

import html
import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence

Cell = tuple[int, int]  # row, column

# For the head of a file of latex_table's: nothing with booktabs, and without that package plain lines.
LATEX_RULES = r"""\providecommand{\toprule}{\hline}
\providecommand{\midrule}{\hline}
\providecommand{\bottomrule}{\hline}
\providecommand{\cmidrule}[1]{\cline{#1}}"""
LATEX_SPECIAL = {
    '\\': r'\textbackslash{}',
    '~': r'\textasciitilde{}',
    '^': r'\textasciicircum{}',
    **{character: f'\\{character}' for character in '&%$#_{}'},
}


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], groups: Sequence[str] = ()) -> str:
    """Aligned columns, the first to the left, the others to the right, with a rule under the header.

    Args:
        header: each column's title.
        rows: the cells.
        groups: a title for each column that neighbours share, empty for none; goes above the header.
    """
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    for title, start, end in _spans(groups):
        widths[end - 1] += max(0, len(title) - _joined(widths[start:end]))

    def line(cells: Sequence[str]) -> str:
        first, *others = (cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths)))
        return '  '.join([first, *others])

    above = ['  '.join(title.center(_joined(widths[start:end])) for title, start, end in _spans(groups)).rstrip()]
    return '\n'.join([*(above if groups else []), line(header), '  '.join('-' * w for w in widths), *map(line, rows)])


def markdown_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    groups: Sequence[str] = (),
    bold: Collection[Cell] = (),
    numbers: bool = True,
) -> str:
    """As :func:`text_table` for Markdown, where a column's title begins with its group's. ``bold``: (row, column).

    Not ``numbers``: all columns are text, to the left.
    """
    titles = [f'{group} {title}'.strip() for group, title in zip(groups or [''] * len(header), header)]
    cells = [
        [f'**{_md(cell)}**' if (i, j) in bold else _md(cell) for j, cell in enumerate(row)]
        for i, row in enumerate(rows)
    ]
    rule = ['---', *['---:' if numbers else '---'] * (len(header) - 1)]
    return '\n'.join(f'| {" | ".join(line)} |' for line in [list(map(_md, titles)), rule, *cells])


def latex_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], groups: Sequence[str] = (), bold: Collection[Cell] = ()
) -> str:
    """As :func:`markdown_table` for LaTeX: a ``tabular`` with booktabs' rules, which ``LATEX_RULES`` replace."""
    lines = [rf'\begin{{tabular}}{{l{"r" * (len(header) - 1)}}}', r'\toprule']
    if groups:
        spans = list(_spans(groups))
        titles = [
            rf'\multicolumn{{{end - start}}}{{c}}{{{_tex(title)}}}' if title else '' for title, start, end in spans
        ]
        lines.append(_latex_line(titles))
        lines.append(' '.join(rf'\cmidrule{{{start + 1}-{end}}}' for title, start, end in spans if title))
    lines += [_latex_line(map(_tex, header)), r'\midrule']
    for i, row in enumerate(rows):
        cells = (rf'\textbf{{{_tex(cell)}}}' if (i, j) in bold else _tex(cell) for j, cell in enumerate(row))
        lines.append(_latex_line(cells))
    return '\n'.join([*lines, r'\bottomrule', r'\end{tabular}'])


def html_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], groups: Sequence[str] = (), bold: Collection[Cell] = ()
) -> str:
    """As :func:`markdown_table` for HTML, with the groups' titles above their columns; every cell is escaped."""
    lines = []
    if groups:
        spans = [
            f'<th scope="colgroup" colspan="{end - start}">{html.escape(title)}</th>' if title else '<td></td>'
            for title, start, end in _spans(groups)
        ]
        lines.append(f'<tr>{"".join(spans)}</tr>')
    lines.append(f'<tr>{"".join(f"""<th scope="col">{html.escape(title)}</th>""" for title in header)}</tr>')
    body = []
    for i, (first, *others) in enumerate(rows):
        cells = [
            f'<td><b>{html.escape(cell)}</b></td>' if (i, j) in bold else f'<td>{html.escape(cell)}</td>'
            for j, cell in enumerate(others, start=1)
        ]
        body.append(f'<tr><th scope="row">{html.escape(first)}</th>{"".join(cells)}</tr>')
    return '\n'.join(['<table>', '<thead>', *lines, '</thead>', '<tbody>', *body, '</tbody>', '</table>'])


def _latex_line(cells: Iterable[str]) -> str:
    return rf'{" & ".join(cells)} \\'


def _spans(groups: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """(title, first column, column after the last); columns without a title stand alone."""
    for _, group in itertools.groupby(enumerate(groups), lambda item: item[1] or item[0]):
        columns = [column for column, _ in group]
        start, end = columns[0], columns[-1] + 1
        yield groups[start], start, end


def _joined(widths: Sequence[int]) -> int:
    return sum(widths) + 2 * (len(widths) - 1)


def _md(cell: str) -> str:
    return cell.replace('|', r'\|')


def _tex(cell: str) -> str:
    return ''.join(LATEX_SPECIAL.get(character, character) for character in cell)
