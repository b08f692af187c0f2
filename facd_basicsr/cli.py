"""What the subcommands of ``facd`` share. ``python -m facd_basicsr.cli`` runs ``facd`` too (``facd_cli.py``)."""

import logging
from collections.abc import Callable
from typing import Any

import click
from basicsr.utils import get_root_logger

from facd_basicsr.errors import reraise_disk_errors
from facd_cli import COMMANDS, facd, main

logging.getLogger('matplotlib').setLevel(logging.ERROR)  # not of its font cache, before it is imported

__all__ = ['COMMANDS', 'facd', 'main']

EXIT_SKIPPED = 3  # some files were not written; 1 is an uncaught exception, 2 a user error


overrides_option = click.option(
    '--force_yml', 'overrides', multiple=True, metavar='KEY:KEY=VALUE', help='Override options, as in train.py.'
)


def methods_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of a :class:`MultiValueCommand` that say which methods stand in a table or figure."""
    for option in (
        click.option(
            '--force_yml', multiple=True, metavar='KEY:KEY=VALUE ...', help='override options of every test file'
        ),
        click.option(
            '--sets', multiple=True, metavar='SET ...', help='with --run: sets in datasets/, or their folders'
        ),
        click.option(
            '--run', 'runs', type=click.Path(), multiple=True, metavar='experiments/NAME', help='run, one per method'
        ),
        click.option(
            '-opt', '--opt', 'option_files', type=click.Path(), multiple=True, help='test file, one per method'
        ),
    ):
        function = option(function)
    return function


class MultiValueCommand(click.Command):
    """Lets ``--scale 2 3 4`` and ``--force_yml A=1 B=2`` take several values, like argparse's ``nargs='+'``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        expanded: list[str] = []
        option = None  # the option whose values are being read
        for index, arg in enumerate(args):
            if arg == '--':
                expanded += args[index:]
                break
            if arg.split('=')[0] in MULTI_VALUE_OPTIONS:
                option = arg.split('=')[0]
            elif option is not None and MULTI_VALUE_OPTIONS[option](arg):
                if expanded[-1] != option:
                    expanded.append(option)
            else:
                option = None
            expanded.append(arg)
        return super().parse_args(ctx, expanded)


class QuietCommand(MultiValueCommand):
    """Without BasicSR's messages about what it builds. An error of the disk becomes a :class:`UserError`."""

    def invoke(self, ctx: click.Context) -> Any:
        get_root_logger().setLevel(logging.WARNING)
        with reraise_disk_errors():
            return super().invoke(ctx)


def _is_number(arg: str) -> bool:
    try:
        float(arg)
    except ValueError:
        return False
    return True


MULTI_VALUE_OPTIONS: dict[str, Callable[[str], bool]] = {  # whether an argument is another value
    '--scale': _is_number,
    '--force_yml': lambda arg: '=' in arg and not arg.startswith('-'),
    '--sets': lambda arg: not arg.startswith('-'),
}


if __name__ == '__main__':
    main()
