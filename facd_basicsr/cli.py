"""What the subcommands of ``facd`` share. ``python -m facd_basicsr.cli`` runs ``facd`` too (``facd_cli.py``)."""

import click

from facd_cli import COMMANDS, facd, main

__all__ = ['COMMANDS', 'MultiValueCommand', 'facd', 'main', 'test_files_option']

# for a MultiValueCommand
test_files_option = click.option(
    '-opt',
    '--opt',
    'option_files',
    type=click.Path(),
    multiple=True,
    required=True,
    help='test file, one per method',
)


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


def _is_number(arg: str) -> bool:
    try:
        float(arg)
    except ValueError:
        return False
    return True


def _is_override(arg: str) -> bool:
    return '=' in arg and not arg.startswith('-')


MULTI_VALUE_OPTIONS = {'--scale': _is_number, '--force_yml': _is_override}


if __name__ == '__main__':
    main()
