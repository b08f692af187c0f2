"""The paper's tables, quality (Table 2) and feature PSNR (Table 4), as text, Markdown, LaTeX and CSV."""

import csv
import io
import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from basicsr.utils.registry import METRIC_REGISTRY
from torch import Tensor

from facd_basicsr.errors import UserError
from facd_basicsr.evaluation.feature_psnr import feature_scores
from facd_basicsr.evaluation.methods import Method, is_teacher
from facd_basicsr.evaluation.test_sets import ImagePair, LqImage
from facd_basicsr.files.atomic import atomic_write
from facd_basicsr.runtime.metrics import BETTER, FAST, NIQE, niqe_options, score, scores

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
    'Δ': r'$\Delta$',  # pdfLaTeX has no Greek text letters
    **{character: f'\\{character}' for character in '&%$#_{}'},
}


def duration(seconds: float) -> str:
    """In the unit that people would say it in: ``54 s``, ``12.5 min``, ``3.2 h``."""
    hours, minutes = seconds / 3600, seconds / 60
    return f'{hours:.1f} h' if hours >= 2 else f'{minutes:.1f} min' if minutes >= 2 else f'{seconds:.0f} s'


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], groups: Sequence[str] = ()) -> str:
    """Aligned columns, the first to the left, the others to the right, with a rule under the header.

    Args:
        groups: a title for each column that neighbors share, empty for none; goes above the header.
    """
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    for title, start, end in column_spans(groups):
        widths[end - 1] += max(0, len(title) - _joined(widths[start:end]))

    def line(cells: Sequence[str]) -> str:
        first, *others = (cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths)))
        return '  '.join([first, *others])

    above = ['  '.join(title.center(_joined(widths[start:end])) for title, start, end in column_spans(groups)).rstrip()]
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
        spans = list(column_spans(groups))
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


def _latex_line(cells: Iterable[str]) -> str:
    return rf'{" & ".join(cells)} \\'


def column_spans(groups: Sequence[str]) -> Iterator[tuple[str, int, int]]:
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


# metric: title, digits after the point
QUALITY = {'psnr_y': ('PSNR-Y', 3), 'ssim_y': ('SSIM-Y', 4), 'psnr_rgb': ('PSNR-RGB', 3), NIQE: ('NIQE', 3)}
OTHER_DIGITS = 4  # of other metrics
RESERVED_NAMES = {'method', 'student', 'seed', 'set', 'image', 'feature_psnr', *QUALITY} - {NIQE}  # of columns
NONE = '-'

Means = dict[str, dict[str, dict[str, float]]]  # method, set, metric
MetricBlocks = Mapping[str, dict[str, Any]]  # of val.metrics, by name
NO_METRICS: MetricBlocks = MappingProxyType({})


