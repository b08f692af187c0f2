"""``facd``: one console command. Each subcommand is one file in ``tools/``, imported when it is asked for."""

import importlib
import sys

import click

from facd_basicsr.errors import run_command

# name: what `facd --help` says of it, without importing it
COMMANDS: dict[str, str] = {
    'prepare': 'Training pairs and benchmark sets, in the layout that the option files expect.',
    'convert': 'Rewrite an EDSR or RCAN checkpoint in another key layout.',
    'show': 'Print an option file with all that it inherits from its base.',
    'check': 'Try everything a training run needs, before it is started.',
    'benchmark': "The paper's table: PSNR and SSIM of several checkpoints side by side.",
    'compare': 'Methods times seeds, trained alike, and one report of them all.',
    'figure': "The paper's figures: crops side by side, and where the teacher loses to the student.",
}


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


class Tools(click.Group):
    """The subcommands: ``command`` of the module in ``tools/`` that has the subcommand's name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(f'facd_basicsr.tools.{cmd_name}').command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section('Commands'):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Tools, context_settings={'help_option_names': ['-h', '--help'], 'max_content_width': 120})
@click.version_option(package_name='facd_basicsr')
def facd() -> None:
    """Knowledge distillation for super-resolution in BasicSR: what comes before and after training."""


def main() -> None:
    run_command(_run)


def _run() -> None:
    """As click's own main, but with :func:`run_command`'s exit codes: 2 for what a user can mend, 130 for Ctrl-C."""
    try:
        facd(prog_name='facd', standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        raise KeyboardInterrupt from None


if __name__ == '__main__':
    main()
