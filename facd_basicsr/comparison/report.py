"""The report of a comparison: tables, CSV and the words beneath, from records alone."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from facd_basicsr.comparison.statistics import holm, paired_difference, spread
from facd_basicsr.evaluation.benchmark import NONE, Table
from facd_basicsr.evaluation.table import markdown_table

LEVELS = ((0.01, '**'), (0.05, '*'))
METRICS = {'psnr_y': 3, 'ssim_y': 4, 'psnr_rgb': 3, 'feature_psnr': 3}  # digits after the point


def by_method(results: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The runs' records by method, in the comparison's order, without methods that have none yet."""
    found: dict[str, list[dict[str, Any]]] = {}
    for record in results['runs']:
        found.setdefault(record['method'], []).append(record)
    return {method: found[method] for method in results['methods'] if method in found}


def quality_table(results: Mapping[str, Any], metric: str = 'psnr_y') -> Table:
    """Methods x sets: mean and standard deviation over seeds, and the paired difference to the baseline.

    Differences are marked by Holm-corrected paired t-tests, over the methods of a set; the best student is bold.
    """
    runs, digits = by_method(results), METRICS[metric]
    sets = list(results['references'][0]['means'])
    rows = []
    bold = set()
    for record in results['references']:
        cells = []
        for name in sets:
            value = record['means'][name].get(metric)
            cells += [NONE if value is None else f'{value:.{digits}f}', NONE]
        rows.append([record['method'], NONE, *cells])
    first = len(rows)
    rows += [[method, str(len(records))] for method, records in runs.items()]
    for column, name in enumerate(sets):
        values = {method: _by_seed(records, name, metric) for method, records in runs.items()}
        differences = {
            method: None if method == results['baseline'] else paired_difference(found, values[results['baseline']])
            for method, found in values.items()
            if results['baseline'] in values
        }
        corrected = holm([difference and difference.p for difference in differences.values()])
        marks = dict(zip(differences, map(_mark, corrected)))
        shown = {}
        for row, (method, found) in enumerate(values.items(), start=first):
            if not found:
                rows[row] += [NONE, NONE]
                continue
            mean, sd, _ = spread(list(found.values()))
            shown[row] = round(mean, digits)
            difference = differences.get(method)
            rows[row].append(f'{mean:.{digits}f}' + ('' if sd is None else f' ± {sd:.{digits}f}'))
            rows[row].append(NONE if difference is None else f'{difference.mean:+.{digits}f}{marks[method]}')
        if len(shown) > 1:
            bold |= {(row, 2 + 2 * column) for row, mean in shown.items() if mean == max(shown.values())}
    header = ['method', 'seeds', *(title for _ in sets for title in ('mean ± sd', f'to {results["baseline"]}'))]
    return Table(header, rows, ['', '', *(name for name in sets for _ in range(2))], bold)


def cost_table(results: Mapping[str, Any]) -> Table:
    """Methods x parameters, FLOPs, latency, iterations, milliseconds an iteration and minutes of training."""
    runs = by_method(results)
    rows = [
        [record['method'], *_network_cost(record, results), NONE, NONE, NONE, NONE]
        for record in results['references']
        if 'parameters' in record
    ]
    seconds = {method: _mean(records, 'train_seconds') for method, records in runs.items()}
    base = seconds.get(results['baseline'])
    for method, records in runs.items():
        per_iter, total = _mean(records, 'seconds_per_iter'), seconds[method]
        rows.append(
            [
                method,
                *_network_cost(records[0], results),
                f'{records[0]["iterations"]:,}',
                NONE if per_iter is None else f'{1000 * per_iter:.0f}',
                NONE if total is None else f'{total / 60:.1f}',
                NONE if not (total and base) else f'{total / base:.2f}',
            ]
        )
    header = ['method', 'parameters', 'GFLOPs', 'ms/image', 'iterations', 'ms/iteration', 'minutes', 'to baseline']
    return Table(header, rows, [''] * len(header), set())


