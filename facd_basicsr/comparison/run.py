"""Trains the runs of a comparison, each by train.py in a process of its own, and goes on where it was stopped."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from facd_basicsr.comparison.plan import Comparison, Run
from facd_basicsr.errors import UserError
from facd_basicsr.options import load_yaml
from facd_basicsr.options.parse import load_options
from facd_basicsr.options.plain_yaml import option_text

POLL = 0.2  # seconds between looks at the processes
SHOWN = 3  # keys that a message about changed options names


@dataclass(frozen=True)
class Folder:
    """Where a comparison keeps its files: ``results/NAME``."""

    root: Path

    def option_file(self, run: Run) -> Path:
        return self.root / 'options' / f'{run.name}.yml'

    def record(self, run: Run) -> Path:
        """What is known of a finished run, as JSON. It is there once all of it is."""
        return self.root / 'runs' / f'{run.name}.json'

    def output(self, run: Run) -> Path:
        """What its process printed."""
        return self.root / 'runs' / f'{run.name}.log'


def write_option_files(comparison: Comparison, folder: Folder) -> None:
    """Writes every run's option file, after checking each method as train.py will.

    Raises:
        UserError: a method's options are not accepted, or those of a run have changed since it was begun.
    """
    runs = list(comparison.runs())
    for run in runs:
        path = folder.option_file(run)
        if path.is_file():
            before = load_yaml(path.read_text(encoding='utf-8'), str(path))
            _check_unchanged(run, before, folder)
    for directory in ('options', 'runs'):
        (folder.root / directory).mkdir(parents=True, exist_ok=True)
    for run in runs:
        path = folder.option_file(run)
        if not path.is_file():
            partial = path.with_suffix('.partial')
            partial.write_text(option_text(run.opt), encoding='utf-8')
            if run.seed == comparison.seeds[0]:
                _check(run, partial)
            partial.replace(path)


def _check(run: Run, path: Path) -> None:
    try:
        load_options(str(path), [], is_train=True)
    except UserError as error:
        path.unlink()
        raise UserError(f'methods.{run.method}: {str(error).removeprefix(f"{path}: ")}') from error


def _check_unchanged(run: Run, before: dict[str, Any], folder: Folder) -> None:
    changed = sorted(_leaves(before).items() ^ _leaves(run.opt).items())
    if changed:
        names = list(dict.fromkeys(key for key, _ in changed))
        raise UserError(
            f'methods.{run.method}: {", ".join(names[:SHOWN])}{" and more" * (len(names) > SHOWN)} changed since the '
            f'comparison was begun; accepted: as it was ({folder.option_file(run)}), another name for the method or '
            f'the comparison, or none of its files: rm {folder.root}/*/{run.method}_seed*'
        )


def _leaves(block: Any, path: str = '') -> dict[str, str]:
    """{dotted key: its value as text}."""
    if not isinstance(block, dict):
        return {path: repr(block)}
    return {
        key: value
        for name, item in block.items()
        for key, value in _leaves(item, f'{path}.{name}' if path else str(name)).items()
    }


def train_all(comparison: Comparison, folder: Folder, jobs: int, finished: Callable[[Run], dict[str, Any]]) -> None:
    """Trains what is not trained yet, ``jobs`` runs at a time, and writes the record of each.

    A run that was stopped goes on from its newest training state, by train.py's ``--auto_resume``.

    Args:
        comparison: whose runs.
        folder: with their option files.
        jobs: processes at a time. With GPUs each has one of its own, in turn; without, they share the CPU's cores.
        finished: makes the record of a trained run.

    Raises:
        UserError: a training failed; those that run beside it are ended, and go on next time.
    """
    waiting = [run for run in comparison.runs() if not folder.record(run).is_file()]
    running: dict[int, tuple[Run, subprocess.Popen]] = {}
    trained: list[Run] = []
    try:
        while waiting or running or trained:
            for slot, (run, process) in list(running.items()):
                if process.poll() is not None:
                    del running[slot]
                    if process.returncode != 0:
                        raise UserError(f'{run.name}: {_last_line(folder.output(run), process.returncode)}')
                    trained.append(run)
            for slot in [slot for slot in range(jobs) if slot not in running][: len(waiting)]:
                run = waiting.pop(0)
                running[slot] = (run, _start(run, folder, slot, jobs))
                print(f'{run.name}: training; {folder.output(run)}', flush=True)
            if trained:  # after the next one was started: scoring takes its time
                _finish(trained.pop(0), folder, finished)
            else:
                time.sleep(POLL)
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.wait()


def _finish(run: Run, folder: Folder, finished: Callable[[Run], dict[str, Any]]) -> None:
    record = finished(run)
    write_json(folder.record(run), record)
    scores = ', '.join(f'{name} {found["psnr_y"]:.3f} dB' for name, found in record['means'].items())
    print(f'{run.name}: {scores}', flush=True)


def _start(run: Run, folder: Folder, slot: int, jobs: int) -> subprocess.Popen:
    env = dict(os.environ)
    gpus = torch.cuda.device_count()
    if gpus:
        visible = env.get('CUDA_VISIBLE_DEVICES', ','.join(map(str, range(gpus)))).split(',')
        env['CUDA_VISIBLE_DEVICES'] = visible[slot % gpus]
    elif jobs > 1:
        env.setdefault('OMP_NUM_THREADS', str(max(1, (os.cpu_count() or 1) // jobs)))
    command = [sys.executable, '-m', 'facd_basicsr.train', '-opt', str(folder.option_file(run)), '--auto_resume']
    with folder.output(run).open('a', encoding='utf-8') as output:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=env)


def _last_line(output: Path, returncode: int) -> str:
    lines = output.read_text(encoding='utf-8', errors='replace').strip().splitlines()
    return f'{lines[-1] if lines else "no output"} (exit code {returncode}; {output})'


def write_json(path: Path, record: dict[str, Any]) -> None:
    partial = path.with_suffix('.partial')
    partial.write_text(json.dumps(record, indent=1) + '\n', encoding='utf-8')
    partial.replace(path)


def read_records(comparison: Comparison, folder: Folder) -> Iterator[dict[str, Any]]:
    """The records of the runs that are finished, in the order of the runs."""
    for run in comparison.runs():
        if folder.record(run).is_file():
            yield json.loads(folder.record(run).read_text(encoding='utf-8'))
