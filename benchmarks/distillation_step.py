"""One FACD step, side by side with its parts and with what a user would run instead; and where its time goes.

    python benchmarks/distillation_step.py options/train/FACD_EDSR_x4.yml \
        --out benchmarks/results/step_EDSR_x4.json

All models are built first and then take turns, one step each on the same random batch, so that whatever else the
machine does disturbs all alike. Medians of the turns.

- `student alone`: BasicSR's SRModel. `naive`: naive_distillation.py, eager float32.
- `FACD`: FACDModel with the check of losses that are not finite, in each precision and memory format.
- `floor`: the teacher's forward without taps and a step of the student alone, run in the same way: what no
  distillation can do without.
"""

import argparse
import json
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
from distillation_models import Ours, executions, naive, options, ours, random_batch, student_alone, with_execution
from gpu_hours import step_flops
from naive_distillation import NaiveDistillationModel  # noqa: F401  registers itself
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from facd_basicsr.comparison.record import machine
from facd_basicsr.engine.execution import Execution, tf32_of
from facd_basicsr.engine.logs import versions
from facd_basicsr.evaluation.table import text_table
from facd_basicsr.models import FACDModel

WARM_UP = 3 if torch.cuda.is_available() else 1  # turns whose time is left out; CUDA graphs are recorded in the second
SPLIT = ('data', 'student', 'regressors', 'teacher', 'loss', 'backward', 'optimizer')


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def step(model: BaseModel, batch: dict[str, Tensor], current_iter: int) -> None:
    """A step as BasicSR's loop makes it."""
    model.feed_data(batch)
    model.optimize_parameters(current_iter)


def floor(model: FACDModel, execution: Execution) -> Callable[[dict[str, Tensor]], None]:
    """The teacher's forward and a step of the student alone, run as the model runs them.

    Works on the model's own student, whose weights do not matter here; its taps do not record outside a step.
    """
    run_student = execution.compiled(lambda lq: model.net_g(lq), 'train.compile')
    run_teacher = execution.compiled(lambda lq: model.teacher(lq), 'teacher.compile')
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
    """Times the parts of FACDModel's steps, each from the end of the part before it. ``optimizer`` has the check of
    losses that are not finite in it."""

    def __init__(self, trained: Ours) -> None:
        self._trained, model = trained, trained.model
        self.seconds: dict[str, list[float]] = {part: [] for part in SPLIT}
        self._last = 0.0
        for part in ('student', 'regressors', 'teacher'):
            setattr(model, f'_run_{part}', self._timed(getattr(model, f'_run_{part}'), part))
        model.cri_distill.register_forward_hook(lambda *_: self._lap('loss'))
        model.scaler.step = self._after('backward', model.scaler.step)

    def step(self, batch: dict[str, Tensor], current_iter: int) -> None:
        synchronize()
        self._last = time.perf_counter()
        self._trained.model.feed_data(batch)
        self._lap('data')
        self._trained.model.optimize_parameters(current_iter)
        self._trained.guard.after_step(batch, current_iter)
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


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument('option_file', type=Path)
    arguments.add_argument('--batch', type=int, default=16)
    patch = 48 if torch.cuda.is_available() else 24  # the paper's; a CPU takes a minute for that
    arguments.add_argument('--patch', type=int, default=patch, help='height and width of LQ')
    arguments.add_argument('--turns', type=int, default=5)
    arguments.add_argument('--executions', nargs='+', default=list(executions()), choices=list(executions()))
    arguments.add_argument('--split', default='fp32, channels_last', help='the execution whose parts are timed')
    arguments.add_argument('--out', type=Path, required=True)
    args = arguments.parse_args()
    torch.backends.cudnn.benchmark = True  # as train.py

    with tempfile.TemporaryDirectory() as folder:
        opt = options(args.option_file, Path(folder), args.batch, args.patch)
        batch = random_batch(opt)
        runs: dict[str, tuple[str | None, Callable[[int], None]]] = {}  # TF32 or not, and a step
        with tf32_of(None):  # each model sets it for all of the process; afterwards it is torch's own again
            for name, build in (('student alone', student_alone), ('naive', naive)):
                model = build(opt)
                runs[name] = None, lambda turn, model=model: step(model, batch, turn)
            for name, execution in ((name, executions()[name]) for name in args.executions):
                trained = ours(with_execution(opt, execution), Path(folder))
                runs[f'FACD {name}'] = execution['precision'], lambda turn, trained=trained: trained.step(batch, turn)
                bare = ours(with_execution(opt, {**execution, 'compile': None}), Path(folder))
                run_floor = floor(bare.model, Execution.of(execution))
                runs[f'floor {name}'] = execution['precision'], lambda _, run=run_floor: run(batch)
            laps = Laps(ours(with_execution(opt, executions()[args.split]), Path(folder)))

        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(1, WARM_UP + args.turns + 1):
            for name, (precision, run) in runs.items():
                with tf32_of(precision):
                    synchronize()
                    start = time.perf_counter()
                    run(turn)
                    synchronize()
                    seconds[name].append(time.perf_counter() - start)
            with tf32_of(executions()[args.split]['precision']):
                laps.step(batch, turn)
            print(f'turn {turn}: {sum(times[-1] for times in seconds.values()):.1f} s', flush=True)

    medians = {name: statistics.median(times[WARM_UP:]) for name, times in seconds.items()}
    results = {
        'option_file': str(args.option_file),
        'batch': args.batch,
        'patch': args.patch,
        'turns': args.turns,
        'machine': machine(),
        'threads': torch.get_num_threads(),
        'versions': versions(),
        'gflop': round(step_flops(opt) / 1e9, 6),  # convolutions and matrix products, forward and backward
        'seconds': {name: round(value, 5) for name, value in medians.items()},
        'min_max': {name: [round(f(times[WARM_UP:]), 5) for f in (min, max)] for name, times in seconds.items()},
        'split_of': args.split,
        'split': {part: round(statistics.median(times[WARM_UP:]), 5) for part, times in laps.seconds.items()},
    }
    args.out.write_text(json.dumps(results, indent=1) + '\n', encoding='utf-8')
    print(text_table(['step', 'ms', 'naive / it', 'it / floor'], list(rows(results['seconds']))))
    total = sum(results['split'].values())
    parts = [[part, f'{1000 * value:.1f}', f'{100 * value / total:.1f} %'] for part, value in results['split'].items()]
    print('\n' + text_table([f'part of FACD {args.split}', 'ms', 'share'], parts))


def rows(seconds: dict[str, float]) -> Any:
    for name, value in seconds.items():
        floor_of = seconds.get(name.replace('FACD', 'floor')) if name.startswith('FACD') else None
        ratio = f'{value / floor_of:.3f}' if floor_of else ''
        yield [name, f'{1000 * value:.1f}', f'{seconds["naive"] / value:.2f}', ratio]


if __name__ == '__main__':
    main()
