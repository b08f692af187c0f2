"""``facd report``: a training as one HTML page."""

import logging
from collections.abc import Iterable
from pathlib import Path

import click
from basicsr.utils import get_root_logger
from tqdm import tqdm

from facd_basicsr.engine.whole_files import write_whole
from facd_basicsr.errors import UserError, disk_complaints
from facd_basicsr.evaluation.benchmark_sets import Pair
from facd_basicsr.experiment.run_folder import read_run_folder
from facd_basicsr.report.page import page
from facd_basicsr.report.results import results_of


def report(run_dir: Path, out: Path | None) -> Path:
    """Writes the page of a training.

    Args:
        run_dir: the folder that train.py made.
        out: the file; ``report.html`` in the folder if None.

    Returns:
        The file.

    Raises:
        UserError: it is no such folder, or the file can't be written.
    """
    out = out or run_dir / 'report.html'
    if out.is_dir() or not (out.parent.is_dir() or out.parent == run_dir):
        raise UserError(f'--out: {out}; accepted: a file name in a folder that is there')
    run = read_run_folder(run_dir)
    text = page(run, results_of(run, _progress))
    with disk_complaints():
        write_whole(out, text.encode())
    return out


def _progress(images: Iterable[Pair], count: int) -> Iterable[Pair]:
    return tqdm(images, 'table and crops', count, unit='image', dynamic_ncols=True)


@click.command()
@click.argument('run_dir', metavar='RUN_DIR', type=click.Path(path_type=Path))
@click.option('--out', type=click.Path(path_type=Path), help='HTML file to write; default: RUN_DIR/report.html')
def command(run_dir: Path, out: Path | None) -> None:
    """A training as one HTML page: curves, table, crops with a slider, options, environment.

    RUN_DIR is what train.py made, experiments/NAME, of a run that is finished, stopped or still going. The page needs
    no other file and loads nothing. docs/report.md says where its figures are from.

    \b
    Example:
      facd report experiments/FACD_EDSR_x4
    """
    get_root_logger().setLevel(logging.WARNING)  # BasicSR's parts say what they build
    written = report(run_dir, out)
    click.echo(f'{written}: {written.stat().st_size / 2**20:.1f} MiB')
