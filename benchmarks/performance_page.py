"""The tables and plots of docs/performance.md and a table of docs/deploy.md, from the JSON files in benchmarks/results.

    python benchmarks/performance_page.py --into docs/performance.md

A block of the page begins with ``<!-- benchmark: PART FILE -->`` and ends with ``<!-- end -->``. PART is one of
``PARTS``, FILE the name of a result without ``.json``, or of the folder for ``goals``. Plots are written next to the
page as PNG. Results in ``gpu/`` may be missing.
"""

import argparse
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use('Agg')

from matplotlib import pyplot as plt

from facd_basicsr.comparison.summary import with_blocks
from facd_basicsr.errors import UserError, run_command
from facd_basicsr.evaluation.tables import markdown_table

RESULTS = Path(__file__).resolve().parent / 'results'
Result = dict[str, Any]


def ms(seconds: float) -> str:
    value = 1000 * seconds
    return f'{value:.0f}' if value >= 100 else f'{value:.1f}' if value >= 1 else f'{value:.2f}'


def machine_line(result: Result) -> str:
    """Machine, threads and versions of a result."""
    threads, missing = result.get('threads'), '; '.join(result.get('missing', []))
    what = f'not measured within the time limit: {missing}; ' if missing else ''
    return f'{what}{result["machine"]}{f", {threads} threads" if threads else ""}; {result["versions"]}.'


def ceilings(result: Result) -> str:
    rows = [['memory copy, bytes read and written', f'{result["copy_gb_s"]} GB/s']]
    rows += [[f'matrix product, {name}', f'{rate} TFLOP/s'] for name, rate in result['tflop_s'].items()]
    return f'{markdown_table(["ceiling", "measured"], rows)}\n\n{machine_line(result)}'


def step(result: Result) -> str:
    """Every step with its speed-up over the baseline and its ratio to the floor."""
    seconds = result['seconds']
    faster, to_floor = step_ratios(result)
    rows = []
    for name in [name for name in seconds if not name.startswith('floor')]:
        of_ours = [f'{to_floor[name]:.2f}', f'{tflop_s(result, name):.3g}'] if name in to_floor else ['', '']
        rows.append([name, ms(seconds[name]), f'{faster[name]:.2f}', *of_ours])
    header = ['step', 'ms', 'speed-up over naive', 'time / floor', 'TFLOP/s']
    what = f'`{result["option_file"]}`, batch {result["batch"]}, LQ patches of {result["patch"]} x {result["patch"]}, '
    what += f'medians of {result["turns"]}; {machine_line(result)}'
    return f'{markdown_table(header, rows)}\n\n{what}'


def step_ratios(result: Result) -> tuple[dict[str, float], dict[str, float]]:
    """Each step's speed-up over naive, and FACD's time over its floor's: medians of the ratios within a turn, or ratios
    of the medians in files without them."""
    seconds = result['seconds']
    faster = {name: seconds['naive'] / value for name, value in seconds.items()}
    floors = {name: seconds[name] / seconds[f'floor{name[4:]}'] for name in seconds if name.startswith('FACD')}
    return result.get('times_faster', faster), result.get('to_floor', floors)


def tflop_s(result: Result, name: str) -> float:
    return result['gflop'] / result['seconds'][name] / 1000


def ratio(a: float, b: float) -> str:
    return f'{a / b:.2f}'


def split(result: Result) -> str:
    total = math.fsum(result['split'].values())
    rows = [[part, ms(seconds), f'{100 * seconds / total:.1f} %'] for part, seconds in result['split'].items()]
    return markdown_table([f'part of FACD {result["split_of"]}', 'ms', 'share'], rows)


