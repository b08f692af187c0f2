"""FACD's contrastive term, forward and backward, against the literal broadcast: time, memory, and how both grow.

    python benchmarks/loss.py --out benchmarks/results/loss.json

Three taps of random features. The variants take turns in one process, so that whatever else the machine does disturbs
all alike; medians. Extra memory is the peak above what there was before the step: the gradients of the student's
features, which every variant has to give, and what it needs beside them. On the CPU each variant is measured in a
process of its own. On a GPU the bandwidth reached is compared with that of a copy.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from unittest import mock

import facd_basicsr  # noqa: F401  must come before basicsr

# isort: split
import torch
from peak_memory import extra_mib
from torch import Tensor

from facd_basicsr.comparison.record import machine
from facd_basicsr.engine.logs import versions
from facd_basicsr.evaluation.table import text_table
from facd_basicsr.losses import contrastive
from facd_basicsr.losses.pairwise import cdist_by_column, own_and_later_l1, pairwise_l1

LAYER_WEIGHTS = (0.5, 0.3, 0.2)
SWEEP_CHANNELS, SWEEP_SIZE = 64, 24
SWEEP = (4, 8, 16, 32, 64)
MIB = 2**20


def literal(a: Tensor, b: Tensor, _: int) -> Tensor:
    """As the equation is written: every difference, (N, M, C, H, W), is stored."""
    return (a[:, None] - b[None]).abs().mean((2, 3, 4))


def by_cdist(a: Tensor, b: Tensor, _: int) -> Tensor:
    return cdist_by_column(a.flatten(1), b.flatten(1)) / a[0].numel()


# (N, C, H, W) x (N, C, H, W) and the number of the first sample -> (N, N)
VARIANTS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    'ours': own_and_later_l1,
    'ours by cdist': by_cdist,
    'literal broadcast': literal,
}


class Case:
    """Features of three taps, and the term on them by each variant."""

    def __init__(self, batch: int, channels: int, size: int, device: str) -> None:
        generator = torch.Generator(device).manual_seed(0)
        shape = (batch, channels, size, size)
        self.student, self.teacher = (
            [torch.randn(shape, generator=generator, device=device) for _ in LAYER_WEIGHTS] for _ in range(2)
        )
        for feat in self.student:
            feat.requires_grad_()
        self.alpha = torch.ones(batch, device=device)

    def step(self, variant: str) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The term and its gradients."""
        with mock.patch.object(contrastive, 'own_and_later_l1', VARIANTS[variant]):
            loss = sum(
                w * contrastive.contrastive_loss(student, teacher, self.alpha)[0]
                for w, student, teacher in zip(LAYER_WEIGHTS, self.student, self.teacher)
            )
        return loss, torch.autograd.grad(loss, self.student)


def milliseconds(case: Case, variants: Iterable[str], turns: int, device: str) -> dict[str, float]:
    """Medians of a whole step, the first turn left out."""
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    for _ in range(1 + turns):
        for variant, times in seconds.items():
            start = time.perf_counter()
            case.step(variant)
            if device == 'cuda':
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return {variant: round(1000 * statistics.median(times[1:]), 3) for variant, times in seconds.items()}


def differences(case: Case, variant: str) -> dict[str, float]:
    """To the literal broadcast, relative to its value and to its largest gradient."""
    (ours, our_gradients), (theirs, their_gradients) = case.step(variant), case.step('literal broadcast')
    gradient = max(
        ((our - their).abs().max() / their.abs().max()).item() for our, their in zip(our_gradients, their_gradients)
    )
    return {'value': ((ours - theirs) / theirs).abs().item(), 'gradient': gradient}


def extra(case: Case, variant: str, device: str) -> float:
    """MiB of a step. On the CPU the process must have done nothing larger."""
    return round(extra_mib(lambda: case.step(variant), device == 'cuda'), 1)


def memory(variant: str, args: argparse.Namespace, device: str) -> dict[str, dict[int, float]]:
    """Extra MiB at the full size and of the sweep over batches."""
    extra(Case(2, 8, 8, device), variant, device)  # what the first step of a process loads is not the step's
    sweep = {n: extra(Case(n, SWEEP_CHANNELS, SWEEP_SIZE, device), variant, device) for n in SWEEP}
    return {'sweep': sweep, 'full': {args.batch: extra(Case(*shape(args), device), variant, device)}}


def memory_in_own_process(variant: str, args: argparse.Namespace) -> dict[str, dict[int, float]]:
    size = [f'--{key}={getattr(args, key)}' for key in ('batch', 'channels', 'size', 'threads')]
    command = [sys.executable, __file__, '--device=cpu', *size, f'--memory-of={variant}', f'--out={args.out}']
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {key: {int(n): mib for n, mib in found.items()} for key, found in json.loads(done.stdout).items()}


