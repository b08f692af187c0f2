"""The report of a comparison: paired differences with Holm-corrected tests, tables, CSV, captions, curves, pages."""

import csv
import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from cycler import cycler
from matplotlib import rcParams
from matplotlib.figure import Figure
from scipy import stats

from facd_basicsr.errors import UserError
from facd_basicsr.evaluation.tables import NONE, OTHER_DIGITS, Table, directions, markdown_table

LEVELS = ((0.01, '**'), (0.05, '*'))
METRICS = {'psnr_y': 3, 'ssim_y': 4, 'psnr_rgb': 3, 'feature_psnr': 3}  # digits after the point
END = '<!-- end -->'
ALPHA, VALIDATION = 'alpha', 'metrics/'  # tags of curves
BINS = 20  # points that are drawn of the share of rejected patches


class Difference(NamedTuple):
    """A method minus the baseline over the seeds that both have.

    Attributes:
        mean: of the differences.
        p: of Student's paired t-test, two-sided; None where there is one seed or a value is not finite. 0 where all
            differences are equal.
    """

    mean: float
    p: float | None


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation (n - 1 in the denominator); one value has no deviation."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """Of {seed: value} of a method and of the baseline; None where they have no seed in common."""
    differences = [values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())]
    if not differences:
        return None
    mean, sd = spread(differences)
    if sd is None or not math.isfinite(mean):
        return Difference(mean, None)
    if sd == 0:
        return Difference(mean, 1.0 if mean == 0 else 0.0)
    t = abs(mean) / (sd / math.sqrt(len(differences)))
    return Difference(mean, float(2 * stats.t.sf(t, len(differences) - 1)))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's correction for multiple tests; None stays None.

    It bounds the probability of any false positive by the level.
    """
    order = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = accumulate(((len(order) - rank) * p for rank, (p, _) in enumerate(order)), max)
    for (_, index), p in zip(order, largest):
        adjusted[index] = min(1.0, p)
    return adjusted


