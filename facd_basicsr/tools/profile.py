"""``facd profile``: what teacher and student cost, as the tables of NTIRE's efficient super-resolution have it."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from basicsr.utils import get_root_logger

from facd_basicsr.cli import SeveralValues
from facd_basicsr.errors import UserError, reraise_disk_errors
from facd_basicsr.evaluation.costs import cost_tables, costs
from facd_basicsr.evaluation.tables import markdown_table, text_table
from facd_basicsr.files.atomic import atomic_write

TABLE_FORMATS: dict[str, Callable[[dict[str, Any]], str]] = {
    '.json': lambda result: json.dumps(result, indent=1),
    '.md': lambda result: cost_tables(result, markdown_table),
}


@click.command(cls=SeveralValues)
@click.option(
    '-opt', '--opt', 'option_file', type=click.Path(), required=True, help='Option file for train.py or test.py.'
)
@click.option(
    '--repeats', default=5, show_default=True, type=click.IntRange(0), help='Runs per latency; 0: count, run nothing.'
)
@click.option(
    '--out', type=click.Path(path_type=Path), help='File to write as well, .json or .md; one of that name is replaced.'
)
@click.option(
    '--force_yml', 'overrides', multiple=True, metavar='KEY:KEY=VALUE', help="Override options, as train.py's."
)
def command(option_file: str, repeats: int, out: Path | None, overrides: tuple[str, ...]) -> None:
    """What teacher and student cost: parameters, multiply-adds, activations, memory and latency.

    For an input of 256x256, as in the tables of NTIRE's challenges on efficient super-resolution, and for an output of
    1280x720. A train file has a teacher, a test file the student alone. Neither data nor checkpoints need be there, but
    for a teacher that spandrel is to recognize. Multiply-adds are counted once, as NTIRE's FLOPs are.

    \b
    Example:
      facd profile -opt options/train/FACD_EDSR_x4.yml
    """
    if out is not None and out.suffix not in TABLE_FORMATS:
        raise UserError(f'--out: {out}; accepted: a name that ends in {", ".join(TABLE_FORMATS)}')
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise UserError(f'--out: {out}; accepted: a file name in a folder that exists')
    get_root_logger().setLevel(logging.WARNING)  # BasicSR's parts say what they build
    result = costs(option_file, overrides, repeats)
    click.echo(cost_tables(result, text_table))
    if out is not None:
        with reraise_disk_errors():
            atomic_write(out, (TABLE_FORMATS[out.suffix](result) + '\n').encode())
