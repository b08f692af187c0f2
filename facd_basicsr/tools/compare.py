"""``facd compare``: methods x seeds under equal settings, and a report of the results."""

import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch

from facd_basicsr.cli import QuietCommand
from facd_basicsr.comparison.plan import Comparison, Run, of_equal_time, read_comparison, shortened
from facd_basicsr.comparison.run import Folder, locked, read_records, step_times, train_all, write_option_files
from facd_basicsr.comparison.run_record import (
    checkpoint_of,
    latencies,
    reference_records,
    run_record,
    step_record,
    student_of,
    teachers_of,
)
from facd_basicsr.comparison.summary import (
    by_method,
    caption,
    compared_features,
    compared_quality,
    cost_table,
    draw_curves,
    feature_notes,
    filled,
    records_csv,
    relative_step_times,
    save_figure,
)
from facd_basicsr.errors import UserError, locating
from facd_basicsr.evaluation.figures import find_crops
from facd_basicsr.evaluation.methods import BICUBIC, Method
from facd_basicsr.evaluation.tables import directions, to_json, write_tables
from facd_basicsr.evaluation.test_sets import build_sets, pairs
from facd_basicsr.files.atomic import atomic_path, atomic_write
from facd_basicsr.options.parse import root_path
from facd_basicsr.tools.figure import draw_crops

CROP, CROPS = 48, 3


def compare(path: Path, jobs: int, iterations: int | None = None, equal_time: str | None = None) -> dict[str, Any]:
    """Trains and evaluates the missing runs and writes the report. Returns the content of results.json.

    Args:
        iterations: of the baseline, the others in proportion; None: as in the file.
        equal_time: the method of whose runs all take the time; None: none.

    Raises:
        UserError: the file, a method's options or data are not accepted, or a run failed.
    """
    in_file = comparison = read_comparison(path)
    if equal_time not in (None, *comparison.methods):
        raise UserError(f'--equal-time {equal_time}: accepted: one of the methods, {", ".join(comparison.methods)}')
    if iterations is not None:
        comparison = shortened(comparison, iterations)
    differing, timing = comparison.differing(), {}
    if equal_time is not None:
        differing = of_equal_time(comparison, equal_time, dict.fromkeys(comparison.methods, 1)).differing()
        steps = step_times(
            in_file,
            Folder(root_path() / 'results' / in_file.name),
            jobs,
            lambda run, trained: step_record(run, in_file.methods[run.method], trained),
        )
        timing = {'equal_time': equal_time, 'step_times': steps}
        comparison = of_equal_time(comparison, equal_time, relative_step_times(steps, equal_time))
    folder = Folder(root_path() / 'results' / comparison.name)
    with locked(folder) as lock:
        write_option_files(comparison, folder)
        failures = train_all(comparison, folder, jobs, lock, lambda run, trained: run_record(run, comparison, trained))
        # of one that failed an older experiment of its name may have a checkpoint
        trained = [run for run in comparison.runs() if folder.trained(run).is_file() and checkpoint_of(run).is_file()]
        results = {
            'name': comparison.name,
            'file': str(path),
            'scale': comparison.scale,
            'baseline': comparison.baseline,
            'methods': list(comparison.methods),
            'students': comparison.students(),
            'baselines': {method: comparison.baseline_of(method) for method in comparison.methods},
            'differing': differing,
            'metrics': comparison.metrics,
            **timing,
            'references': reference_records(comparison),
            'latency_ms': latencies(comparison, trained),
            'runs': list(read_records(comparison, folder)),
        }
        atomic_write(folder.root / 'results.json', to_json(results))
        if results['runs']:
            write_report(results, folder.root)
            draw_pictures(comparison, results, trained, folder.root)
    if failures:
        raise UserError(f'{len(failures)} of {len(list(comparison.runs()))} runs failed: {"; ".join(failures)}')
    return results