def loss(result: Result) -> str:
    rows = [
        [
            variant,
            ms(milliseconds / 1000),
            f'{result["times_faster_than_literal"][variant]:.1f}',
            f'{result["extra_mib"][variant]:.0f}',
            f'{result["times_less_memory_than_literal"][variant]:.1f}',
            *(f'{mib:.1f}' for mib in result['sweep']['extra_mib'][variant].values()),
        ]
        for variant, milliseconds in result['ms'].items()
    ]
    sweep = next(iter(result['sweep']['extra_mib'].values()))
    header = ['term', 'ms', 'speed-up', 'extra MiB', 'memory reduction', *(f'MiB at N={n}' for n in sweep)]
    what = (
        f'N = {result["batch"]}, C = {result["channels"]}, {result["size"]} x {result["size"]}, three taps; the last '
    )
    what += f'columns at C = {result["sweep"]["channels"]}, {result["sweep"]["size"]} x {result["sweep"]["size"]}. '
    what += f'{result["gradients_mib"]} MiB are the gradients of the features, which every variant returns. '
    for found in (result.get('gb_per_second') or {'by_size': []})['by_size']:
        l2 = result['gb_per_second'].get('l2_mib')
        what += f'One tap of {found["feature_mib"]} MiB{f" (L2 cache: {l2})" if l2 else ""}: '
        what += f'{found["distances"]:.0f} GB/s, a copy {result["gb_per_second"]["copy"]:.0f}. '
    return f'{markdown_table(header, rows)}\n\n{what}{machine_line(result)}'


def goals(results: dict[str, Result]) -> str:
    """The goals on a GPU and the measured values; ``results`` by file name."""
    rows = []
    for name, result in results.items():
        if not name.startswith('step_'):
            continue
        what = f'{Path(result["option_file"]).stem}: '
        faster = {name: value for name, value in step_ratios(result)[0].items() if name.startswith('FACD')}
        best = max(faster, key=faster.__getitem__)
        rows.append([f'{what}speed-up over naive', '5', f'{faster[best]:.2f}', best])
        if 'ceilings' in results:
            share = tflop_s(result, best) / results['ceilings']['tflop_s']['bf16']
            rows.append([f'{what}share of the bf16 matrix-product rate', '50 %', f'{100 * share:.0f} %', best])
    if 'gb_per_second' in results.get('loss', {}):
        found = results['loss']['gb_per_second']['by_size'][-1]
        share, where = f'{100 * found["share"]:.0f} %', f'features of {found["feature_mib"]} MiB'
        rows.append(['distances: share of the copy bandwidth', '60 %', share, where])
    machines = ', '.join(dict.fromkeys(result['machine'] for result in results.values() if 'machine' in result))
    return f'{markdown_table(["goal", "target", "measured", "by"], rows)}\n\n{machines}.'


def growth(result: Result) -> str:
    cells = [
        [str(run['batch']), str(run['patch']), ms(run['seconds']), f'{1024 * run["peak_gib"]:.0f}']
        for run in (*result['by_batch'], *result['by_patch'])
    ]
    table = markdown_table(['batch', 'patch', 'ms', 'peak MiB'], cells)
    return f'{table}\n\n`{result["option_file"]}`, {described(result["execution"])}; {machine_line(result)}'


def described(execution: dict[str, Any]) -> str:
    return ', '.join(key if value is True else f'{key}: {value}' for key, value in execution.items())


