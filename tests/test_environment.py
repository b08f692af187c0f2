from pathlib import Path

import pytest

from facd_basicsr.environment import available_memory


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
