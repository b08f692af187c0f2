import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

from facd_basicsr.environment import available_memory

AT_TORCH = """
import os, runpy, sys

class Finder:
    def find_spec(self, name, *_):
        if name == 'torch':
            print('spins', os.environ.get('GOMP_SPINCOUNT'))
            sys.stdout.flush()
            os._exit(0)

sys.meta_path.insert(0, Finder())
sys.argv = sys.argv[1:]
if sys.argv[0] == '-m':
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)
else:
    sys.path[0] = os.path.dirname(sys.argv[0])
    runpy.run_path(sys.argv[0], run_name='__main__')
"""
TRAIN = 'facd_basicsr/train.py'


@pytest.mark.parametrize(
    ('command', 'chosen', 'expected'),
    [
        ([TRAIN], {}, '10000'),
        (['-m', 'facd_basicsr.train'], {}, '10000'),
        (['facd_basicsr/test.py'], {}, '10000'),
        (['facd_cli.py', 'check'], {}, '10000'),
        (['demo/demo.py'], {}, '10000'),
        ([TRAIN], {'GOMP_SPINCOUNT': '7'}, '7'),
        ([TRAIN], {'OMP_WAIT_POLICY': 'ACTIVE'}, 'None'),
    ],
)
def test_every_entry_point_chooses_how_threads_wait_before_torch_is_imported(command, chosen, expected):
    free = {key: value for key, value in os.environ.items() if key not in ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY')}
    done = subprocess.run(
        [sys.executable, '-c', AT_TORCH, *command],
        cwd=REPOSITORY, env={**free, **chosen}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == f'spins {expected}\n'


@pytest.fixture
def system(tmp_path):
    """A function that writes files of /proc and /sys/fs/cgroup and returns the available memory."""

    def available(files: dict[str, str]) -> int | None:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return available_memory(tmp_path / 'proc', tmp_path / 'groups')

    return available


MACHINE = {'proc/meminfo': 'MemTotal:  9 kB\nMemAvailable:     5 kB\nSwapFree: 1 kB\n'}
STAT = 'anon 700\ninactive_file 30\nactive_file 4\n'


def group(folder: str, limit: object, use: int) -> dict[str, str]:
    return {f'{folder}/memory.max': f'{limit}\n', f'{folder}/memory.current': f'{use}\n', f'{folder}/memory.stat': STAT}


def test_available_memory_is_the_machines(system):
    assert system(MACHINE) == 5 * 1024


def test_available_memory_is_limited_by_a_cgroup_and_its_parents(system):
    files = {**MACHINE, 'proc/self/cgroup': '0::/a/b\n', **group('groups/a/b', 'max', 100)}
    assert system(files) == 5 * 1024
    assert system(group('groups/a', 1000, 900)) == 1000 - 900 + 34
    assert system(group('groups/a/b', 2000, 1990)) == 10 + 34
    assert system(group('groups', 300, 299)) == 1 + 34


def test_available_memory_is_limited_by_a_cgroup_of_version_1(system):
    files = {
        'proc/self/cgroup': '4:cpu,cpuacct:/a\n3:memory:/a\n',
        'groups/memory/a/memory.limit_in_bytes': '500\n',
        'groups/memory/a/memory.usage_in_bytes': '200\n',
        'groups/memory/a/memory.stat': 'inactive_file 1\ntotal_inactive_file 20\n',
        'groups/a/memory.max': '1',
    }
    assert system({**MACHINE, **files}) == 320


def test_a_container_without_its_cgroups_path_uses_the_limit_at_the_root(system):
    assert system({**MACHINE, 'proc/self/cgroup': '0::/far/away\n', **group('groups', 1000, 600)}) == 434


def test_without_proc_available_memory_is_none(system):
    assert system({}) is None


def test_available_memory_is_known_on_linux():
    assert not Path('/proc/meminfo').exists() or available_memory() > 0