def feature_table(results: Mapping[str, Any]) -> Table | None:
    """Table 4, the PSNR of features to the teacher's, and whether a regressor comes before; None where no run has it.

    The paper holds features with and without regressors not to be comparable.
    """
    runs = by_method(results)
    have = [method for method, records in runs.items() if any(_features(record) for record in records)]
    if not have:
        return None
    table = quality_table(
        {**results, 'references': results['references'][:1], 'methods': have, 'baseline': None}, 'feature_psnr'
    )
    means = [[cell for column, cell in enumerate(row) if column < 2 or column % 2 == 0] for row in table.rows[1:]]
    rows = [
        [*row[:2], 'regressors' if runs[row[0]][0]['through_regressors'] else 'as they are', *row[2:]] for row in means
    ]
    sets = table.groups[2::2]
    bold = {(row - 1, 3 + (column - 2) // 2) for row, column in table.bold}
    return Table(['method', 'seeds', 'features', *sets], rows, [''] * (3 + len(sets)), bold)


def feature_notes(results: Mapping[str, Any]) -> list[str]:
    """Why a method has no feature PSNR, or what to know of it; a line each, in the words of its first seed."""
    return [note for records in by_method(results).values() for note in records[0]['notes']]


def caption(results: Mapping[str, Any]) -> str:
    """What a reader must know of the tables, in a few sentences."""
    runs, baseline = results['runs'], results['baseline']
    seeds = sorted({run['seed'] for run in runs})
    notes = []
    if len(seeds) > 1:
        notes.append(
            f'Mean ± standard deviation over seeds {", ".join(map(str, seeds))}. "to {baseline}" is the mean of the '
            'differences seed by seed; * and ** are p < 0.05 and p < 0.01 of paired t-tests, corrected by Holm over '
            'the methods of each set.'
        )
    else:
        notes.append(f'One seed, {", ".join(map(str, seeds))}, so nothing is said of significance.')
    notes.append(f'Methods of a seed have the same initial weights, data order and settings as {baseline}.')
    for method, keys in results['differing'].items():
        notes.append(f'{method} differs from it in {", ".join(keys)}.')
    machines = ', '.join(dict.fromkeys(run['machine'] for run in runs))
    jobs, threads = (max((run[key] for run in runs), default=1) for key in ('jobs', 'threads'))
    notes.append(
        'FLOPs (two for each multiply-add) and ms/image are of one 1280x720 output. ms/iteration is the median between '
        f'log lines; minutes are iterations times that: {machines}, {jobs} training{"s" * (jobs > 1)} at a time, '
        f'{threads} CPU thread{"s" * (threads > 1)} each.'
    )
    return ' '.join(notes)


def to_csv(results: Mapping[str, Any]) -> str:
    """One line for each method, seed and set."""
    text = io.StringIO()
    costs = ('iterations', 'seconds_per_iter', 'train_seconds', 'parameters', 'flops')
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['method', 'seed', 'set', *METRICS, *costs])
    for record in [*results['references'], *results['runs']]:
        for name, found in record['means'].items():
            writer.writerow(
                [
                    record['method'],
                    record.get('seed', ''),
                    name,
                    *(_blank(found.get(metric)) for metric in METRICS),
                    *(_blank(record.get(cost)) for cost in costs),
                ]
            )
    return text.getvalue()


def _by_seed(records: Sequence[Mapping[str, Any]], name: str, metric: str) -> dict[int, float]:
    """{seed: value}, without values that are not finite, which JSON has as none."""
    values = {record['seed']: record['means'][name].get(metric) for record in records}
    return {seed: value for seed, value in values.items() if value is not None}


def _mark(p: float | None) -> str:
    return '' if p is None else next((mark for level, mark in LEVELS if p < level), '')


def _network_cost(record: Mapping[str, Any], results: Mapping[str, Any]) -> list[str]:
    ms = results['latency_ms'].get(record['method'])
    return [f'{record["parameters"]:,}', f'{record["flops"] / 1e9:.1f}', NONE if ms is None else f'{ms:.0f}']


def _mean(records: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [record[key] for record in records if record[key] is not None]
    return sum(values) / len(values) if values else None


def _features(record: Mapping[str, Any]) -> bool:
    return any('feature_psnr' in found for found in record['means'].values())


def _blank(value: Any) -> Any:
    return '' if value is None else value


# What a page or table.md may show of a comparison, as Markdown.
PARTS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    'quality': lambda results: markdown_table(*quality_table(results)),
    'cost': lambda results: markdown_table(*cost_table(results)),
    'features': lambda results: markdown_table(*table) if (table := feature_table(results)) else NONE,
    'feature_notes': lambda results: '\n'.join(f'- {note}' for note in feature_notes(results)) or NONE,
    'caption': caption,
}