def write_report(results: dict[str, Any], folder: Path) -> None:
    """Writes table.md, table.tex and table.csv."""
    scale, others = results['scale'], results['metrics']
    made = {f'PSNR-Y in dB, x{scale}': compared_quality(results)}
    made |= {f'{title}, x{scale}': compared_quality(results, name) for name, title in zip(others, directions(others))}
    made['Cost'] = cost_table(results)
    features, notes = compared_features(results), feature_notes(results)
    if features is not None:
        made[f'Feature PSNR in dB, x{scale}'] = features
    atomic_write(folder / 'table.csv', records_csv(results))
    write_tables(made, [*(f'- {note}' for note in notes), caption(results)], folder)
    print('\n' + '\n'.join(notes))
    print(f'\n{caption(results)}\n\ntable.md, table.tex, table.csv, results.json, curves.png, crops.png: {folder}')


def draw_pictures(comparison: Comparison, results: dict[str, Any], trained: Sequence[Run], folder: Path) -> None:
    """Draws curves.png of all seeds, and crops.png of the first seed's students that are trained."""
    with atomic_path(folder / 'curves.png') as path:
        save_figure(draw_curves(by_method(results), f'{comparison.name}, x{comparison.scale}'), path)
    runs = [run for run in trained if run.seed == comparison.seeds[0]]
    methods = [Method(BICUBIC, comparison.scale), *map(student_of, runs), *teachers_of(comparison)]
    images = list(pairs(build_sets(comparison.test_opt)))
    largest = max(min(pair.gt.shape[:2]) for pair in images) - 2 * comparison.scale
    crops = find_crops(methods, images, min(CROP, largest), CROPS)
    with atomic_path(folder / 'crops.png') as path:
        draw_crops(methods, crops).save(path)


def fill_pages(results_file: Path, pages: Sequence[Path]) -> None:
    """Rewrites the tables of Markdown pages from a results.json.

    Raises:
        UserError: the JSON is not of a comparison, or a page has no block for it.
    """
    try:
        results = json.loads(results_file.read_text(encoding='utf-8'))
        name = results['name']
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f'{results_file}: {error}; accepted: a results.json of facd compare') from error
    for page in pages:
        with locating(page):
            text = filled(page.read_text(encoding='utf-8'), results)
        atomic_write(page, text)
        print(f'{page}: {name}')


@click.command(cls=QuietCommand)
@click.argument('file', type=click.Path(path_type=Path))
@click.option('--jobs', type=click.IntRange(1), help='Parallel runs.  [default: one per GPU, or 1]')
@click.option(
    '--iterations', type=click.IntRange(1), help='Of the baseline; other runs and all schedules scale in proportion.'
)
@click.option(
    '--equal-time',
    metavar='METHOD',
    help="Every run takes the time of one of METHOD's, by step times measured first; schedules scale in proportion.",
)
@click.option(
    '--into',
    'pages',
    multiple=True,
    type=click.Path(path_type=Path),
    metavar='PAGE.md',
    help='With a results.json as FILE: rewrite the tables of this page. Repeatable.',
)
def command(
    file: Path, jobs: int | None, iterations: int | None, equal_time: str | None, pages: tuple[Path, ...]
) -> None:
    """Train methods x seeds under equal settings and report the results.

    FILE lists methods and seeds (docs/results.md). train.py trains every run, with the initial weights and data order
    of the baseline's run of the same seed. Finished runs are kept: after a stop, the same command resumes.

    \b
    Example:
      facd compare options/compare/mini_x2.yml
      facd compare options/compare/mini_x2.yml --equal-time Student
      facd compare benchmarks/results/mini_x2.json --into README.md
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, which ends the runs too
    if pages or file.suffix == '.json':
        if file.suffix != '.json' or not pages:
            raise UserError(f'{file}: accepted: a comparison file, or a results.json with --into PAGE.md')
        given = {'--jobs': jobs, '--iterations': iterations, '--equal-time': equal_time}
        for option, value in given.items():
            if value is not None:
                raise UserError(f'{option}: {value}, with {file}; accepted: a comparison file, whose runs it is for')
        fill_pages(file, pages)
    else:
        compare(file, jobs or max(1, torch.cuda.device_count()), iterations, equal_time)
