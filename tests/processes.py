"""Python command lines in processes of their own, as a user gives them."""

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

TIMEOUT = 300  # seconds

# Forked from a server that has imported everything: a process takes some milliseconds to start, not seconds.
FORKED = multiprocessing.get_context('forkserver')
FORKED.set_forkserver_preload(['facd_basicsr.train', 'tensorboard'])
TESTS_ONLY = [str(Path(__file__).resolve().parents[1] / folder) for folder in ('tests', 'benchmarks')]  # of sys.path


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs what follows ``python`` on a command line from ``cwd``, where torch and what else is large need not be read.

    The process is forked; it imports BasicSR and this package itself, from where a new interpreter would.

    Args:
        env: added to this process's environment.
    """
    words = [str(word) for word in command]
    with tempfile.TemporaryDirectory() as folder:
        stdout, stderr = Path(folder) / 'stdout', Path(folder) / 'stderr'
        arguments = (words, cwd, {**_environment(), **(env or {})}, stdout, stderr)
        process = FORKED.Process(target=_be_python, args=arguments)
        process.start()
        process.join(TIMEOUT)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(words, TIMEOUT)
        return subprocess.CompletedProcess(words, process.exitcode, stdout.read_text(), stderr.read_text())


def run_ranks(*command: str | Path, cwd: Path, size: int = 2) -> subprocess.CompletedProcess[str]:
    """As torchrun, whose own start and that of its processes take seconds: the ranks of one job, told the same."""
    job = {'WORLD_SIZE': str(size), 'LOCAL_WORLD_SIZE': str(size), 'MASTER_ADDR': '127.0.0.1'}
    job['MASTER_PORT'] = str(free_port())

    def rank(number: int) -> subprocess.CompletedProcess[str]:
        return run(*command, cwd=cwd, env={**job, 'RANK': str(number), 'LOCAL_RANK': str(number)})

    with ThreadPoolExecutor(size) as pool:
        done = list(pool.map(rank, range(size)))
    stdout, stderr = (''.join(getattr(one, stream) for one in done) for stream in ('stdout', 'stderr'))
    return subprocess.CompletedProcess(command, max(abs(one.returncode) for one in done), stdout, stderr)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


def run_anew(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """As :func:`run`, in a new interpreter: for one test of each entry point."""
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


def _environment() -> dict[str, str]:
    return {**os.environ, 'OMP_NUM_THREADS': '1'}


def _be_python(words: list[str], cwd: Path, env: dict[str, str], stdout: Path, stderr: Path) -> None:
    for path, stream in ((stdout, sys.stdout), (stderr, sys.stderr)):
        with path.open('w') as file:
            os.dup2(file.fileno(), stream.fileno())
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    torch.set_num_threads(1)
    multiprocessing.set_start_method('fork', force=True)  # Python's own, not the server's
    for name in [name for name in sys.modules if name.partition('.')[0] in ('basicsr', 'facd_basicsr')]:
        del sys.modules[name]
    path = [folder for folder in sys.path if folder not in TESTS_ONLY]
    if words[0] == '-m':
        sys.path[:] = [str(cwd), *path]
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name='__main__', alter_sys=True)
    elif words[0] == '-c':
        sys.path[:] = [str(cwd), *path]
        sys.argv = ['-c', *words[2:]]
        exec(words[1], sys.modules['__main__'].__dict__)
    else:
        sys.path[:] = [str(Path(words[0]).resolve().parent), *path]
        sys.argv = words
        runpy.run_path(words[0], run_name='__main__')
