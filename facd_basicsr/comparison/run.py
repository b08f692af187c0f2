"""Trains the runs of a comparison, each by train.py in a process of its own, and continues where it was stopped."""

import fcntl
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from facd_basicsr.comparison.plan import Comparison, Run, timed
from facd_basicsr.environment import processors
from facd_basicsr.errors import UserError
from facd_basicsr.evaluation.tables import to_json
from facd_basicsr.files.atomic import atomic_path, atomic_write
from facd_basicsr.options import load_yaml
from facd_basicsr.options.option_files import option_text
from facd_basicsr.options.parse import load_options, options_digest, root_path
from facd_basicsr.runs.run_folder import RunFolder, read_run_folder

POLL = 0.2  # seconds between polls of the processes
LEFT_FIRST, LEFT_EVERY = 15, 600  # seconds between looks for the first estimate of the time left, and between estimates
SHOWN = 3  # keys that a message about changed options names


@dataclass(frozen=True)
class Folder:
    """Where a comparison keeps its files: ``results/NAME``."""

    root: Path

    def option_file(self, run: Run) -> Path:
        return self.root / 'options' / f'{run.name}.yml'

    def output(self, run: Run) -> Path:
        """What its process printed. It is there from the run's first start on."""
        return self.root / 'runs' / f'{run.name}.log'

    def trained(self, run: Run) -> Path:
        """Written when the run is done: its conditions, as JSON."""
        return self.root / 'runs' / f'{run.name}.trained'

    def record(self, run: Run) -> Path:
        """The record of a finished run, as JSON."""
        return self.root / 'runs' / f'{run.name}.json'


@contextmanager
def locked(folder: Folder) -> Iterator[int]:
    """Holds a comparison's folder for this process and those that are given the descriptor.

    A run that outlives a killed ``facd compare`` has it too, so that no second one starts in its place.

    Raises:
        UserError: someone else holds it.
    """
    folder.root.mkdir(parents=True, exist_ok=True)
    with (folder.root / '.lock').open('w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f'{folder.root}: another facd compare, or a run that one has started, is running; accepted: once '
                f'it has ended (fuser {lock.name} names its process)'
            ) from error
        yield lock.fileno()


def write_option_files(comparison: Comparison, folder: Folder) -> None:
    """Writes every run's option file, after checking each method as train.py will.

    Raises:
        UserError: a method's options are not accepted, or those of a run have changed since it was started.
    """
    runs = list(comparison.runs())
    for run in runs:
        path = folder.option_file(run)
        if path.is_file():
            before = load_yaml(path.read_text(encoding='utf-8'), str(path))
            names = list(dict.fromkeys(key for key, _ in sorted(_leaves(before).items() ^ _leaves(run.opt).items())))
            if names:
                raise UserError(
                    f'methods.{run.method}: {", ".join(names[:SHOWN])}{" and more" * (len(names) > SHOWN)} changed '
                    f'since the comparison was started; accepted: as it was ({path}), another name for the method or '
                    f'the comparison, or its runs started over: rm {folder.root}/*/{run.method}_seed*'
                )
    for directory in ('options', 'runs'):
        (folder.root / directory).mkdir(parents=True, exist_ok=True)
    for run in runs:
        path = folder.option_file(run)
        if not path.is_file():
            with atomic_path(path) as partial:
                partial.write_text(option_text(run.opt), encoding='utf-8')
                if run.seed == comparison.seeds[0]:
                    _check(run, partial)


def _check(run: Run, path: Path) -> None:
    try:
        load_options(str(path), [], is_train=True)
    except UserError as error:
        raise UserError(f'methods.{run.method}: {str(error).removeprefix(f"{path}: ")}') from error


def _leaves(block: Any, path: str = '') -> dict[str, str]:
    """{dotted key: its value as text}."""
    if not isinstance(block, dict) or not block:
        return {path: repr(block)}
    return {
        key: value
        for name, item in block.items()
        for key, value in _leaves(item, f'{path}.{name}' if path else str(name)).items()
    }


