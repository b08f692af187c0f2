"""``facd benchmark``: the paper's table of several checkpoints and bicubic (docs/evaluation.md)."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import click
from basicsr.utils import get_time_str
from tqdm import tqdm

from facd_basicsr.cli import QuietCommand, methods_options
from facd_basicsr.environment import versions
from facd_basicsr.errors import UserError
from facd_basicsr.evaluation import tables as tables
from facd_basicsr.evaluation.feature_psnr import tap_features
from facd_basicsr.evaluation.methods import load_methods
from facd_basicsr.evaluation.test_sets import ImagePair, build_sets, pairs
from facd_basicsr.files.atomic import atomic_write
from facd_basicsr.options.parse import root_path


def benchmark(
    option_files: Sequence[str],
    overrides: Sequence[str],
    train_file: str | None,
    out: Path,
    gray_as_colour: bool = False,
    runs: Sequence[str] = (),
    sets: Sequence[str] = (),
) -> tables.Means:
    """Evaluates the methods of test files and runs, prints their table and writes it to a folder.

    Args:
        option_files: test files, one per method, with the same scale and sets.
        overrides: ``--force_yml`` entries. Those that begin with ``teacher:`` apply to the train file, the others to
            every test file.
        train_file: adds a row for its teacher, and feature PSNR at its taps; None: neither.
        out: folder for table.md, table.tex, per_image.csv and results.json, created if missing.
        gray_as_colour: whether a one-channel GT is scored by the Y of three equal channels, as in test.py.
        runs: folders ``experiments/NAME``, one per method.
        sets: that runs are tested on; none: those in ``datasets/``.

    Returns:
        {method: {set: {metric: mean}}}.

    Raises:
        UserError: files, checkpoints or sets are not accepted. No folder is created then.
    """
    methods, opt, train_opt = load_methods(option_files, train_file, overrides, runs, sets)
    datasets, scale = build_sets(opt), opt['scale']
    students = [method for method in methods if tables.is_student(method)]
    taps = [] if train_opt is None else train_opt['taps']
    notes = [] if train_opt is None else tap_features(train_opt, methods[-1], students)
    if out.exists() and not out.is_dir():
        raise UserError(f'--out: {out} is a file; accepted: a folder, created if it does not exist')
    out.mkdir(parents=True, exist_ok=True)

    images = tqdm(pairs(datasets), total=sum(map(len, datasets.values())), unit='image', dynamic_ncols=True)
    records = list(tables.evaluate(methods, _note_gray_images(images, notes, gray_as_colour)))
    mean = tables.means(records)
    made = {f'PSNR in dB and SSIM, x{scale}': tables.quality_table(methods, mean)}
    if any(student.taps for student in students):
        made[f'Feature PSNR in dB, x{scale}'] = tables.feature_table(methods, mean, len(taps))
    results = {
        'scale': scale,
        'border': scale,
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


def _note_gray_images(images: Iterable[ImagePair], notes: list[str], gray_as_colour: bool) -> Iterator[ImagePair]:
    for pair in images:
        if pair.gray and gray_as_colour:
            notes.append(
                f"{pair.set}/{pair.image}: one-channel image, scored as color, as in test.py and EDSR's code; "
                'published bicubic values score it as gray, which lowers its PSNR-Y by 1.32 dB'
            )
        elif pair.gray:
            notes.append(
                f'{pair.set}/{pair.image}: one-channel image, scored as gray, as in published bicubic values; '
                "test.py and EDSR's code score it as color (--gray-as-colour), which adds 1.32 dB to its PSNR-Y"
            )
        yield dataclasses.replace(pair, gray=False) if gray_as_colour else pair


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
    '--gray-as-colour',
    is_flag=True,
    help="score one-channel images as color, like test.py and EDSR's code: adds 0.09 dB to Set14's PSNR-Y",
)
@click.option('--force_yml', multiple=True, metavar='KEY:KEY=VALUE ...', help='override options of every test file')
def command(
    option_files: tuple[str, ...],
    runs: tuple[str, ...],
    sets: tuple[str, ...],
    train_file: str | None,
    out: Path | None,
    gray_as_colour: bool,
    force_yml: tuple[str, ...],
) -> None:
    """The paper's table: PSNR-Y, SSIM-Y and PSNR-RGB of several checkpoints and of bicubic.

    Each run or test file is one method; all need the same scale and sets. Their own metrics are ignored. The table is
    written as Markdown, LaTeX, CSV and JSON (docs/evaluation.md).

    \b
    Example:
      facd benchmark --run experiments/Student_EDSR_x4 --run experiments/FACD_EDSR_x4 --sets Set5 Set14
    """
    out = out or root_path() / 'results' / f'benchmark_{get_time_str()}'
    benchmark(option_files, force_yml, train_file, out, gray_as_colour, runs, sets)
