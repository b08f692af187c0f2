"""Milliseconds of a training step by how OpenMP's threads wait for each other, on a quiet and on a busy machine.

    python benchmarks/threads.py demo/FACD.yml --out benchmarks/results/threads.json

Each way has a process, with the environment variables that OpenMP reads when torch is imported. The processes take
turns of a few steps, so that other work on the machine affects all of them equally: quiet, then, in fewer turns, busy
with an endless loop a core beside what else runs. Medians, and medians of the ratio to OpenMP's own way within a round
of turns. With ``--real-time``, which needs root, the quiet turns have real-time priority, so that other work does not
take part in them.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import facd_basicsr  # noqa: F401  must come before basicsr

# isort: split
import torch
from distillation_models import options, ours, random_batch, train_step

from facd_basicsr.environment import SPINS, machine, versions
from facd_basicsr.evaluation.tables import text_table

OWN, OURS = "OpenMP's own", f'{SPINS:,} spins'
WAYS: dict[str, dict[str, str]] = {
    OWN: {'GOMP_SPINCOUNT': '300000'},  # what libgomp takes where nothing is set
    OURS: {'GOMP_SPINCOUNT': str(SPINS)},
    'no spins': {'GOMP_SPINCOUNT': '0'},
    'one thread': {'GOMP_SPINCOUNT': '300000', 'OMP_NUM_THREADS': '1'},
}
CORES = os.cpu_count() or 1


def serve(option_file: Path, batch: int, patch: int, steps: int) -> None:
    """Answers each line of stdin, ``quiet``, ``busy`` or ``real-time``, with the seconds of a step."""
    with tempfile.TemporaryDirectory() as folder:
        opt = options(option_file, Path(folder), batch, patch)
        model, data = ours(opt), random_batch(opt)
        for number, line in enumerate(sys.stdin):
            _prioritize(line.strip() == 'real-time')
            start = time.perf_counter()
            for step in range(steps):
                train_step(model, data, number * steps + step + 1)
            seconds = (time.perf_counter() - start) / steps
            _prioritize(False)
            print('took', seconds, flush=True)


def _prioritize(real_time: bool) -> None:
    policy, priority = (os.SCHED_FIFO, 1) if real_time else (os.SCHED_OTHER, 0)
    for thread in Path('/proc/self/task').iterdir():
        os.sched_setscheduler(int(thread.name), policy, os.sched_param(priority))


class Way:
    """A process of :func:`serve`."""

    def __init__(self, variables: dict[str, str], arguments: list[str]) -> None:
        free = {key: value for key, value in os.environ.items() if not key.startswith(('OMP_', 'GOMP_'))}
        self._process = subprocess.Popen(
            [sys.executable, __file__, *arguments, '--serve'],
            env={**free, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def seconds(self, how: str) -> float:
        """Of a step in one turn."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(f'{how}\n')
        stdin.flush()
        return next(float(line.split()[1]) for line in stdout if line.startswith('took '))  # BasicSR prints, too

    def end(self) -> None:
        self._process.communicate()


def _spin() -> None:
    while True:
        pass


@contextmanager
def endless_loops(count: int) -> Iterator[None]:
    loops = [multiprocessing.Process(target=_spin, daemon=True) for _ in range(count)]
    for loop in loops:
        loop.start()
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.join()


def measure(ways: dict[str, Way], how: str, turns: int) -> dict[str, dict[str, float]]:
    """{way: milliseconds of a step, and their ratio to OpenMP's own way}, medians."""
    rounds = []
    for turn in range(turns):
        names = list(ways)[:: 1 if turn % 2 else -1]  # whoever comes first may find the caches of other work
        seconds = {}
        for name in names:
            with endless_loops(CORES if how == 'busy' else 0):
                seconds[name] = ways[name].seconds(how)
        rounds.append(seconds)
        print(how, {name: f'{1000 * value:.0f} ms' for name, value in seconds.items()}, flush=True)
    return {
        name: {
            'ms': round(1000 * statistics.median(seconds[name] for seconds in rounds), 1),
            'ratio': round(statistics.median(seconds[name] / seconds[OWN] for seconds in rounds), 3),
        }
        for name in ways
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument('option_file', type=Path)
    arguments.add_argument('--batch', type=int, default=16)
    arguments.add_argument('--patch', type=int, default=24, help='height and width of LQ')
    arguments.add_argument('--steps', type=int, default=2, help='of a turn')
    arguments.add_argument('--turns', type=int, default=30, help='quiet ones; busy a fifth, of which each takes longer')
    arguments.add_argument('--real-time', action='store_true', help='quiet turns with real-time priority; needs root')
    arguments.add_argument('--out', type=Path)
    arguments.add_argument('--serve', action='store_true', help=argparse.SUPPRESS)
    args = arguments.parse_args()
    if args.serve:
        serve(args.option_file, args.batch, args.patch, args.steps)
        return
    if args.out is None:
        arguments.error('--out: missing')
    shared = [str(args.option_file), '--batch', str(args.batch), '--patch', str(args.patch), '--steps', str(args.steps)]
    ways = {name: Way(variables, shared) for name, variables in WAYS.items()}
    for way in ways.values():
        way.seconds('quiet')  # starts threads, chooses algorithms
    quiet = 'real-time' if args.real_time else 'quiet'
    load: dict[str, float] = {}
    found: dict[str, dict[str, dict[str, float]]] = {}
    turns = {'quiet': args.turns, 'busy': max(1, args.turns // 5)}
    for kind, how in (('quiet', quiet), ('busy', 'busy')):
        found[kind] = measure(ways, how, turns[kind])
        load[kind] = round(os.getloadavg()[0], 1)
    for way in ways.values():
        way.end()
    result: dict[str, Any] = {
        'option_file': str(args.option_file),
        'batch': args.batch,
        'patch': args.patch,
        'turns': turns,
        'machine': machine(),
        'threads': torch.get_num_threads(),
        'versions': versions(),
        'real_time': args.real_time,
        'load_average': load,
        'ways': {name: {kind: by_way[name] for kind, by_way in found.items()} for name in ways},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')
    rows = [
        [name, *(f'{by_kind[kind][key]:.2f}' for kind in ('quiet', 'busy') for key in ('ms', 'ratio'))]
        for name, by_kind in result['ways'].items()
    ]
    print(text_table(['threads', 'quiet, ms', 'ratio', 'busy, ms', 'ratio'], rows))


if __name__ == '__main__':
    main()