def processes(result: Result) -> str:
    by_count: dict[int, list[float]] = {}
    for run in result['by_processes']:
        by_count.setdefault(run['processes'], []).append(run['seconds'])
    medians = {count: sorted(seconds)[len(seconds) // 2] for count, seconds in by_count.items()}
    run = result['by_processes'][0]
    rows = [
        [str(count), f'{run["batch"] // count}', ms(value), ratio(medians[1], value)]
        for count, value in medians.items()
    ]
    table = markdown_table(['processes', 'batch per process', 'ms', 'speed-up'], rows)
    return f'{table}\n\nLQ patches of {run["patch"]} x {run["patch"]}, threads split; {machine_line(result)}'


def scaling(result: Result) -> str:
    parts = ('networks', 'distances', 'gradients', 'features')
    rows = []
    for run in result['runs']:
        cells = [f'{1000 * run[part]:.2f}' for part in parts]
        speed_up = [f'{run["speed_up"]:.2f}', f'{100 * run["speed_up"] / run["gpus"]:.0f} %']
        rows.append([run['option_file'], str(run['gpus']), str(run['batch_per_gpu']), *cells, *speed_up])
    header = ['option file', 'GPUs', 'batch per GPU', *(f'{part}, ms' for part in parts), 'speed-up', 'efficiency']
    return markdown_table(header, rows)


def data(result: Result) -> str:
    rows = []
    for found in result['results']:
        base = found['rates']['BasicSR, lmdb']
        for source, rates in found['rates'].items():
            per_cpu = 'crops_per_cpu_second'
            cells = [f'{rates["crops_per_second"]:.0f}', ratio(rates['crops_per_second'], base['crops_per_second'])]
            cells += [f'{rates[per_cpu]:.0f}', ratio(rates[per_cpu], base[per_cpu])] if per_cpu in rates else ['', '']
            rows.append([f'x{found["scale"]}, {found["gt_size"]}', str(found['workers']), source, *cells])
    header = ['patch', 'workers', 'from', 'crops/s', 'speed-up', 'crops/s per core', 'speed-up']
    what = f'{result["images"]} pairs in batches of 16, medians of {result["turns"]}; {machine_line(result)}'
    for scale, found in {found['scale']: found.get('memory_start_up') for found in result['results']}.items():
        if found is not None:
            what += f' Start-up from memory, x{scale}: {found["first_run"]:.1f} s in a first run, which decodes, '
            what += f'{found["later_run"]:.2f} s in a later one; {found["gb"]:.2f} GB of disk.'
    return f'{markdown_table(header, rows)}\n\n{what}'


def training(result: Result) -> str:
    step, waiting = result['seconds_per_iteration_median'], result['data_seconds_per_iteration_median']
    row = [ms(step), f'{1000 * waiting:.2f}', f'{100 * result["data_share"]:.2f} %', f'{result["peak_memory_gib"]:.2f}']
    table = markdown_table(['ms/iteration', 'data wait, ms', 'share', 'peak GiB'], [row])
    settings = ', '.join(f'`{setting}`' for setting in (result['option_file'], *result['changes']))
    what = f"{settings}; {result['iterations']} iterations of train.py's loop; {result['device']}, "
    return f'{table}\n\n{what}{result["threads"]} threads; {result["versions"]}.'


def validation(result: Result) -> str:
    rows = []
    for student, found in result['students'].items():
        for who, seconds in found['seconds'].items():
            of_parts = found['processor_seconds_by_part'][who]
            metrics = math.fsum(value for part, value in of_parts.items() if part not in ('reading', 'forward'))
            parts = [f'{value:.2f}' for value in (of_parts['forward'], metrics, of_parts['reading'])]
            cells = [f'{seconds:.2f}', f'{found["processor_seconds"][who]:.2f}', *parts]
            rows.append([f'{student}, {who}', *cells, *(['', ''] if who == 'BasicSR' else _gain(found))])
    header = ['validation', 's', 'CPU s', 'network', 'metrics, 8 bits', 'reading', 'speed-up', 'largest difference']
    what = f'{result["images"]} images, medians of {result["turns"]}; {machine_line(result)}'
    return f'{markdown_table(header, rows)}\n\n{what}'


def _gain(found: Result) -> list[str]:
    return [f'{found["times_faster"]:.2f}', f'{max(found["differences"].values()):.0e} dB']


def start_up(result: Result) -> str:
    rows = [
        [option_file, f'{found["baseline_median"]:.2f}', f'{found["train_median"]:.2f}', f'{found["ratio"]:.2f}']
        for option_file, found in result['runs'].items()
    ]
    table = markdown_table(['option file', 'imports and networks, s', 'train.py to its first batch, s', 'ratio'], rows)
    what = f'`facd --help`: {result["facd_help_median"]:.2f} s. Medians of {result["turns"]}; {machine_line(result)}'
    return f'{table}\n\n{what}'


def threads(result: Result) -> str:
    rows = [
        [name, *(cell for found in by_load.values() for cell in (ms(found['ms'] / 1000), f'{found["ratio"]:.2f}'))]
        for name, by_load in result['ways'].items()
    ]
    table = markdown_table(['threads', 'quiet, ms', 'ratio', 'busy, ms', 'ratio'], rows)
    turns, load = result['turns'], result['load_average']
    what = f'`{result["option_file"]}`, batch {result["batch"]}, LQ patches of {result["patch"]} x {result["patch"]}, '
    what += f'medians of {turns["quiet"]} and {turns["busy"]}; '
    what += 'quiet: with real-time priority over what else runs; ' * result['real_time']
    return f'{table}\n\n{what}busy: a load average of {load["busy"]:.0f}; {machine_line(result)}'


def runtimes(result: Result) -> str:
    rows = [
        [name, ', '.join(filter(None, [f'`{own["file"]}`', own['by']])), f'{own["steps"]:.2g}', f'{own["ms"]:.1f}']
        for name, own in result['runtimes'].items()
    ]
    table = markdown_table(
        ['runtime', 'file, and the command that makes it', 'largest difference, 8-bit steps', 'ms'], rows
    )
    height, width = result['size']
    what = (
        f'{result["student"]}, an image of {width}x{height}, medians of {result["turns"]} turns; {machine_line(result)}'
    )
    return f'{table}\n\n{what}'


PARTS: dict[str, Callable[[Result], str]] = {
    'goals': goals,
    'ceilings': ceilings,
    'step': step,
    'split': split,
    'loss': loss,
    'data': data,
    'training': training,
    'validation': validation,
    'start_up': start_up,
    'threads': threads,
    'growth': growth,
    'processes': processes,
    'scaling': scaling,
    'runtimes': runtimes,
}


def split_plot(result: Result, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7.5, 1.6))
    left = 0.0
    for part, seconds in result['split'].items():
        axes.barh([0], [1000 * seconds], left=left, label=part)
        left += 1000 * seconds
    axes.set(yticks=[], xlabel=f'ms, FACD {result["split_of"]}', xlim=(0, left))
    axes.legend(ncols=len(result['split']), loc='lower center', bbox_to_anchor=(0.5, 1), frameon=False, fontsize=8)
    _save(figure, path)


def growth_plot(result: Result, path: Path) -> None:
    figure, panels = plt.subplots(1, 2, figsize=(7.5, 2.8))
    for axes, runs, key in zip(panels, (result['by_batch'], result['by_patch']), ('batch', 'patch')):
        sizes = [run[key] for run in runs]
        axes.plot(sizes, [1000 * run['seconds'] for run in runs], 'o-', color='tab:blue')
        axes.set(xlabel=key, ylabel='ms', xticks=sizes, ylim=(0, None))
        memory = axes.twinx()
        memory.plot(sizes, [1024 * run['peak_gib'] for run in runs], 's--', color='tab:orange')
        memory.set(ylabel='peak MiB (dashed)', ylim=(0, None))
    figure.tight_layout()
    _save(figure, path)


PLOTS: dict[str, Callable[[Result, Path], None]] = {'split': split_plot, 'growth': growth_plot}


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=110, bbox_inches='tight', metadata={'Software': None})
    plt.close(figure)


