"""``facd benchmark``: the paper's table of several checkpoints and bicubic (docs/evaluation.md)."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import click
from basicsr.utils import get_time_str

from facd_basicsr.cli import QuietCommand, methods_options
from facd_basicsr.environment import versions
from facd_basicsr.errors import UserError
from facd_basicsr.evaluation import tables as tables
from facd_basicsr.evaluation.feature_psnr import tap_features
from facd_basicsr.evaluation.methods import is_teacher, load_methods
from facd_basicsr.evaluation.test_sets import ImagePair, LqImage, build_sets, images
from facd_basicsr.files.atomic import atomic_write
from facd_basicsr.options.parse import root_path
from facd_basicsr.progress import ProgressBar
from facd_basicsr.runtime.metrics import NIQE


def benchmark(
    option_files: Sequence[str],
    overrides: Sequence[str],
    train_file: str | None,
    out: Path,
    gray: bool = False,
    runs: Sequence[str] = (),
    sets: Sequence[str] = (),
) -> tables.Means:
    """Evaluates the methods of test files and runs, prints their table and writes it to a folder.

    Args:
        option_files: test files, one per method, with the same scale and sets.
        overrides: ``--force_yml`` entries. Those that begin with ``teacher:`` apply to the train file, the others to
            every test file.
        train_file: adds a row for each of its teachers, and feature PSNR at its taps; None: neither.
        out: folder for table.md, table.tex, per_image.csv and results.json, created if missing.
        gray: whether a one-channel GT is its own Y, as in published values of bicubic; otherwise its Y is that of three
            equal channels, as in test.py.
        sets: that runs are tested on; none: those in ``datasets/``.

    Returns:
        {method: {set: {metric: mean}}}.

    Raises:
        UserError: files, checkpoints or sets are not accepted. No folder is created then.
    """
    methods, opt, train_opt = load_methods(option_files, train_file, overrides, runs, sets)
    datasets, scale, others = build_sets(opt, lq_only=True), opt['scale'], tables.other_metrics(opt)
    students = [method for method in methods if tables.is_student(method)]
    teachers = [method for method in methods if is_teacher(method.name)]
    taps = [] if train_opt is None else train_opt['taps']
    notes = [] if train_opt is None else tap_features(train_opt, teachers, students)
    if out.exists() and not out.is_dir():
        raise UserError(f'--out: {out} is a file; accepted: a folder, created if it does not exist')
    out.mkdir(parents=True, exist_ok=True)

    bar = ProgressBar(images(datasets), total=sum(map(len, datasets.values())), unit='image', dynamic_ncols=True)
    records = list(tables.evaluate(methods, _note_gray_images(bar, notes, gray), gray, others))
    mean = tables.means(records)
    made = {f'{_titles(mean, others)}, x{scale}': tables.quality_table(methods, mean, others)}
    if any(student.taps for student in students):
        made[f'Feature PSNR in dB, x{scale}'] = tables.feature_table(methods, mean, len(taps))
    results = {
        'scale': scale,
        'border': scale,
        'gray': gray,
        'metrics': others,
        'sets': {name: len(dataset) for name, dataset in datasets.items()},
        'device': students[0].device.type,
        'versions': versions(),
        'force_yml': list(overrides),
        'methods': [method.summary() for method in methods],
        'taps': taps,
        'notes': notes,
        'means': mean,
        'images': records,
    }
    atomic_write(out / 'per_image.csv', tables.to_csv(records))
    atomic_write(out / 'results.json', tables.to_json(results))
    tables.write_tables(made, notes, out)
    print('\n' + ''.join(f'{note}\n' for note in notes) + f'table.md, table.tex, per_image.csv, results.json: {out}')
    return mean


def _titles(mean: tables.Means, others: tables.MetricBlocks) -> str:
    there = {metric for sets in mean.values() for values in sets.values() for metric in values}
    shown = {name: block for name, block in {NIQE: {'better': 'lower'}, **others}.items() if name in there}
    return ', '.join(['PSNR in dB and SSIM'] * ('psnr_y' in there) + tables.directions(shown))


def _note_gray_images(found: Iterable[LqImage], notes: list[str], gray: bool) -> Iterator[LqImage]:
    for image in found:
        if isinstance(image, ImagePair) and image.gray:
            notes.append(
                f'{image.set}/{image.image}: one-channel image, scored as {"gray" if gray else "color"}, as in '
                + (
                    'published bicubic values; without --gray as color, which adds 1.32 dB to its PSNR-Y'
                    if gray
                    else "test.py, EDSR's code and the paper; with --gray as gray, which takes 1.32 dB from its PSNR-Y"
                )
            )
        yield image


@click.command(cls=QuietCommand)
@methods_options
@click.option(
    '--teacher',
    'train_file',
    type=click.Path(),
    metavar='TRAIN_YML',
    help='train file: adds its teacher and feature PSNR',
)
@click.option('--out', type=click.Path(path_type=Path), help='folder to write to; default: results/benchmark_TIME')
@click.option(
    '--gray',
    is_flag=True,
    help="score one-channel images as gray, as published bicubic values do: takes 0.09 dB from Set14's PSNR-Y",
)
def command(
    option_files: tuple[str, ...],
    runs: tuple[str, ...],
    sets: tuple[str, ...],
    train_file: str | None,
    out: Path | None,
    gray: bool,
    force_yml: tuple[str, ...],
) -> None:
    """The paper's table: PSNR-Y, SSIM-Y and PSNR-RGB of several checkpoints and of bicubic.

    Each run or test file is one method; all need the same scale and sets. Sets without ground truth
    (SingleImageDataset in a test file) have NIQE instead. What the first method's val.metrics have beside PSNR and
    SSIM, such as LPIPS, has a column too. The table is written as Markdown, LaTeX, CSV and JSON (docs/evaluation.md).

    \b
    Example:
      facd benchmark --run experiments/Student_EDSR_x4 --run experiments/FACD_EDSR_x4 --sets Set5 Set14
    """
    out = out or root_path() / 'results' / f'benchmark_{get_time_str()}'
    benchmark(option_files, force_yml, train_file, out, gray, runs, sets)