def train_all(
    comparison: Comparison,
    folder: Folder,
    jobs: int,
    lock: int,
    finished: Callable[[Run, dict[str, Any]], dict[str, Any]],
    threads: int | None = None,
) -> list[str]:
    """Trains what is not trained yet, ``jobs`` runs at a time, and writes the record of each.

    A run that was stopped resumes from its newest training state, by train.py's ``--auto_resume``; one that was never
    started here starts over, and train.py moves an older experiment of its name aside. When a run is trained its
    numbered checkpoints and states go, and the latest networks stay. It is scored before the next one starts in its
    place, so that no more than ``jobs`` processes work at a time.

    Args:
        jobs: processes at a time, each on a GPU in turn if there are some. They share the CPU's cores.
        lock: from :func:`locked`.
        finished: makes the record of a trained run, from what ``trained`` holds.
        threads: of each; None: :func:`threads_of`.

    Returns:
        A line for each run that failed.
    """
    threads = threads or threads_of(jobs)
    torch.set_num_threads(threads)
    waiting = [run for run in comparison.runs() if not _is_scored(run, comparison, folder)]
    running: dict[int, tuple[Run, subprocess.Popen]] = {}
    failures = []
    next_look = time.monotonic() + LEFT_FIRST
    try:
        while waiting or running:
            for slot, (run, process) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[slot]
                next_look = 0.0
                if process.returncode == 0:
                    atomic_write(folder.trained(run), to_json({'jobs': jobs, 'threads': threads}))
                    _remove_numbered(root_path() / 'experiments' / run.opt['name'])
                    waiting.insert(0, run)  # to be scored
                else:
                    output = folder.output(run)
                    lines = output.read_text(encoding='utf-8', errors='replace').strip().splitlines() or ['no output']
                    failures.append(f'{run.name}: {lines[-1]} (exit code {process.returncode}; {output})')
                    print(failures[-1], flush=True)
            if time.monotonic() >= next_look:
                left = time_left(comparison, folder, jobs)
                next_look = time.monotonic() + (LEFT_FIRST if left is None else LEFT_EVERY)
                if left is not None:
                    print(_left_words(comparison, folder, left), flush=True)
            free = [slot for slot in range(jobs) if slot not in running]
            while waiting and free:
                run = waiting.pop(0)
                if folder.trained(run).is_file():
                    _score(run, folder, finished)
                else:
                    slot = free.pop(0)
                    running[slot] = (run, _start(run, folder, slot, threads, lock))
                    print(f'{run.name}: training; {folder.output(run)}', flush=True)
            time.sleep(POLL)
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.wait()
    return failures


def step_times(
    comparison: Comparison, folder: Folder, jobs: int, finished: Callable[[Run, dict[str, Any]], dict[str, Any]]
) -> list[dict[str, Any]]:
    """The records of short runs of every method, one after another with the threads of one of ``jobs`` runs.

    They are made once and kept in the folder's ``step_times/``.

    Raises:
        UserError: as of :func:`write_option_files`, or a run failed.
    """
    short, own = timed(comparison), Folder(folder.root / 'step_times')
    with locked(own) as lock:
        write_option_files(short, own)
        print(f'step times: {own.root}', flush=True)
        failures = train_all(short, own, 1, lock, finished, threads_of(jobs))
    if failures:
        raise UserError(f'no step time: {"; ".join(failures)}; accepted: methods that can be trained')
    for run in short.runs():
        shutil.rmtree(root_path() / 'experiments' / run.opt['name'], ignore_errors=True)
    return list(read_records(short, own))


def time_left(comparison: Comparison, folder: Folder, jobs: int) -> float | None:
    """Seconds until all runs are trained, at the pace of each method so far; None before there is one."""
    paces: dict[str, list[float]] = {}  # seconds of an iteration, with validation
    left = []
    for run in comparison.runs():
        total_iter, experiment = run.opt['train']['total_iter'], _begun(run, folder)
        done = 0 if experiment is None else experiment.iteration
        if experiment is not None and done > 0:
            # without set-up, in which a teacher's cache may be made; before there are two lines all that is known
            steps = [seconds for _, seconds in experiment.metrics.steps]
            paces.setdefault(run.method, []).append(fmean(steps or [experiment.duration.total_seconds() / done]))
        if not folder.trained(run).is_file():
            left.append((run.method, max(0, total_iter - done)))
    if not paces:
        return None
    pace = {method: sum(found) / len(found) for method, found in paces.items()}
    usual = sum(pace.values()) / len(pace)  # of a method that has not begun
    seconds = [iterations * pace.get(method, usual) for method, iterations in left]
    return max([sum(seconds) / jobs, *seconds])


