"""One FACD step compared with its parts and with a naive implementation, and the breakdown of its time.

    python benchmarks/distillation_step.py options/train/FACD_EDSR_x4.yml \
        --out benchmarks/results/step_EDSR_x4.json

For each execution (precision, layout, compilation) a group of models is built. The models take turns of one step each
on the same random batch, so that other load on the machine affects all of them equally. Student alone and naive are in
every group. Medians over the turns, and of the ratios within a turn. The file is written after each group; its
`missing` lists the executions that were not measured.

- `student alone`: BasicSR's SRModel. `naive`: naive_distillation.py, eager float32.
- `FACD`: FACDModel with its guard against non-finite losses.
- `floor`: the teacher's forward without taps and a step of the student alone, in the same execution: the lower bound of
  any distillation.
"""

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import facd_basicsr  # noqa: F401  must come before basicsr

# isort: split
import torch
from basicsr.models.base_model import BaseModel
from distillation_models import (
    executions,
    naive,
    options,
    ours,
    random_batch,
    student_alone,
    train_step,
    with_execution,
)
from gpu_hours import step_flops
from naive_distillation import NaiveDistillationModel  # noqa: F401  registers the model
from recorder import LIMIT, Recorder
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from facd_basicsr.environment import machine, versions
from facd_basicsr.evaluation.tables import text_table
from facd_basicsr.models import FACDModel
from facd_basicsr.runtime.execution import Execution, tf32_of

# Turns excluded from the medians: cuDNN benchmarks its algorithms, torch.compile compiles, and the second turn records
# CUDA graphs.
WARM_UP = 3 if torch.cuda.is_available() else 1
MIN_TURNS = 20 if torch.cuda.is_available() else 1  # after the warm-up
SPLIT = ('data', 'student', 'regressors', 'teacher', 'loss', 'backward', 'optimizer')


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def step(model: BaseModel, batch: dict[str, Tensor], current_iter: int) -> None:
    """A step of BasicSR's loop."""
    model.feed_data(batch)
    model.optimize_parameters(current_iter)


def floor(model: FACDModel, execution: Execution) -> Callable[[dict[str, Tensor]], None]:
    """The teacher's forward and a step of the student alone, in the model's execution.

    Uses the model's own student. Its weights do not matter here, and its taps do not record outside a step.
    """
    run_student = execution.compiled(lambda lq: model.net_g(lq), 'train.compile')
    run_teacher = execution.compiled(lambda lq: model.teachers[0](lq), 'teacher.compile')
    optimizer = torch.optim.Adam(model.net_g.parameters(), lr=1e-4, fused=torch.cuda.is_available() or None)
    device = model.device

    def run(batch: dict[str, Tensor]) -> None:
        lq, gt = (batch[key].to(device, non_blocking=True) for key in ('lq', 'gt'))
        run_teacher(lq)
        with execution.autocast(device):
            student = run_student(execution.laid_out(lq))
        optimizer.zero_grad()
        F.l1_loss(student.float(), gt).backward()
        optimizer.step()

    return run


