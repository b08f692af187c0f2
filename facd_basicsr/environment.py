"""The machine: its processor or GPU, how threads wait, the versions of what results depend on, and free memory.

Importing this module imports neither torch nor basicsr: :func:`choose_thread_waiting` comes before them.
"""

import ctypes
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

# Of control groups, version 2 and 1: limit, use, and what of the use is only a copy of files.
NAMES = (
    ('memory.max', 'memory.current', ('inactive_file', 'active_file')),
    ('memory.limit_in_bytes', 'memory.usage_in_bytes', ('total_inactive_file', 'total_active_file')),
)


# Of libgomp, torch's OpenMP on Linux. Its own are 300,000, more than the scheduler's time slice: on a busy machine the
# thread that is waited for may get its core only when the spinning one has used that up, at every layer of a network.
# None at all would make a quiet machine slower (docs/performance.md#threads).
SPINS = 10_000


M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


def choose_thread_waiting() -> None:
    """Limits how long OpenMP's threads spin before they sleep, unless the user has chosen: no result depends on it.

    Before torch is imported, or it has no effect. The number of threads stays OpenMP's, one a core: on a quiet machine
    fewer are slower, and results depend on it.
    """
    if os.environ.keys().isdisjoint({'GOMP_SPINCOUNT', 'OMP_WAIT_POLICY'}):
        os.environ['GOMP_SPINCOUNT'] = str(SPINS)


def processors() -> int:
    """Cores that this process may use: of the machine's all, or those of its CPU affinity (a container, a job)."""
    if hasattr(os, 'sched_getaffinity'):  # Linux alone
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory(proc: Path = Path('/proc'), groups: Path = Path('/sys/fs/cgroup')) -> int | None:
    """Bytes that this process may still take: what the machine has left, or its control group (a container, a job).

    None where neither is told, which only Linux does.
    """
    machine = (int(line.split()[1]) * 1024 for line in _lines(proc / 'meminfo') if line.startswith('MemAvailable:'))
    return min([*machine, *_groups(proc / 'self' / 'cgroup', groups)], default=None)


def resident_memory() -> int:
    """Bytes of RAM that this process has now; where the system does not tell, the most that it has had."""
    pages = ''.join(_lines(Path('/proc/self/statm'))).split()
    if pages:
        return int(pages[1]) * os.sysconf('SC_PAGE_SIZE')
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def return_freed_memory() -> None:
    """Lets the C library give every large block back to the system when it is freed, which costs time.

    glibc keeps blocks of up to 32 MiB: features that are freed take half as much memory again (docs/upscale.md#memory).
    """
    library = ctypes.CDLL(None)
    with suppress(AttributeError):  # another C library
        library.mallopt(M_MMAP_THRESHOLD, 2**18)
        library.malloc_trim(0)


def _groups(own: Path, root: Path) -> Iterator[int]:
    """What is left of each limit: a group's, and of those that it is part of."""
    for line in _lines(own):
        _, controllers, path = line.split(':', 2)
        if controllers and 'memory' not in controllers.split(','):
            continue
        top = root / 'memory' if controllers else root
        group = top / path.lstrip('/')
        for folder in (group, *group.parents):
            yield from _room(folder)
            if folder == top:
                break


def _room(folder: Path) -> Iterator[int]:
    for limit_name, use_name, cache_names in NAMES:
        limit, use = (''.join(_lines(folder / name)) for name in (limit_name, use_name))
        if limit.isdecimal() and use.isdecimal():
            stat = dict(line.split() for line in _lines(folder / 'memory.stat'))
            yield int(limit) - int(use) + sum(int(stat.get(name, 0)) for name in cache_names)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def versions() -> str:
    """The versions a result depends on, in one line."""
    import basicsr.version
    import torch
    import torchvision

    return (
        f'Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}, '
        f'basicsr {basicsr.version.__version__}'
    )


def machine(on_gpu: bool | None = None) -> str:
    """The GPU or, where there is none or ``on_gpu`` is false, the processor."""
    import torch

    if torch.cuda.is_available() if on_gpu is None else on_gpu:
        return torch.cuda.get_device_name()
    cpuinfo = Path('/proc/cpuinfo')
    lines = cpuinfo.read_text(encoding='utf-8').splitlines() if cpuinfo.is_file() else []
    models = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    return models[0] if models else platform.processor() or platform.machine()


def git_commit(checkout: Path) -> str | None:
    """The commit of a checkout, with ``-dirty`` where files have changed since; None where there is no git checkout."""
    if not (checkout / '.git').exists():  # a package that is installed within another project's checkout
        return None
    command = ['git', '-C', str(checkout), 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*']
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