def _begun(run: Run, folder: Folder) -> RunFolder | None:
    """A run's experiment, if it was begun with its option file: one of its name may be another's."""
    if folder.output(run).is_file():
        with suppress(UserError):  # it has not made its folder yet
            experiment = read_run_folder(root_path() / 'experiments' / run.opt['name'])
            own = options_digest(str(folder.option_file(run)))
            if any(session.facts.get('option_sha256') == own for session in experiment.sessions):
                return experiment
    return None


def _left_words(comparison: Comparison, folder: Folder, left: float) -> str:
    runs = list(comparison.runs())
    trained = sum(folder.trained(run).is_file() for run in runs)
    minutes = max(1, math.ceil(left / 60))  # for the scores, if all are trained
    words = f'{minutes // 60} h {minutes % 60} min' if minutes >= 60 else f'{minutes} min'
    return f'{trained} of {len(runs)} runs trained, about {words} left for all'


def threads_of(jobs: int) -> int:
    """How many CPU threads each of ``jobs`` runs has: OMP_NUM_THREADS, or an equal share."""
    if 'OMP_NUM_THREADS' in os.environ:
        return torch.get_num_threads()
    return max(1, processors() // jobs)


def _is_scored(run: Run, comparison: Comparison, folder: Folder) -> bool:
    """Whether its record exists, for the current sets and metrics of the comparison."""
    path = folder.record(run)
    if not (folder.trained(run).is_file() and path.is_file()):
        return False
    record = json.loads(path.read_text(encoding='utf-8'))
    return record['test'] == comparison.test_opt['datasets'] and record.get('metrics', {}) == comparison.metrics


def _score(run: Run, folder: Folder, finished: Callable[[Run, dict[str, Any]], dict[str, Any]]) -> None:
    record = finished(run, json.loads(folder.trained(run).read_text(encoding='utf-8')))
    atomic_write(folder.record(run), to_json(record))
    scores = ', '.join(f'{name} {found["psnr_y"]:.3f} dB' for name, found in record['means'].items())
    if not scores:  # a run that measures a step
        scores = f'{1000 * record["seconds_per_iter"]:.1f} ms/iteration'
    print(f'{run.name}: {scores}', flush=True)


def _start(run: Run, folder: Folder, slot: int, threads: int, lock: int) -> subprocess.Popen:
    env = {**os.environ, 'OMP_NUM_THREADS': str(threads)}
    gpus = torch.cuda.device_count()
    if gpus:
        visible = env.get('CUDA_VISIBLE_DEVICES', ','.join(map(str, range(gpus)))).split(',')
        env['CUDA_VISIBLE_DEVICES'] = visible[slot % gpus]
    command = [sys.executable, '-m', 'facd_basicsr.train', '-opt', str(folder.option_file(run))]
    if _begun(run, folder) is not None:
        command.append('--auto_resume')
    with folder.output(run).open('a', encoding='utf-8') as output:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=env, pass_fds=[lock])


def _remove_numbered(experiment: Path) -> None:
    """Removes numbered checkpoints and states, which only a resume needs: hundreds of GB of a long comparison."""
    for path in [*experiment.glob('training_states/*'), *experiment.glob('models/net_*.pth')]:
        if not path.stem.endswith(('_latest', '_best')):
            path.unlink()


def read_records(comparison: Comparison, folder: Folder) -> Iterator[dict[str, Any]]:
    """The records of the runs that are finished, in the order of the runs."""
    for run in comparison.runs():
        if _is_scored(run, comparison, folder):
            yield json.loads(folder.record(run).read_text(encoding='utf-8'))
