"""``facd show``: an option file merged with its base."""

import os
from collections.abc import Sequence

import click

from facd_basicsr.cli import MultiValueCommand, overrides_option
from facd_basicsr.options.option_files import lineage, option_text
from facd_basicsr.options.parse import checked, read_options


def show(option_file: str, overrides: Sequence[str], defaults: bool = False) -> str:
    """The text of a standalone option file, with a comment that names its sources, and with every default if so asked.

    Raises:
        UserError: a file cannot be read, or a key is not accepted. Data, teacher and checkpoints may be missing.
    """
    opt = read_options(option_file, overrides)
    complete = checked(opt, option_file)
    files = ', which is based on '.join(os.path.normpath(path) for path, _ in lineage(option_file))
    comment = f'# resolved from {files}\n'
    if overrides:
        comment += f'# with --force_yml {" ".join(" ".join(overrides).split())}\n'
    return f'{comment}\n{option_text(complete if defaults else opt)}'


@click.command(cls=MultiValueCommand)
@click.option(
    '-opt', '--opt', 'option_file', type=click.Path(), required=True, help='Option file for train.py or test.py.'
)
@overrides_option
@click.option('--defaults', is_flag=True, help='Also print every key that is left out, with its default.')
def command(option_file: str, overrides: tuple[str, ...], defaults: bool) -> None:
    """Print an option file merged with its base.

    The output is an option file that BasicSR's own loader reads too. Keys are checked; data may be missing.

    \b
    Example:
      facd show -opt options/train/FAKD_EDSR_x4.yml
    """
    click.echo(show(option_file, overrides, defaults), nl=False)