def by_method(results: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The runs' records by method, in the comparison's order, without methods that have none yet."""
    found: dict[str, list[dict[str, Any]]] = {}
    for record in results['runs']:
        found.setdefault(record['method'], []).append(record)
    return {method: found[method] for method in results['methods'] if method in found}


def baselines(results: Mapping[str, Any]) -> dict[str, str | None]:
    """{method: the baseline of its student}, None for a method whose student no baseline has.

    Results of one student may lack it: all methods then have one baseline.
    """
    return results.get('baselines') or dict.fromkeys(results['methods'], results['baseline'])


def students(results: Mapping[str, Any]) -> dict[str, str]:
    """{method: its student} if the comparison has several."""
    found = results.get('students', {})
    return found if len(set(found.values())) > 1 else {}


def others_of(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The metrics beside PSNR and SSIM, by name; results of before there were any have none."""
    return results.get('metrics', {})


def compared_quality(results: Mapping[str, Any], metric: str = 'psnr_y') -> Table:
    """Methods x sets: mean and standard deviation over seeds, and the paired difference to the baseline.

    A method is compared with the baseline of its own student only. Differences are marked by Holm-corrected paired
    t-tests, over the methods of a set; the best method of each student is bold.
    """
    runs, digits, student = by_method(results), METRICS.get(metric, OTHER_DIGITS), students(results)
    best_of = min if others_of(results).get(metric, {}).get('better') == 'lower' else max
    sets = list(results['references'][0]['means'])
    rows = []
    bold = set()
    for record in results['references']:
        cells = []
        for name in sets:
            value = record['means'][name].get(metric)
            cells += [NONE if value is None else f'{value:.{digits}f}', NONE]
        rows.append([record['method'], *([NONE] if student else []), NONE, *cells])
    first = len(rows)
    rows += [[method, *([student[method]] if student else []), str(len(records))] for method, records in runs.items()]
    titles = ['method', *(['student'] if student else []), 'seeds']
    for column, name in enumerate(sets):
        values, differences = _compared(results, name, metric)
        corrected = holm([difference and difference.p for difference in differences.values()])
        marks = {
            method: next((mark for level, mark in LEVELS if p is not None and p < level), '')
            for method, p in zip(differences, corrected)
        }
        shown: dict[str, dict[int, float]] = {}  # by student
        for row, (method, found) in enumerate(values.items(), start=first):
            if not found:
                rows[row] += [NONE, NONE]
                continue
            mean, sd = spread(list(found.values()))
            shown.setdefault(student.get(method, ''), {})[row] = round(mean, digits)
            difference = differences.get(method)
            rows[row].append(f'{mean:.{digits}f}' + ('' if sd is None else f' ± {sd:.{digits}f}'))
            rows[row].append(NONE if difference is None else f'{difference.mean:+.{digits}f}{marks[method]}')
        for means in shown.values():
            if len(means) > 1:
                best = best_of(means.values())
                bold |= {(row, len(titles) + 2 * column) for row, mean in means.items() if mean == best}
    header = [*titles, *(title for _ in sets for title in ('mean ± sd', f'Δ vs {_baseline_name(results)}'))]
    return Table(header, rows, [*([''] * len(titles)), *(name for name in sets for _ in range(2))], bold)


def _compared(
    results: Mapping[str, Any], name: str, metric: str
) -> tuple[dict[str, dict[int, float]], dict[str, Difference | None]]:
    """{method: {seed: value}} of a set, without values that are not finite, which JSON has as null, and
    {method: its difference to the baseline of its student}."""
    base = baselines(results)
    values = {
        method: {run['seed']: value for run in records if (value := run['means'][name].get(metric)) is not None}
        for method, records in by_method(results).items()
    }
    differences = {
        method: paired_difference(found, values[own])
        for method, found in values.items()
        if (own := base[method]) in values and own != method
    }
    return values, differences


def _baseline_name(results: Mapping[str, Any]) -> str:
    return 'baseline' if students(results) else results['baseline']


def cost_table(results: Mapping[str, Any]) -> Table:
    """Methods x parameters, FLOPs, latency, iterations, milliseconds an iteration and minutes of training; the last
    also relative to the baseline of the method's student. Then the mean PSNR-Y that a run gains over that baseline on
    the first set, divided by its hours."""
    differences = _compared(results, _first_set(results), 'psnr_y')[1]
    runs, base, student = by_method(results), baselines(results), students(results)
    rows = [
        [record['method'], *([NONE] if student else []), *_network_cost(record, results), *[NONE] * 5]
        for record in results['references']
        if 'parameters' in record
    ]
    for method, records in runs.items():
        per_iter, total = _mean(records, 'seconds_per_iter'), _mean(records, 'train_seconds')
        ratio, gain = _times_baseline(records, runs.get(base[method] or '', [])), differences.get(method)
        rows.append(
            [
                method,
                *([student[method]] if student else []),
                *_network_cost(records[0], results),
                f'{records[0]["iterations"]:,}',
                NONE if per_iter is None else f'{1000 * per_iter:.0f}',
                NONE if total is None else f'{total / 60:.1f}',
                NONE if ratio is None else f'{ratio:.2f}',
                NONE if not (total and gain) else f'{gain.mean / (total / 3600):+.3g}',
            ]
        )
    costs = ['parameters', 'GFLOPs', 'ms/image', 'iterations', 'ms/iteration', 'minutes', 'x baseline', 'dB per hour']
    header = ['method', *(['student'] if student else []), *costs]
    return Table(header, rows, [''] * len(header), set())


def compared_features(results: Mapping[str, Any]) -> Table | None:
    """Table 4, the PSNR of features to the teacher's, and whether a regressor comes before; None where no run has it.

    The paper holds features with and without regressors not to be comparable.
    """
    runs = by_method(results)
    have = [
        method
        for method, records in runs.items()
        if any('feature_psnr' in found for record in records for found in record['means'].values())
    ]
    if not have:
        return None
    reference = results['references'][:1]
    alone = {**results, 'references': reference, 'methods': have, 'baseline': None, 'baselines': {}, 'students': {}}
    table = compared_quality(alone, 'feature_psnr')
    rows = [
        [method, seeds, 'regressors' if runs[method][0]['through_regressors'] else 'as they are', *cells[::2]]
        for method, seeds, *cells in table.rows[1:]
    ]
    sets = table.groups[2::2]
    bold = {(row - 1, 3 + (column - 2) // 2) for row, column in table.bold}
    return Table(['method', 'seeds', 'features', *sets], rows, [''] * (3 + len(sets)), bold)


def feature_notes(results: Mapping[str, Any]) -> list[str]:
    """Why a method has no feature PSNR, or a note on it; one line each, from its first seed."""
    return [note for records in by_method(results).values() for note in records[0]['notes']]


def caption(results: Mapping[str, Any]) -> str:
    """What a reader must know of the tables, in a few sentences."""
    runs, baseline = results['runs'], results['baseline']
    seeds = sorted({run['seed'] for run in runs})
    notes = []
    if len(seeds) > 1:
        notes.append(
            f'Mean ± standard deviation over seeds {", ".join(map(str, seeds))}. "Δ vs {_baseline_name(results)}" is '
            'the mean paired difference over seeds; * and ** are p < 0.05 and p < 0.01 of paired t-tests, '
            'Holm-corrected over the methods of each set.'
        )
    else:
        notes.append(f'One seed, {", ".join(map(str, seeds))}, so no significance test.')
    if others := others_of(results):
        notes.append(f'Beside PSNR and SSIM: {", ".join(directions(others))}.')
    if students(results):
        firsts = list(dict.fromkeys(name for name in baselines(results).values() if name is not None))
        notes.append(
            f'A method is compared with the baseline of its own student ({", ".join(firsts)}): no difference or test '
            'is between students. Methods of a seed have the same data order and settings, and those of a student the '
            'same initial weights.'
        )
    else:
        notes.append(f'Methods of a seed have the same initial weights, data order and settings as {baseline}.')
    for method, keys in results['differing'].items():
        own = baselines(results).get(method)
        base = baseline if own in (None, method) else own
        notes.append(f'{method} differs from {base if students(results) else "it"} in {", ".join(keys)}.')
    if 'equal_time' in results:
        steps, own = results['step_times'], results['equal_time']
        times = ', '.join(
            f'{method} {_median_and_range(ratios)}' for method, ratios in _step_time_ratios(steps, own).items()
        )
        notes.append(
            f'Iterations and schedules are scaled so that every run takes the time of one of {own}, by the times of an '
            f"iteration over {own}'s in the same round, measured before, one run at a time, medians and "
            f'ranges of {sum(step["method"] == own for step in steps)} rounds: {times} ({_conditions(steps)}).'
        )
    notes.append(
        'FLOPs (two for each multiply-add) and ms/image are of one 1280x720 output. ms/iteration is the median between '
        'log lines; minutes are iterations times that, and "dB per hour" is the mean difference on '
        f'{_first_set(results)} over them: {_conditions(runs, _counted(runs, "jobs", "run", " at a time"))}.'
    )
    return ' '.join(notes)


def records_csv(results: Mapping[str, Any]) -> str:
    """One line for each method, seed and set."""
    text = io.StringIO()
    costs = ('iterations', 'seconds_per_iter', 'train_seconds', 'parameters', 'flops')
    student = results.get('students', {})
    columns = ['method', *(['student'] if student else []), 'seed', 'set', *METRICS, *others_of(results), *costs]
    writer = csv.DictWriter(text, columns, extrasaction='ignore', lineterminator='\n')
    writer.writeheader()
    for record in [*results['references'], *results['runs']]:
        own = {**record, 'student': student.get(record['method'], '')}
        writer.writerows({**own, **found, 'set': name} for name, found in record['means'].items())
    return text.getvalue()


def _network_cost(record: Mapping[str, Any], results: Mapping[str, Any]) -> list[str]:
    ms = results['latency_ms'].get(record['method'])
    return [f'{record["parameters"]:,}', f'{record["flops"] / 1e9:.1f}', NONE if ms is None else f'{ms:.0f}']


def relative_step_times(steps: Sequence[Mapping[str, Any]], method: str) -> dict[str, float]:
    """{name: time of its iteration over that of ``method`` in the same round}, the median of the rounds.

    A machine's speed changes from round to round, and both with it.

    Args:
        steps: of each method a record a round, in the order of the rounds.
    """
    return {name: float(np.median(ratios)) for name, ratios in _step_time_ratios(steps, method).items()}


def _step_time_ratios(steps: Sequence[Mapping[str, Any]], method: str) -> dict[str, list[float]]:
    """As of :func:`relative_step_times`, of every round."""
    rounds: dict[str, list[float]] = {}
    for step in steps:
        rounds.setdefault(step['method'], []).append(step['seconds_per_iter'])
    return {name: [own / other for own, other in zip(found, rounds[method])] for name, found in rounds.items()}


def _median_and_range(values: Sequence[float]) -> str:
    low, middle, high = (f'{value:.2f}' for value in (min(values), np.median(values), max(values)))
    return middle if low == high else f'{middle} ({low} to {high})'


def _conditions(records: Sequence[Mapping[str, Any]], *more: str) -> str:
    machines = dict.fromkeys(record['machine'] for record in records)
    return ', '.join([*machines, *more, _counted(records, 'threads', 'CPU thread', ' each')])


def _counted(records: Sequence[Mapping[str, Any]], key: str, what: str, how: str) -> str:
    numbers = sorted({record[key] for record in records}) or [1]
    return f'{" or ".join(map(str, numbers))} {what}{"s" * (numbers != [1])}{how}'


def _times_baseline(records: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]]) -> float | None:
    """A method's time over the baseline's, of the seeds that both have: those of another may run beside other work."""
    ours, theirs = (
        {run['seed']: run['train_seconds'] for run in runs if run['train_seconds']} for runs in (records, baseline)
    )
    both = ours.keys() & theirs.keys()
    return sum(ours[seed] for seed in both) / sum(theirs[seed] for seed in both) if both else None


def _first_set(results: Mapping[str, Any]) -> str:
    return next(iter(results['references'][0]['means']))


def _mean(records: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [record[key] for record in records if record[key] is not None]
    return sum(values) / len(values) if values else None


# What a page or table.md may show of a comparison, as Markdown.
PARTS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    'quality': lambda results: markdown_table(*compared_quality(results)),
    'cost': lambda results: markdown_table(*cost_table(results)),
    'features': lambda results: markdown_table(*table) if (table := compared_features(results)) else NONE,
    'feature_notes': lambda results: '\n'.join(f'- {note}' for note in feature_notes(results)) or NONE,
    'caption': caption,
}


def with_blocks(page: str, mark: str, content: Callable[[re.Match], str]) -> tuple[str, int]:
    """The page with the text between its marks replaced, and the number of blocks.

    Args:
        mark: a pattern of the line that begins a block, which ends with :data:`END`.
        content: what stands in the block whose first line has matched.
    """

    def block(found: re.Match) -> str:
        return f'{found["mark"]}\n\n{content(found)}\n\n{END}'

    return re.subn(rf'(?P<mark>{mark})\n.*?{END}', block, page, flags=re.DOTALL)


def filled(page: str, results: Mapping[str, Any]) -> str:
    """The page with every block of this comparison replaced.

    A block begins with a line ``<!-- facd compare: NAME PART -->``, PART being one of :data:`PARTS` or the name of a
    metric beside PSNR and SSIM, and ends with ``<!-- end -->``.

    Raises:
        UserError: the page has no block of this comparison, or one of an unknown part.
    """

    def content(found: re.Match) -> str:
        part = found['part']
        if part in others_of(results):
            return markdown_table(*compared_quality(results, part))
        if part not in PARTS:
            accepted = ', '.join([*PARTS, *others_of(results)])
            raise UserError(f'<!-- facd compare: {results["name"]} {part} -->: accepted: {accepted}')
        return PARTS[part](results)

    text, count = with_blocks(page, rf'<!-- facd compare: {re.escape(results["name"])} (?P<part>\S+) -->', content)
    if count == 0:
        raise UserError(
            f'no block of the comparison {results["name"]}; accepted: a page with a line '
            f'<!-- facd compare: {results["name"]} quality --> and after it {END}'
        )
    return text


def draw_curves(records: Mapping[str, Sequence[Mapping[str, Any]]], title: str) -> Figure:
    """Validation PSNR-Y by iterations and by training time, and the share of rejected patches (Fig. 2).

    A line is the mean over seeds, the band around it their range.

    Args:
        records: the records of every method, one for each seed.
    """
    tags = [tag for runs in records.values() for run in runs for tag in run['curves']]
    validation = next((tag for tag in tags if tag.startswith(VALIDATION) and tag.endswith('/psnr_y')), None)
    panels = []
    if validation is not None:
        label = f'PSNR-Y on {validation.split("/")[1]}, dB'
        panels.append((validation, label, 'iterations', lambda run: 1.0))
        if all(run['seconds_per_iter'] for runs in records.values() for run in runs):
            panels.append((validation, label, 'minutes of training', lambda run: run['seconds_per_iter'] / 60))
    if ALPHA in tags:
        panels.append((ALPHA, 'share of rejected patches', 'iterations', lambda run: 1.0))
    figure = Figure(figsize=(6 * max(1, len(panels)), 5), layout='constrained')
    figure.suptitle(title)
    styles = dict(zip(records, cycle(cycler(linestyle=['-', '--']) * rcParams['axes.prop_cycle'])))  # 20 that differ
    lines = {}
    for axes, (tag, label, x_label, unit) in zip(np.atleast_1d(figure.subplots(1, max(1, len(panels)))), panels):
        for method, runs in records.items():
            drawn = [run for run in runs if tag in run['curves']]
            if not drawn or (tag == ALPHA and all(value == 1 for run in drawn for _, value in run['curves'][tag])):
                continue
            by_step = [{step: value for step, value in run['curves'][tag] if value is not None} for run in drawn]
            steps = sorted(set.intersection(*map(set, by_step)))  # at which all have a value
            y = np.array([[points[step] for step in steps] for points in by_step])  # (seeds, points)
            x = np.array(steps) * np.mean([unit(run) for run in drawn])
            if tag == ALPHA:  # of single batches: a share of few samples, so neighbors are averaged
                x, y = (_averaged(values, BINS) for values in (x, 1 - y))
            (lines[method],) = axes.plot(x, y.mean(0), label=method, **styles[method])
            axes.fill_between(x, y.min(0), y.max(0), color=lines[method].get_color(), alpha=0.15)
        axes.set(xlabel=x_label, ylabel=label)
    if lines:  # one legend for all panels
        figure.legend(lines.values(), lines, loc='outside lower center', ncols=2 + 3 * len(panels), fontsize='small')
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a picture, without matplotlib's warnings of characters that its font lacks."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Glyph .* missing from')
        figure.savefig(path, dpi=110)


def _averaged(values: np.ndarray, bins: int) -> np.ndarray:
    """Means of neighbors along the last axis, so that at most ``bins`` are left."""
    parts = np.array_split(values, min(bins, values.shape[-1]), axis=-1)
    return np.stack([part.mean(-1) for part in parts], axis=-1)