class Laps:
    """Times the parts of FACDModel's steps. ``optimizer`` includes the guard against non-finite losses."""

    def __init__(self, model: FACDModel) -> None:
        self._model = model
        self.seconds: dict[str, list[float]] = {part: [] for part in SPLIT}
        self._last = 0.0
        for part in ('student', 'regressors'):
            setattr(model, f'_run_{part}', self._timed(getattr(model, f'_run_{part}'), part))
        model._run_teachers = [self._timed(run, 'teacher') for run in model._run_teachers]
        model.criterion.register_forward_hook(lambda *_: self._lap('loss'))
        model.guard.step = self._after('backward', model.guard.step)

    def step(self, batch: dict[str, Tensor], current_iter: int) -> None:
        synchronize()
        self._last = time.perf_counter()
        self._model.feed_data(batch)
        self._lap('data')
        self._model.optimize_parameters(current_iter)
        self._model.guard.after_step(batch, current_iter)
        self._lap('optimizer')

    def _after(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            self._lap(part)
            return function(*args)

        return run

    def _timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            result = function(*args)
            self._lap(part)
            return result

        return run

    def _lap(self, part: str) -> None:
        synchronize()
        now = time.perf_counter()
        self.seconds[part].append(now - self._last)
        self._last = now


def take_turns(
    opt: dict[str, Any], name: str, others: dict[str, BaseModel], args: argparse.Namespace, end: float
) -> tuple[list[dict[str, float]], dict[str, list[float]]]:
    """Seconds of every step of an execution, and of the parts of FACD's step if it is ``args.split``.

    Args:
        opt: option dict of the distillation.
        name: name of the execution.
        others: models that take turns with it.
        args: command line.
        end: ``time.perf_counter`` after which only :data:`MIN_TURNS` turns are completed.
    """
    execution = executions()[name]
    batch = random_batch(opt)
    runs: dict[str, tuple[str | None, Callable[[int], None]]] = {}  # precision (for TF32) and a step
    for other, model in others.items():
        runs[other] = None, lambda turn, model=model: step(model, batch, turn)
    with tf32_of(None):  # a model sets TF32 for the whole process
        trained = ours(with_execution(opt, execution))
        runs[f'FACD {name}'] = execution['precision'], lambda turn: train_step(trained, batch, turn)
        bare = ours(with_execution(opt, {**execution, 'compile': None}))
        run_floor = floor(bare, Execution.of(execution))
        runs[f'floor {name}'] = execution['precision'], lambda _: run_floor(batch)
        laps = Laps(ours(with_execution(opt, execution))) if name == args.split else None

    turns: list[dict[str, float]] = []
    min_turns = min(MIN_TURNS, args.turns)
    while len(turns) < WARM_UP + min_turns or (len(turns) < WARM_UP + args.turns and time.perf_counter() < end):
        turns.append({})
        for run_name, (precision, run) in runs.items():
            with tf32_of(precision):
                synchronize()
                start = time.perf_counter()
                run(len(turns))
                synchronize()
                turns[-1][run_name] = time.perf_counter() - start
        if laps is not None:
            with tf32_of(execution['precision']):
                laps.step(batch, len(turns))
    return turns[WARM_UP:], {} if laps is None else {part: times[WARM_UP:] for part, times in laps.seconds.items()}


def release() -> None:
    """Frees a group's memory; its models are in reference cycles."""
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()


def summary(turns: list[dict[str, float]]) -> dict[str, Any]:
    """Medians of each step's seconds, and of the ratios within a turn."""
    names = list(dict.fromkeys(name for turn in turns for name in turn))
    seconds = {name: [turn[name] for turn in turns if name in turn] for name in names}

    def ratio(above: str, below: str) -> float:
        return round(
            statistics.median(turn[above] / turn[below] for turn in turns if above in turn and below in turn), 4
        )

    return {
        'turns': min(map(len, seconds.values())),  # the fewest of any step
        'seconds': {name: round(statistics.median(times), 5) for name, times in seconds.items()},
        'min_max': {name: [round(f(times), 5) for f in (min, max)] for name, times in seconds.items()},
        'times_faster': {name: ratio('naive', name) for name in names},
        'to_floor': {name: ratio(name, name.replace('FACD', 'floor')) for name in names if name.startswith('FACD')},
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument('option_file', type=Path)
    arguments.add_argument('--batch', type=int, default=16)
    on_gpu = torch.cuda.is_available()
    patch = 48 if on_gpu else 24  # the paper's patch; a CPU takes a minute for it
    arguments.add_argument('--patch', type=int, default=patch, help='height and width of LQ')
    arguments.add_argument('--turns', type=int, default=MIN_TURNS if on_gpu else 5, help='per execution, at most')
    arguments.add_argument('--seconds', type=int, default=LIMIT, help='time limit; results so far are kept')
    arguments.add_argument('--executions', nargs='+', default=list(executions()), choices=list(executions()))
    split = 'bf16, channels_last' if on_gpu else 'fp32, channels_last'
    arguments.add_argument('--split', default=split, help='execution whose step is broken down into parts')
    arguments.add_argument('--out', type=Path, required=True)
    args = arguments.parse_args()
    torch.backends.cudnn.benchmark = True  # as train.py
    end = time.perf_counter() + args.seconds
    recorder = Recorder(args.out, args.executions, args.seconds)

    with tempfile.TemporaryDirectory() as folder:
        opt = options(args.option_file, Path(folder), args.batch, args.patch)
        gflop = round(step_flops(opt) / 1e9, 6)  # convolutions and matrix products, forward and backward
        others = {'student alone': student_alone(opt), 'naive': naive(opt)}
        turns: list[dict[str, float]] = []
        parts: dict[str, float] = {}
        for index, name in enumerate(args.executions):
            now = time.perf_counter()
            share = (end - now) / (len(args.executions) - index)
            of_group, laps = take_turns(opt, name, others, args, now + share)
            release()
            turns += of_group
            parts |= {part: round(statistics.median(times), 5) for part, times in laps.items()}
            results = {
                'option_file': str(args.option_file),
                'batch': args.batch,
                'patch': args.patch,
                'machine': machine(),
                'threads': torch.get_num_threads(),
                'versions': versions(),
                'gflop': gflop,
                **summary(turns),
                'split_of': args.split,
                'split': parts,
            }
            recorder.write(name, results)
            print(f'{name}: {len(of_group)} turns, {time.perf_counter() - now:.0f} s', flush=True)

    print(text_table(['step', 'ms', 'speed-up over naive', 'time / floor'], list(rows(results))))
    total = sum(parts.values())
    cells = [[part, f'{1000 * value:.1f}', f'{100 * value / total:.1f} %'] for part, value in parts.items()]
    print('\n' + text_table([f'part of FACD {args.split}', 'ms', 'share'], cells))


def rows(results: dict[str, Any]) -> Any:
    for name, value in results['seconds'].items():
        to_floor = results['to_floor'].get(name)
        faster = f'{results["times_faster"][name]:.2f}'
        yield [name, f'{1000 * value:.1f}', faster, f'{to_floor:.3f}' if to_floor else '']


if __name__ == '__main__':
    main()
