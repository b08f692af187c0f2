"""The console command ``facd``. Each subcommand is one file in ``facd_basicsr/tools/``, imported on demand.

This file is outside the package because ``import facd_basicsr`` imports torch. That takes seconds, and help, completion
and error messages for mistyped commands do not need it.
"""

import importlib
import sys

import click
from click.shell_completion import CompletionItem

# name: description in `facd --help`, which imports no subcommand
COMMANDS: dict[str, str] = {
    'prepare': 'Prepare training pairs and benchmark sets in the layout that the option files expect.',
    'show': 'Print an option file merged with its base.',
    'check': 'Check data, teacher, taps and memory before a run, and time one iteration.',
    'convert': 'Rewrite an EDSR or RCAN checkpoint in another key layout.',
    'benchmark': "The paper's table: PSNR and SSIM of several checkpoints.",
    'profile': 'Cost of teacher and student: parameters, FLOPs, activations, memory, latency.',
    'compare': 'Train methods x seeds under equal settings and report the results.',
    'figure': "The paper's figures: crops side by side, and where the student beats the teacher.",
    'report': 'A run as one HTML page: curves, table, crops with a slider, options, environment.',
    'export': 'Export a trained student as .pth, safetensors and ONNX, and verify each file.',
    'upscale': 'Upscale images, folders of images and streams of frames with a student.',
}


class LazyGroup(click.Group):
    """Imports a subcommand, ``command`` in ``facd_basicsr/tools/NAME.py``, when it is used."""

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
        return names + click.Command.shell_complete(self, ctx, incomplete)  # click.Group's imports every subcommand


@click.group(cls=LazyGroup, context_settings={'help_option_names': ['-h', '--help'], 'max_content_width': 120})
@click.version_option(package_name='facd_basicsr')
def facd() -> None:
    """Knowledge distillation for super-resolution in BasicSR: data, checks, evaluation, reports and deployment."""


def main() -> None:
    """Runs ``facd`` with the exit codes of ``run_command``: 2 for a user error, 130 for Ctrl-C."""
    if COMMANDS.keys().isdisjoint(sys.argv[1:]):  # no subcommand: only click raises errors
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
