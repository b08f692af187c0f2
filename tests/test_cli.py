import os
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner
from conftest import REPOSITORY, run

from facd_basicsr.cli import COMMANDS, MultiValueCommand, facd


@pytest.mark.parametrize('name', COMMANDS)
def test_every_subcommand_has_help_with_an_example(name):
    result = CliRunner().invoke(facd, [name, '--help'], prog_name='facd')
    assert result.exit_code == 0, result.output
    texts = [result.output]
    if 'Commands:' in result.output:
        group = facd.get_command(None, name)
        texts = [CliRunner().invoke(facd, [name, sub, '--help'], prog_name='facd').output for sub in group.commands]
    for text in texts:
        assert f'facd {name}' in text.split('Example', 1)[1]


def test_help_lists_every_subcommand():
    output = CliRunner().invoke(facd, ['--help']).output
    assert all(f'  {name} ' in output for name in COMMANDS)


def main_without_the_package(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs ``facd ARGS`` in a new process, which fails if it imports the package, torch or basicsr."""
    code = """
import sys
import facd_cli
try:
    facd_cli.main()
finally:
    imported = {'basicsr', 'facd_basicsr', 'torch'} & sys.modules.keys()
    if imported:
        sys.exit(f'imported: {imported}')
"""
    return subprocess.run(
        [sys.executable, '-c', code, *args], cwd=REPOSITORY, env={**os.environ, **env}, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ('args', 'code', 'message'),
    [
        (['--help'], 0, COMMANDS['prepare']),
        (['-h'], 0, COMMANDS['figure']),
        (['--version'], 0, 'version'),
        ([], 2, COMMANDS['show']),
        (['prepair'], 2, "No such command 'prepair'"),
        (['--halp'], 2, '--halp'),
    ],
)
def test_without_a_subcommand_torch_and_basicsr_are_not_imported(args, code, message):
    done = main_without_the_package(*args)
    assert (done.returncode, message in ' '.join((done.stdout + done.stderr).split())) == (code, True), done


def test_completion_of_subcommands_does_not_import_torch_and_basicsr():
    words = {'COMP_WORDS': 'facd c', 'COMP_CWORD': '1'}
    done = main_without_the_package(_FACD_COMPLETE='bash_complete', **words)
    assert done.stdout.split() == ['plain,check', 'plain,convert', 'plain,compare'], done


def test_an_unknown_subcommand_exits_with_2(tmp_path):
    done = run('-m', 'facd_basicsr.cli', 'prepair', cwd=tmp_path)
    assert done.returncode == 2
    assert "No such command 'prepair'" in done.stderr


@pytest.mark.parametrize(
    ('line', 'scales', 'entries', 'folder'),
    [
        ('--scale 2 3 4 HR', (2, 3, 4), (), 'HR'),
        ('HR --scale 4', (4,), (), 'HR'),
        ('--scale 2 --scale 3 HR', (2, 3), (), 'HR'),
        ('--scale=2 3 HR', (2, 3), (), 'HR'),
        ('HR --force_yml a=1 b:c=2 --scale 2 3', (2, 3), ('a=1', 'b:c=2'), 'HR'),
        ('--force_yml a=1 --force_yml b=--x HR', (), ('a=1', 'b=--x'), 'HR'),
        ('--force_yml a=1 -- 2', (), ('a=1',), '2'),
    ],
)
def test_options_take_several_values(line, scales, entries, folder):
    seen = {}

    @click.command(cls=MultiValueCommand)
    @click.argument('folder')
    @click.option('--scale', multiple=True, type=int)
    @click.option('--force_yml', multiple=True)
    def command(**values: object) -> None:
        seen.update(values)

    result = CliRunner().invoke(command, line.split())
    assert result.exit_code == 0, result.output
    assert seen == {'folder': folder, 'scale': scales, 'force_yml': entries}
