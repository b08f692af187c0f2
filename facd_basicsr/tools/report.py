"""``facd report``: a run as one HTML page."""

import logging
import tempfile
from pathlib import Path

import click
from basicsr.utils import get_root_logger

from facd_basicsr.errors import UserError, reraise_disk_errors
from facd_basicsr.files.atomic import atomic_write
from facd_basicsr.report.page import page
from facd_basicsr.report.results import Results, results_of
from facd_basicsr.runs.run_folder import read_run_folder

REPORT_MARKER = b'<meta name="generator" content="facd report">'  # in the head of page.html


def report(run_dir: Path, out: Path | None, table: bool = True) -> Path:
    """Writes the page of a run.

    Args:
        run_dir: the folder that train.py created.
        out: a new file or an existing report to replace; None: ``report.html`` in ``run_dir``, replacing any file.
        table: whether to run the networks for table and crops.

    Returns:
        The file.

    Raises:
        UserError: not a run's folder, or the file cannot be written. Raised before any network runs.
    """
    if out is None:
        out = run_dir / 'report.html'
    else:
        _check_target(out)
    run = read_run_folder(run_dir)
    _check_writable(out)
    results = results_of(run) if table else Results(notes=['No table and no crops: --no-table.'])
    text = page(run, results)
    with reraise_disk_errors():
        atomic_write(out, text.encode())
    return out


def _check_target(out: Path) -> None:
    if out.is_dir() or not out.parent.is_dir():
        raise UserError(f'--out: {out}; accepted: a file name in a folder that exists')
    if out.exists():
        with reraise_disk_errors(), out.open('rb') as file:
            if REPORT_MARKER not in file.read(2000):
                raise UserError(f'--out: {out} exists and is not a report; accepted: a new file, or a report')


def _check_writable(out: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise UserError(
            f'--out: {out} cannot be written ({error.strerror}); accepted: a file in a writable folder'
        ) from error


@click.command()
@click.argument('run_dir', metavar='RUN_DIR', type=click.Path(path_type=Path))
@click.option('--out', type=click.Path(path_type=Path), help='HTML file to write; default: RUN_DIR/report.html')
@click.option(
    '--table/--no-table',
    default=True,
    show_default=True,
    help='Table and crops: student and teacher upscale every validation image.',
)
def command(run_dir: Path, out: Path | None, table: bool) -> None:
    """A run as one HTML page: curves, table, crops with a slider, options, environment.

    RUN_DIR is train.py's folder experiments/NAME; the run may be finished, stopped or in progress. The page is
    self-contained. docs/report.md says where its metrics come from.

    \b
    Example:
      facd report experiments/FACD_EDSR_x4
    """
    get_root_logger().setLevel(logging.WARNING)  # silences BasicSR's messages about what it builds
    written = report(run_dir, out, table)
    click.echo(f'{written}: {written.stat().st_size / 2**20:.1f} MiB')
