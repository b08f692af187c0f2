"""``facd profile``: cost of teacher and student, as in NTIRE's challenges on efficient super-resolution."""

import json
from pathlib import Path

import click

from facd_basicsr.cli import QuietCommand
from facd_basicsr.errors import UserError
from facd_basicsr.evaluation.costs import cost_tables, costs
from facd_basicsr.evaluation.tables import markdown_table, text_table
from facd_basicsr.files.atomic import atomic_write, make_folder_of

TABLE_SUFFIXES = ('.json', '.md')


@click.command(cls=QuietCommand)
@click.option(
    '-opt', '--opt', 'option_file', type=click.Path(), required=True, help='Option file for train.py or test.py.'
)
@click.option(
    '--repeats', default=5, show_default=True, type=click.IntRange(0), help='Timed forward passes; 0: no latency.'
)
@click.option(
    '--out', type=click.Path(path_type=Path), help='Also write this file, .json or .md; an existing one is replaced.'
)
@click.option(
    '--force_yml', 'overrides', multiple=True, metavar='KEY:KEY=VALUE', help='Override options, as in train.py.'
)
def command(option_file: str, repeats: int, out: Path | None, overrides: tuple[str, ...]) -> None:
    """Cost of teacher and student: parameters, multiply-adds, activations, memory and latency.

    For an input of 256x256, as in NTIRE's challenges on efficient super-resolution, and for an output of 1280x720. A
    train file gives teacher and student, a test file the student. Data and checkpoints are not needed, except the
    checkpoint of a teacher that spandrel detects. A multiply-add counts as one, as in NTIRE's FLOPs.

    \b
    Example:
      facd profile -opt options/train/FACD_EDSR_x4.yml
    """
    if out is not None:
        if out.suffix not in TABLE_SUFFIXES:
            raise UserError(f'--out: {out}; accepted: a name that ends in {", ".join(TABLE_SUFFIXES)}')
        if out.is_dir():
            raise UserError(f'--out: {out} is a folder; accepted: a file name')
        make_folder_of(out, '--out')  # before networks run for minutes
    result = costs(option_file, overrides, repeats)
    click.echo(cost_tables(result, text_table))
    if out is not None:
        text = json.dumps(result, indent=1) if out.suffix == '.json' else cost_tables(result, markdown_table)
        atomic_write(out, f'{text}\n')