def growth(sweep: dict[int, float]) -> float:
    """The power of N = M with which memory has grown over the larger half of a sweep; 2 is linear in N * M."""
    first, *_, last = (n for n in SWEEP if n >= 16)
    return round(math.log(sweep[last] / sweep[first]) / math.log(last / first), 2)


def on_device(work: Callable[[], object], turns: int) -> float:
    """Median seconds on the GPU itself: work is queued behind other work, so that it waits for no launch."""
    filler = torch.randn(8192, 8192, device='cuda')
    seconds = []
    for _ in range(1 + turns):
        for _ in range(4):
            filler @ filler
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        seconds.append(start.elapsed_time(end) / 1000)
    return statistics.median(seconds[1:])


def bandwidth(case: Case, turns: int) -> dict[str, float]:
    """GB/s of the distances, forward and backward, and of a copy. Student and teacher are read twice at least, and
    the student's gradient is written."""
    student, teacher = case.student[0], case.teacher[0]
    ours = on_device(lambda: torch.autograd.grad(pairwise_l1(student, teacher).sum(), student), turns)
    moved = 5 * student.numel() * student.element_size()
    source = torch.empty(2**28, device='cuda')
    target = torch.empty_like(source)
    copy = on_device(lambda: target.copy_(source), turns)
    found = {'distances': moved / ours / 1e9, 'copy': 2 * source.numel() * 4 / copy / 1e9}
    return {key: round(value, 1) for key, value in found.items()} | {
        'share': round(found['distances'] / found['copy'], 3)
    }


def shape(args: argparse.Namespace) -> tuple[int, int, int]:
    return args.batch, args.channels, args.size


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument('--batch', type=int, default=16)
    arguments.add_argument('--channels', type=int, default=256)
    arguments.add_argument('--size', type=int, default=48)
    arguments.add_argument('--device', choices=('auto', 'cpu', 'cuda'), default='auto')
    arguments.add_argument('--turns', type=int, default=5)
    arguments.add_argument('--threads', type=int, default=torch.get_num_threads())
    arguments.add_argument('--out', type=Path, required=True)
    arguments.add_argument('--memory-of', choices=VARIANTS, help=argparse.SUPPRESS)
    args = arguments.parse_args()
    torch.set_num_threads(args.threads)
    device = args.device
    if device == 'auto':
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    if args.memory_of:
        print(json.dumps(memory(args.memory_of, args, device)))
        return

    variants = [variant for variant in VARIANTS if device == 'cuda' or variant != 'ours by cdist']
    used = {
        variant: memory(variant, args, device) if device == 'cuda' else memory_in_own_process(variant, args)
        for variant in variants
    }
    case = Case(*shape(args), device)
    ms = milliseconds(case, variants, args.turns, device)
    full = {variant: used[variant]['full'][args.batch] for variant in variants}
    results = {
        'taps': len(LAYER_WEIGHTS),
        **{key: getattr(args, key) for key in ('batch', 'channels', 'size', 'threads', 'turns')},
        'machine': machine(),
        'device': torch.cuda.get_device_name() if device == 'cuda' else 'cpu',
        'load_average': os.getloadavg()[0],  # of the last minute, this benchmark's own share included
        'versions': versions(),
        'ms': ms,
        'extra_mib': full,
        'gradients_mib': round(sum(feat.numel() for feat in case.student) * 4 / MIB, 1),
        'times_faster_than_literal': {v: round(ms['literal broadcast'] / ms[v], 1) for v in variants},
        'times_less_memory_than_literal': {v: round(full['literal broadcast'] / full[v], 1) for v in variants},
        'relative_differences_to_literal': {v: differences(case, v) for v in variants[:-1]},
        'sweep': {
            'channels': SWEEP_CHANNELS,
            'size': SWEEP_SIZE,
            'extra_mib': {variant: used[variant]['sweep'] for variant in variants},
            'grows_with_batch_to_the_power_of': {variant: growth(used[variant]['sweep']) for variant in variants},
        },
        'gb_per_second': bandwidth(case, 4 * args.turns) if device == 'cuda' else None,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1) + '\n', encoding='utf-8')
    rows = [
        [v, f'{ms[v]:.1f}', f'{results["times_faster_than_literal"][v]:.1f}', f'{full[v]:.0f}']
        + [f'{used[v]["sweep"][n]:.0f}' for n in SWEEP]
        for v in variants
    ]
    print(text_table(['variant', 'ms', 'faster', 'extra MiB', *(f'N = {n}' for n in SWEEP)], rows))
    if results['gb_per_second']:
        print('{distances} GB/s of {copy} GB/s'.format(**results['gb_per_second']))


if __name__ == '__main__':
    main()
