"""The paper's tables: quality on benchmark sets (Table 2) and feature PSNR (Table 4), method by method."""

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from facd_basicsr.errors import UserError
from facd_basicsr.evaluation.benchmark_sets import Pair
from facd_basicsr.evaluation.complexity import parameters
from facd_basicsr.evaluation.feature_psnr import feature_scores
from facd_basicsr.evaluation.methods import TEACHER, Method
from facd_basicsr.evaluation.quality import score
from facd_basicsr.evaluation.table import Cell

# metric: title, digits after the point
QUALITY = {'psnr_y': ('PSNR-Y', 3), 'ssim_y': ('SSIM-Y', 4), 'psnr_rgb': ('PSNR-RGB', 3)}
NONE = '-'

Means = dict[str, dict[str, dict[str, float]]]  # method, set, metric


class Table(NamedTuple):
    """What :mod:`facd_basicsr.evaluation.table` writes."""

    header: list[str]
    rows: list[list[str]]
    groups: list[str]
    bold: set[Cell]


def evaluate(methods: Sequence[Method], images: Iterable[Pair]) -> Iterator[dict[str, Any]]:
    """Scores every method on every image, one record for each.

    Images are 8-bit, rounded, without ``scale`` pixels of border: see :func:`facd_basicsr.evaluation.quality.score`.

    Args:
        methods: those with taps are compared with the teacher's features, if the teacher is among them with taps.
        images: the images of all sets.

    Yields:
        ``method``, ``set``, ``image``, ``psnr_y`` and ``psnr_rgb`` in dB, ``ssim_y``, and for a student with taps
        what :func:`facd_basicsr.evaluation.feature_psnr.feature_scores` gives, unless the image's size keeps a tap
        from being read. PSNR of equal images is infinite.
    """
    ordered = sorted(methods, key=lambda method: method.name != TEACHER)  # its features are needed by the others
    for pair in images:
        records: dict[str, dict[str, Any]] = {}
        teacher_feats: tuple[Tensor, ...] = ()
        for method in ordered:
            try:
                sr, feats = method.upscale_with_features(pair.lq)
            except UserError:  # of an image's size only: taps were tried before
                sr, feats = method.upscale(pair.lq), ()
            record = scored(method.name, pair, sr, method.scale)
            if method.name == TEACHER:
                teacher_feats = feats
            elif feats and teacher_feats:
                record |= feature_scores(feats, teacher_feats)
            records[method.name] = record
        yield from (records[method.name] for method in methods)


def scored(method: str, pair: Pair, sr: np.ndarray, scale: int) -> dict[str, Any]:
    """The record of a method's image, BGR uint8 (H, W, 3): ``method``, ``set``, ``image`` and the three metrics."""
    figures = {key: float(value) for key, value in score(sr, pair.gt, scale, pair.gray).items()}
    return {'method': method, 'set': pair.set, 'image': pair.image, **figures}


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


def quality_table(methods: Sequence[Method], mean: Means) -> Table:
    """Methods x sets of PSNR-Y, SSIM-Y and PSNR-RGB, with the parameters."""
    columns = [(name, metric, *QUALITY[metric]) for name in mean[methods[0].name] for metric in QUALITY]
    counts = [NONE if method.net is None else f'{parameters(method.net):,}' for method in methods]
    table = _table(methods, mean, columns)
    return Table(
        [*table.header[:1], 'parameters', *table.header[1:]],
        [[name, count, *cells] for (name, *cells), count in zip(table.rows, counts)],
        ['', *table.groups],
        {(row, column + 1) for row, column in table.bold},
    )


def feature_table(methods: Sequence[Method], mean: Means, points: int) -> Table:
    """Students x sets of the feature PSNR at each of the matching points, the shallowest first, and their mean."""
    metrics = {f'feature_psnr_{j}': f'point {j}' for j in range(1, points + 1)} | {'feature_psnr': 'mean'}
    columns = [(name, metric, title, 3) for name in mean[methods[0].name] for metric, title in metrics.items()]
    return _table([method for method in methods if is_student(method)], mean, columns)


def _table(methods: Sequence[Method], mean: Means, columns: Sequence[tuple[str, str, str, int]]) -> Table:
    """A row for each method, a column for each (set, metric, title, digits); the best student's cells are bold."""

    def cell(method: Method, name: str, metric: str, digits: int) -> str:
        value = mean[method.name][name].get(metric)
        return NONE if value is None else f'{value:.{digits}f}'

    rows = [
        [method.name, *(cell(method, name, metric, digits) for name, metric, _, digits in columns)]
        for method in methods
    ]
    students = [row for row, method in enumerate(methods) if is_student(method)]
    bold = set()
    for column in range(1, len(columns) + 1):
        figures = {row: float(rows[row][column]) for row in students if rows[row][column] != NONE}
        if len(figures) > 1:
            bold |= {(row, column) for row, figure in figures.items() if figure == max(figures.values())}
    return Table(
        ['method', *(title for _, _, title, _ in columns)], rows, ['', *(name for name, _, _, _ in columns)], bold
    )


def is_student(method: Method) -> bool:
    return method.net is not None and method.name != TEACHER


def to_csv(records: Sequence[dict[str, Any]]) -> str:
    """One line for each method and image; an infinite PSNR is ``inf``, and what there is not is empty."""
    text = io.StringIO()
    longest = max(records, key=len)
    writer = csv.DictWriter(text, _ordered(longest), restval='', lineterminator='\n')
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _ordered(record: dict[str, Any]) -> list[str]:
    first = ['method', 'set', 'image', *QUALITY]
    return [*first, *(key for key in record if key not in first)]


def to_json(results: dict[str, Any]) -> str:
    """Indented JSON; numbers that it has no word for, an infinite PSNR, are ``null``."""
    return json.dumps(_finite(results), indent=1, allow_nan=False) + '\n'


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
