"""``facd show``: an option file with all that it inherits, as one that stands alone."""

import os
from collections.abc import Sequence

import click

from facd_basicsr.cli import SeveralValues
from facd_basicsr.errors import UserError
from facd_basicsr.options.option_check import check_options
from facd_basicsr.options.option_files import lineage, option_text
from facd_basicsr.options.parse import read_options


def show(option_file: str, overrides: Sequence[str]) -> str:
    """The text of an option file that needs no base, under a comment that says where it is from.

    Args:
        option_file: for train.py or test.py.
        overrides: as ``--force_yml`` has them.

    Raises:
        UserError: a file cannot be read, or a key is not accepted. Data, teacher and checkpoints need not be there.
    """
    opt = read_options(option_file, overrides)
    try:
        check_options(opt, is_train='train' in opt)
    except UserError as error:
        raise UserError(f'{option_file}: {error}') from error
    files = ', which is based on '.join(os.path.normpath(path) for path, _ in lineage(option_file))
    comment = f'# resolved from {files}\n'
    if overrides:
        comment += f'# with --force_yml {" ".join(" ".join(overrides).split())}\n'
    return f'{comment}\n{option_text(opt)}'


@click.command(cls=SeveralValues)
@click.option(
    '-opt', '--opt', 'option_file', type=click.Path(), required=True, help='Option file for train.py or test.py.'
)
@click.option(
    '--force_yml', 'overrides', multiple=True, metavar='KEY:KEY=VALUE', help="Override options, as train.py's."
)
def command(option_file: str, overrides: tuple[str, ...]) -> None:
    """Print an option file with all that it inherits from its base.

    What is printed is an option file too, one that BasicSR's own loader reads. Its keys are checked; the data need not
    be there.

    \b
    Example:
      facd show -opt options/train/FAKD_EDSR_x4.yml
    """
    click.echo(show(option_file, overrides), nl=False)
