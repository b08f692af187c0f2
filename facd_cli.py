"""``facd``: one console command. Each subcommand is one file in ``facd_basicsr/tools/``, imported when it is asked for.

This file lies beside the package, not in it: ``import facd_basicsr`` registers with BasicSR and so imports torch, which
takes seconds that help, completion and a mistyped name need not wait for.
"""

import importlib
import sys

import click
from click.shell_completion import CompletionItem

# name: what `facd --help` says of it, without importing it
COMMANDS: dict[str, str] = {
    'prepare': 'Training pairs and benchmark sets, in the layout that the option files expect.',
    'show': 'Print an option file with all that it inherits from its base.',
    'check': 'Try everything a run run needs, before it is started.',
    'convert': 'Rewrite an EDSR or RCAN checkpoint in another key layout.',
    'benchmark': "The paper's table: PSNR and SSIM of several checkpoints side by side.",
    'profile': 'What teacher and student cost: parameters, FLOPs, activations, memory, latency.',
    'compare': 'Methods times seeds, trained alike, and one report of them all.',
    'figure': "The paper's figures: crops side by side, and where the teacher loses to the student.",
    'report': 'A run as one HTML page: curves, table, crops with a slider, options, environment.',
    'export': 'A trained student as .pth, safetensors and ONNX, each loaded back and compared.',
    'upscale': 'Upscale images, and folders of them, by a student.',
}


class Tools(click.Group):
    """The subcommands: ``command`` of the module in ``facd_basicsr/tools/`` that has the subcommand's name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(f'facd_basicsr.tools.{cmd_name}').command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section('Commands'):
            formatter.write_dl(list(COMMANDS.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        names = [CompletionItem(name, help=text) for name, text in COMMANDS.items() if name.startswith(incomplete)]
        return names + click.Command.shell_complete(self, ctx, incomplete)  # the group's own imports every subcommand


@click.group(cls=Tools, context_settings={'help_option_names': ['-h', '--help'], 'max_content_width': 120})
@click.version_option(package_name='facd_basicsr')
def facd() -> None:
    """Knowledge distillation for super-resolution in BasicSR: what comes before and after training."""


def main() -> None:
    """As click's own, but with ``run_command``'s exit codes: 2 for what a user can fix, 130 for Ctrl-C."""
    if COMMANDS.keys().isdisjoint(sys.argv[1:]):  # no subcommand is run, so nothing but click's errors can come
        _run()
    else:
        from facd_basicsr.errors import run_command

        run_command(_run)


def _run() -> None:
    try:
        facd(prog_name='facd', standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        raise KeyboardInterrupt from None


if __name__ == '__main__':
    main()
