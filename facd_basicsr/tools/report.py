"""``facd report``: a run as one HTML page."""

from pathlib import Path

import click

from facd_basicsr.cli import QuietCommand
from facd_basicsr.errors import UserError
from facd_basicsr.files.atomic import atomic_write, make_folder_of
from facd_basicsr.report.page import page
from facd_basicsr.report.results import Results, results_of
from facd_basicsr.runs.run_folder import read_run_folder

REPORT_MARKER = b'<meta name="generator" content="facd report">'  # in the head of page.html


@click.command(cls=QuietCommand)
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
    if out is None:
        out = run_dir / 'report.html'
    elif out.is_dir():
        raise UserError(f'--out: {out} is a folder; accepted: a file name')
    elif out.exists() and REPORT_MARKER not in out.read_bytes()[:2000]:
        raise UserError(f'--out: {out} exists and is not a report; accepted: a new file, or a report')
    run = read_run_folder(run_dir)
    make_folder_of(out, '--out')
    results = results_of(run) if table else Results(notes=['No table and no crops: --no-table.'])
    atomic_write(out, page(run, results))
    click.echo(f'{out}: {out.stat().st_size / 2**20:.1f} MiB')