def other_metrics(opt: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The metrics of a file's ``val.metrics`` that have a column beside PSNR and SSIM, each with ``better``: all but
    BasicSR's PSNR and SSIM, which are there by the papers' settings, and but those that are not registered here.

    Raises:
        UserError: one has the name of another column.
    """
    found = {}
    for name, block in ((opt.get('val') or {}).get('metrics') or {}).items():
        metric = METRIC_REGISTRY.get(block['type']) if block['type'] in METRIC_REGISTRY else None
        if metric is None or metric in FAST:
            continue
        if name in RESERVED_NAMES:
            raise UserError(
                f'val.metrics.{name}: {block["type"]}, but {name} is another column; accepted: another name'
            )
        found[name] = {**block, 'better': BETTER.get(metric) or block['better']}
    return found


def directions(others: MetricBlocks) -> list[str]:
    """Title and better value of each metric."""
    return [f'{QUALITY.get(name, (name,))[0]} ({block["better"]} is better)' for name, block in others.items()]


class Table(NamedTuple):
    """What :mod:`facd_basicsr.evaluation.tables` writes."""

    header: list[str]
    rows: list[list[str]]
    groups: list[str]
    bold: set[Cell]


def write_tables(made: Mapping[str, Table], notes: Iterable[str], folder: Path) -> None:
    """Writes table.md, which the notes end, and table.tex, and prints the tables, each under its title."""
    markdown = [f'{title}\n\n{markdown_table(*table)}\n' for title, table in made.items()]
    atomic_write(folder / 'table.md', '\n'.join([*markdown, *(f'{note}\n' for note in notes)]))
    latex = [f'% {title}\n{latex_table(*table)}\n' for title, table in made.items()]
    atomic_write(folder / 'table.tex', '\n'.join([f'{LATEX_RULES}\n', *latex]))
    for title, (header, rows, groups, _) in made.items():
        print(f'\n{title}\n\n{text_table(header, rows, groups)}')


def evaluate(
    methods: Sequence[Method], images: Iterable[LqImage], gray: bool = False, others: MetricBlocks = NO_METRICS
) -> Iterator[dict[str, Any]]:
    """Scores every method on every image, one record for each.

    Images are 8-bit, rounded, without ``scale`` pixels of border: see :func:`facd_basicsr.runtime.metrics.score`.

    Args:
        methods: those with taps are compared with the teachers' features, if teachers are among them with taps.
        gray: whether one-channel images are scored as gray, as in published values of bicubic.
        others: further metrics, of :func:`other_metrics`.

    Yields:
        ``method``, ``set``, ``image``, ``psnr_y`` and ``psnr_rgb`` in dB, ``ssim_y``, without ground truth ``niqe`` in
        their place, then ``others``, and for a student with taps
        what :func:`facd_basicsr.evaluation.feature_psnr.feature_scores` gives, unless the image's size keeps a tap
        from being read. PSNR of equal images is infinite.
    """
    ordered = sorted(methods, key=lambda method: not is_teacher(method.name))  # others need its features
    for image in images:
        records: dict[str, dict[str, Any]] = {}
        of_teachers: list[tuple[Tensor, ...]] = []
        for method in ordered:
            try:
                sr, feats = method.upscale_with_features(image.lq)
            except UserError:  # of an image's size only: taps were tried before
                sr, feats = method.upscale(image.lq), ()
            record = scored(method.name, image, sr, method.scale, gray, others)
            if is_teacher(method.name):
                of_teachers.append(feats)
            elif feats and of_teachers and all(of_teachers):
                teacher_feats = sum(of_teachers, ())
                record |= feature_scores(feats * (len(teacher_feats) // len(feats)), teacher_feats)
            records[method.name] = record
        yield from (records[method.name] for method in methods)


def scored(
    method: str, image: LqImage, sr: np.ndarray, scale: int, gray: bool = False, others: MetricBlocks = NO_METRICS
) -> dict[str, Any]:
    """The record of a method's image, BGR uint8 (H, W, 3): ``method``, ``set``, ``image`` and the metrics."""
    if isinstance(image, ImagePair):
        metrics = score(sr, image.gt, scale, gray and image.gray) | scores(sr, image.gt, others)
    else:
        metrics = scores(sr, None, {NIQE: niqe_options(scale), **others})
    values = {key: float(value) for key, value in metrics.items()}
    return {'method': method, 'set': image.set, 'image': image.image, **values}


def means(records: Sequence[dict[str, Any]]) -> Means:
    """The mean over a set's images of every metric, for each method and set."""
    values: dict[str, dict[str, dict[str, list[float]]]] = {}
    for record in records:
        of_set = values.setdefault(record['method'], {}).setdefault(record['set'], {})
        for metric in record.keys() - {'method', 'set', 'image'}:
            of_set.setdefault(metric, []).append(record[metric])
    return {
        method: {
            name: {metric: float(np.mean(by_image)) for metric, by_image in sorted(metrics.items())}
            for name, metrics in sets.items()
        }
        for method, sets in values.items()
    }


def quality_table(methods: Sequence[Method], mean: Means, others: MetricBlocks = NO_METRICS) -> Table:
    """Methods x sets of PSNR-Y, SSIM-Y and PSNR-RGB, or without ground truth NIQE, then ``others``, with the
    parameters."""
    columns = [
        (name, metric, *QUALITY.get(metric, (metric, OTHER_DIGITS)))
        for name, values in mean[methods[0].name].items()
        for metric in dict.fromkeys([*QUALITY, *others])
        if metric in values
    ]
    counts = [NONE if method.net is None else f'{method.parameters:,}' for method in methods]
    better = {NIQE: 'lower', **{name: block['better'] for name, block in others.items()}}
    lower = [name for name, direction in better.items() if direction == 'lower']
    return _table(methods, mean, columns, {'parameters': counts}, lower)


def feature_table(methods: Sequence[Method], mean: Means, points: int) -> Table:
    """Students x sets of the feature PSNR at each of the matching points with each teacher, the shallowest first, and
    their mean."""
    teachers = [method.name for method in methods if is_teacher(method.name)]
    of = [f'{name}, ' for name in teachers] if len(teachers) > 1 else ['']
    titles = [f'{name}point {j}' for name in of for j in range(1, points + 1)]
    metrics = {f'feature_psnr_{j}': title for j, title in enumerate(titles, start=1)} | {'feature_psnr': 'mean'}
    columns = [(name, metric, title, 3) for name in mean[methods[0].name] for metric, title in metrics.items()]
    return _table([method for method in methods if is_student(method)], mean, columns, {})


def _table(
    methods: Sequence[Method],
    mean: Means,
    columns: Sequence[tuple[str, str, str, int]],
    before: Mapping[str, Sequence[str]],
    lower: Collection[str] = (),
) -> Table:
    """A row for each method, a column for each (set, metric, title, digits), behind those that stand ``before`` by
    their titles; the best student's cells are bold, that of the metrics in ``lower`` being the lowest."""

    def cell(method: Method, name: str, metric: str, digits: int) -> str:
        value = mean[method.name][name].get(metric)
        return NONE if value is None else f'{value:.{digits}f}'

    rows = [
        [method.name, *own, *(cell(method, name, metric, digits) for name, metric, _, digits in columns)]
        for method, *own in zip(methods, *before.values())
    ]
    titles = ['method', *before]
    students = [row for row, method in enumerate(methods) if is_student(method)]
    bold = set()
    for column, (_, metric, _, _) in enumerate(columns, start=len(titles)):
        figures = {row: float(rows[row][column]) for row in students if rows[row][column] != NONE}
        if len(figures) > 1:
            best = (min if metric in lower else max)(figures.values())
            bold |= {(row, column) for row, figure in figures.items() if figure == best}
    header = [*titles, *(title for _, _, title, _ in columns)]
    return Table(header, rows, [*([''] * len(titles)), *(name for name, _, _, _ in columns)], bold)


def is_student(method: Method) -> bool:
    return method.net is not None and not is_teacher(method.name)


def to_csv(records: Sequence[dict[str, Any]]) -> str:
    """One line for each method and image; an infinite PSNR is ``inf``, and what there is not is empty."""
    text = io.StringIO()
    there = {metric for record in records for metric in record}
    quality = [metric for metric in QUALITY if metric in there]
    columns = dict.fromkeys(['method', 'set', 'image', *quality, *(key for record in records for key in record)])
    writer = csv.DictWriter(text, list(columns), restval='', lineterminator='\n')
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def to_json(results: dict[str, Any]) -> str:
    """Indented JSON; numbers that JSON cannot hold, such as an infinite PSNR, are ``null``."""
    finite = json.loads(json.dumps(results), parse_constant=lambda constant: None)
    return json.dumps(finite, indent=1, allow_nan=False) + '\n'
