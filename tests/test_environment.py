from pathlib import Path

import pytest

from facd_basicsr.environment import available_memory


@pytest.fixture
def system(tmp_path):
    """Writes files of /proc and /sys/fs/cgroup and asks for what is left."""

    def ask(files: dict[str, str]) -> int | None:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return available_memory(tmp_path / 'proc', tmp_path / 'groups')

    return ask


MACHINE = {'proc/meminfo': 'MemTotal:  9 kB\nMemAvailable:     5 kB\nSwapFree: 1 kB\n'}
STAT = 'anon 700\ninactive_file 30\nactive_file 4\n'


def group(folder: str, limit: object, use: int) -> dict[str, str]:
    return {f'{folder}/memory.max': f'{limit}\n', f'{folder}/memory.current': f'{use}\n', f'{folder}/memory.stat': STAT}


def test_it_is_what_the_machine_has_left(system):
    assert system(MACHINE) == 5 * 1024


def test_it_is_no_more_than_what_a_group_or_one_above_it_has_left(system):
    files = {**MACHINE, 'proc/self/cgroup': '0::/a/b\n', **group('groups/a/b', 'max', 100)}
    assert system(files) == 5 * 1024
    assert system(group('groups/a', 1000, 900)) == 1000 - 900 + 34
    assert system(group('groups/a/b', 2000, 1990)) == 10 + 34
    assert system(group('groups', 300, 299)) == 1 + 34


def test_it_is_no_more_than_what_a_group_of_the_older_kind_has_left(system):
    files = {
        'proc/self/cgroup': '4:cpu,cpuacct:/a\n3:memory:/a\n',
        'groups/memory/a/memory.limit_in_bytes': '500\n',
        'groups/memory/a/memory.usage_in_bytes': '200\n',
        'groups/memory/a/memory.stat': 'inactive_file 1\ntotal_inactive_file 20\n',
        'groups/a/memory.max': '1',
    }
    assert system({**MACHINE, **files}) == 320


def test_a_container_that_does_not_see_its_groups_path_has_the_limit_at_the_root(system):
    assert system({**MACHINE, 'proc/self/cgroup': '0::/far/away\n', **group('groups', 1000, 600)}) == 434


def test_where_nothing_is_told_it_is_not_known(system):
    assert system({}) is None


def test_here_it_is_known():
    assert not Path('/proc/meminfo').exists() or available_memory() > 0
