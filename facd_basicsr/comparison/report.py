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

Records = Mapping[str, Sequence[Mapping[str, Any]]]  # by method, one for each seed


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
            shown[row] = mean
            difference = differences.get(method)
            rows[row].append(f'{mean:.{digits}f}' + ('' if sd is None else f' ± {sd:.{digits}f}'))
            rows[row].append(NONE if difference is None else f'{difference.mean:+.{digits}f}{marks[method]}')
        if len(shown) > 1:
            bold |= {(row, 2 + 2 * column) for row, mean in shown.items() if mean == max(shown.values())}
    header = ['method', 'seeds', *(title for _ in sets for title in ('mean ± sd', f'to {results["baseline"]}'))]
    return Table(header, rows, ['', '', *(name for name in sets for _ in range(2))], bold)


def cost_table(results: Mapping[str, Any]) -> Table:
    """Methods x parameters, FLOPs, latency, iterations, seconds an iteration and minutes of training."""
    runs = by_method(results)
    rows = []
    for record in results['references']:
        if 'parameters' in record:
            rows.append([record['method'], *_network_cost(record), NONE, NONE, NONE, NONE])
    own = {method: _mean(records, 'train_seconds') for method, records in runs.items()}
    for method, records in runs.items():
        per_iter, total, base = _mean(records, 'seconds_per_iter'), own[method], own.get(results['baseline'])
        rows.append(
            [
                method,
                *_network_cost(records[0]),
                f'{records[0]["iterations"]:,}',
                NONE if per_iter is None else f'{1000 * per_iter:.0f}',
                NONE if total is None else f'{total / 60:.1f}',
                NONE if not (total and base) else f'{total / base:.2f}',
            ]
        )
    header = ['method', 'parameters', 'GFLOPs', 'ms/image', 'iterations', 'ms/iteration', 'minutes', 'to baseline']
    return Table(header, rows, [''] * len(header), set())


def feature_table(results: Mapping[str, Any]) -> Table | None:
    """Table 4, features' PSNR to the teacher's; None where no run has it."""
    have = [method for method, records in by_method(results).items() if _any_features(records)]
    if not have:
        return None
    trimmed = {
        **results,
        'references': results['references'][:1],
        'methods': [method for method in results['methods'] if method in have],
    }
    table = quality_table(trimmed, 'feature_psnr')
    return Table(table.header, table.rows[1:], table.groups, {(row - 1, column) for row, column in table.bold})


def caption(results: Mapping[str, Any]) -> str:
    """What a reader must know of the tables, in a few sentences."""
    runs = results['runs']
    seeds = sorted({run['seed'] for run in runs})
    baseline = results['baseline']
    machines = ', '.join(dict.fromkeys(run['machine'] for run in runs))
    notes = [
        f'Mean ± standard deviation over seeds {", ".join(map(str, seeds))}; every method has the same initial weights '
        f'and data order as {baseline} with the same seed.',
        f'"to {baseline}" is the mean of the differences seed by seed; * and ** are p < 0.05 and p < 0.01 of paired '
        't-tests, corrected by Holm over the methods.',
        'FLOPs (two for each multiply-add) and ms/image are of one 1280x720 output. ms/iteration is the median between '
        f'log lines; minutes are iterations times that. {machines}.',
    ]
    jobs = max((run['jobs'] for run in runs), default=1)
    if jobs > 1:
        notes.append(f'Times are of {jobs} trainings side by side.')
    resumed = [f'{run["method"]} seed {run["seed"]}' for run in runs if run['resumed']]
    if resumed:
        notes.append(f'Resumed, so with another data order from there on: {", ".join(resumed)}.')
    return ' '.join(notes)


def to_csv(results: Mapping[str, Any]) -> str:
    """One line for each method, seed and set."""
    text = io.StringIO()
    costs = ('iterations', 'seconds_per_iter', 'train_seconds', 'parameters', 'flops', 'latency_ms')
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['method', 'seed', 'set', *METRICS, *costs])
    for record in [*results['references'], *results['runs']]:
        for name, found in record['means'].items():
            writer.writerow(
                [
                    record['method'],
                    record.get('seed', ''),
                    name,
                    *(found.get(metric, '') for metric in METRICS),
                    *(_blank(record.get(cost)) for cost in costs),
                ]
            )
    return text.getvalue()


def _by_seed(records: Sequence[Mapping[str, Any]], name: str, metric: str) -> dict[int, float]:
    return {record['seed']: record['means'][name][metric] for record in records if metric in record['means'][name]}


def _mark(p: float | None) -> str:
    return '' if p is None else next((mark for level, mark in LEVELS if p < level), '')


def _network_cost(record: Mapping[str, Any]) -> list[str]:
    return [f'{record["parameters"]:,}', f'{record["flops"] / 1e9:.1f}', f'{record["latency_ms"]:.0f}']


def _mean(records: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [record[key] for record in records if record[key] is not None]
    return sum(values) / len(values) if values else None


def _any_features(records: Sequence[Mapping[str, Any]]) -> bool:
    return any('feature_psnr' in found for record in records for found in record['means'].values())


def _blank(value: Any) -> Any:
    return '' if value is None else value


# What a page or table.md may show of a comparison, as Markdown.
PARTS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    'quality': lambda results: markdown_table(*quality_table(results)),
    'cost': lambda results: markdown_table(*cost_table(results)),
    'features': lambda results: markdown_table(*table) if (table := feature_table(results)) else 'none',
    'caption': caption,
}