def load(path: Path) -> Result:
    """A result, or {name: result} of a folder."""
    if path.is_dir():
        return {file.stem: load(file) for file in sorted(path.glob('*.json'))}
    return json.loads(path.read_text(encoding='utf-8'))


def filled(page: str, results: Path, plots: Path | None = None) -> str:
    """The page with updated blocks.

    Args:
        page: Markdown.
        results: folder of the JSON files.
        plots: folder for the plots; None: no plots.

    Raises:
        UserError: a block names an unknown part or a missing result.
    """

    def content(found: re.Match) -> str:
        part, name = found['part'], found['name']
        path = results / name if part == 'goals' else results / f'{name}.json'
        if part not in PARTS:
            raise UserError(f'<!-- benchmark: {part} {name} -->: accepted: {", ".join(PARTS)}')
        if not path.exists() and name.split('/')[0] == 'gpu':
            return 'Not measured.'
        if not path.exists():
            raise UserError(f'<!-- benchmark: {part} {name} -->: no such file: {path}')
        result = load(path)
        if result.get('missing') and part not in ('step', 'split'):
            raise UserError(f'{path} lacks {", ".join(result["missing"])}; accepted: a complete one, or none in gpu/')
        text = PARTS[part](result)
        if part in PLOTS:
            plot = f'performance_{part}_{name.replace("/", "_")}.png'
            text += f'\n\n![{part} of {name}]({plot})'
            if plots is not None:
                PLOTS[part](result, plots / plot)
        return text

    return with_blocks(page, r'<!-- benchmark: (?P<part>\S+) (?P<name>\S+) -->', content)[0]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument('--results', type=Path, default=RESULTS)
    arguments.add_argument('--into', type=Path, required=True)
    args = arguments.parse_args()
    page = args.into.read_text(encoding='utf-8')
    args.into.write_text(filled(page, args.results, args.into.parent), encoding='utf-8')


if __name__ == '__main__':
    run_command(main)
