"""Runs Python command lines in new processes, as a user would."""

import gc
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

# Forked from a server that has imported everything: processes start in milliseconds, not seconds.
FORKED = multiprocessing.get_context('forkserver')
FORKED.set_forkserver_preload(['facd_basicsr.train', 'tensorboard'])
TEST_PATHS = [str(Path(__file__).resolve().parents[1] / folder) for folder in ('tests', 'benchmarks')]  # in sys.path


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs ``python COMMAND`` in ``cwd``, in a forked process that does not import torch again.

    It imports BasicSR and this package itself, from the same paths as a new interpreter.

    Args:
        env: additions to this process's environment.
    """
    words = [str(word) for word in command]
    with tempfile.TemporaryDirectory() as folder:
        stdout, stderr = Path(folder) / 'stdout', Path(folder) / 'stderr'
        arguments = (words, cwd, {**_environment(), **(env or {})}, stdout, stderr)
        process = FORKED.Process(target=act_as_python, args=arguments)
        process.start()
        process.join(TIMEOUT)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(words, TIMEOUT)
        return subprocess.CompletedProcess(words, process.exitcode, stdout.read_text(), stderr.read_text())


def run_ranks(*command: str | Path, cwd: Path, size: int = 2) -> subprocess.CompletedProcess[str]:
    """Runs the ranks of one job with the same command line, like torchrun but without its seconds of start-up."""
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


def run_in_new_interpreter(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Like :func:`run`, in a new interpreter: for one test per entry point."""
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


def act_as_python(words: list[str], cwd: Path, env: dict[str, str], stdout: Path, stderr: Path) -> None:
    """``python WORDS`` in a process of ``FORKED``."""
    for path, stream in ((stdout, sys.stdout), (stderr, sys.stderr)):
        with path.open('a') as file:
            os.dup2(file.fileno(), stream.fileno())
    gc.freeze()  # what the server has imported need not be searched
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    torch.set_num_threads(1)
    multiprocessing.set_start_method('fork', force=True)  # Python's own, not the server's
    for name in [name for name in sys.modules if name.partition('.')[0] in ('basicsr', 'facd_basicsr')]:
        del sys.modules[name]
    path = [folder for folder in sys.path if folder not in TEST_PATHS]
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
