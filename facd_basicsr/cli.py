"""What the subcommands of ``facd`` share; ``facd`` itself is ``facd_cli.py``, beside this package.

``python -m facd_basicsr.cli`` is ``facd`` too.
"""

import click

from facd_cli import COMMANDS, facd, main

__all__ = ['COMMANDS', 'SeveralValues', 'facd', 'main', 'test_files_option']

# for a SeveralValues of checkpoints side by side
test_files_option = click.option(
    '-opt',
    '--opt',
    'option_files',
    type=click.Path(),
    multiple=True,
    required=True,
    help='test file; one for each method',
)


class SeveralValues(click.Command):
    """Lets ``--scale 2 3 4`` and ``--force_yml A=1 B=2`` take all that follows, as argparse's ``nargs='+'`` does."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spelled_out: list[str] = []
        option = None  # whose values are being read
        for index, arg in enumerate(args):
            if arg == '--':
                spelled_out += args[index:]
                break
            if arg.split('=')[0] in SEVERAL:
                option = arg.split('=')[0]
            elif option is not None and SEVERAL[option](arg):
                if spelled_out[-1] != option:
                    spelled_out.append(option)
            else:
                option = None
            spelled_out.append(arg)
        return super().parse_args(ctx, spelled_out)


def _is_number(arg: str) -> bool:
    try:
        float(arg)
    except ValueError:
        return False
    return True


def _is_entry(arg: str) -> bool:
    return '=' in arg and not arg.startswith('-')


SEVERAL = {'--scale': _is_number, '--force_yml': _is_entry}


if __name__ == '__main__':
    main()
