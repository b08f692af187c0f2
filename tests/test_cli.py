import click
import pytest
from click.testing import CliRunner
from conftest import run

from facd_basicsr.cli import COMMANDS, SeveralValues, facd


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
def test_options_take_all_the_values_that_follow(line, scales, entries, folder):
    seen = {}

    @click.command(cls=SeveralValues)
    @click.argument('folder')
    @click.option('--scale', multiple=True, type=int)
    @click.option('--force_yml', multiple=True)
    def command(**values: object) -> None:
        seen.update(values)

    result = CliRunner().invoke(command, line.split())
    assert result.exit_code == 0, result.output
    assert seen == {'folder': folder, 'scale': scales, 'force_yml': entries}
