"""FACD's contrastive term, forward and backward, compared with the literal broadcast: time, memory and their growth.

    python benchmarks/loss.py --out benchmarks/results/loss.json

Three taps of random features. The variants take turns in one process, so that other load on the machine affects all of
them equally; medians. Extra memory is the peak increase during the step, including the gradients of the student's
features. On the CPU each variant's memory is measured in its own process. On a GPU the bandwidth is compared with that
of a copy, also for features larger than the L2 cache. The file is written after each part.
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
from typing import Any
from unittest import mock

import facd_basicsr  # noqa: F401  must come before basicsr

# isort: split
import torch
from peak_memory import extra_mib
from recorder import Recorder
from torch import Tensor

from facd_basicsr.environment import machine, versions
from facd_basicsr.evaluation.tables import text_table
from facd_basicsr.losses import contrastive
from facd_basicsr.losses.pairwise import cdist_by_column, pairwise_l1, pairwise_l1_triu

LAYER_WEIGHTS = (0.5, 0.3, 0.2)
SWEEP_CHANNELS, SWEEP_SIZE = 64, 24
SWEEP = (4, 8, 16, 32, 64)
WARM_UP = 3  # turns excluded from the medians
MIB = 2**20


def literal(a: Tensor, b: Tensor, _: int) -> Tensor:
    """The equation as written: stores every difference, (N, M, C, H, W)."""
    return (a[:, None] - b[None]).abs().mean((2, 3, 4))


def by_cdist(a: Tensor, b: Tensor, _: int) -> Tensor:
    return cdist_by_column(a.flatten(1), b.flatten(1)) / a[0].numel()


# (N, C, H, W) x (N, C, H, W) and the number of the first sample -> (N, N)
VARIANTS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    'ours': pairwise_l1_triu,
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
        with mock.patch.object(contrastive, 'pairwise_l1_triu', VARIANTS[variant]):
            loss = sum(
                w * contrastive.contrastive_loss(student, teacher, self.alpha)[0]
                for w, student, teacher in zip(LAYER_WEIGHTS, self.student, self.teacher)
            )
        return loss, torch.autograd.grad(loss, self.student)


def milliseconds(case: Case, variants: Iterable[str], turns: int, device: str) -> dict[str, float]:
    """Medians of a complete step."""
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    for _ in range(WARM_UP + turns):
        for variant, times in seconds.items():
            start = time.perf_counter()
            case.step(variant)
            if device == 'cuda':
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return {variant: round(1000 * statistics.median(times[WARM_UP:]), 3) for variant, times in seconds.items()}


def differences(case: Case, variant: str) -> dict[str, float]:
    """Differences from the literal broadcast, relative to its value and to its largest gradient."""
    (ours, our_gradients), (theirs, their_gradients) = case.step(variant), case.step('literal broadcast')
    gradient = max(
        ((our - their).abs().max() / their.abs().max()).item() for our, their in zip(our_gradients, their_gradients)
    )
    return {'value': ((ours - theirs) / theirs).abs().item(), 'gradient': gradient}


def extra(case: Case, variant: str, device: str) -> float:
    """Extra MiB of a step. On the CPU, the process must not have used more memory before."""
    return round(extra_mib(lambda: case.step(variant), device == 'cuda'), 1)


def memory(variant: str, args: argparse.Namespace, device: str) -> dict[str, dict[int, float]]:
    """Extra MiB at the full size and for each batch size of the sweep."""
    extra(Case(2, 8, 8, device), variant, device)  # excludes what the first step of a process loads
    sweep = {n: extra(Case(n, SWEEP_CHANNELS, SWEEP_SIZE, device), variant, device) for n in SWEEP}
    return {'sweep': sweep, 'full': {args.batch: extra(Case(*shape(args), device), variant, device)}}


def memory_in_own_process(variant: str, args: argparse.Namespace) -> dict[str, dict[int, float]]:
    size = [f'--{key}={getattr(args, key)}' for key in ('batch', 'channels', 'size', 'threads')]
    command = [sys.executable, __file__, '--device=cpu', *size, f'--memory-of={variant}', f'--out={args.out}']
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {key: {int(n): mib for n, mib in found.items()} for key, found in json.loads(done.stdout).items()}


def growth(sweep: dict[int, float]) -> float:
    """Exponent p of memory ~ N^p (N = M) over the larger half of a sweep; 2 is linear in N * M."""
    first, *_, last = (n for n in SWEEP if n >= 16)
    return round(math.log(sweep[last] / sweep[first]) / math.log(last / first), 2)


def on_device(work: Callable[[], object], turns: int) -> float:
    """Median seconds on the GPU: the work is queued behind other work, which hides its launch latency."""
    filler = torch.randn(8192, 8192, device='cuda')
    seconds = []
    for _ in range(WARM_UP + turns):
        for _ in range(4):
            filler @ filler
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        seconds.append(start.elapsed_time(end) / 1000)
    return statistics.median(seconds[WARM_UP:])


def bandwidth(args: argparse.Namespace) -> dict[str, Any]:
    """GB/s of a copy and of one tap's distances (forward and backward), at the full size and at four times that size.

    Features that fit into L2 are not read again in backward. Counts two reads of student and teacher, and one write.
    """
    source = torch.empty(2**28, device='cuda')
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / on_device(lambda: target.copy_(source), args.turns) / 1e9
    found = []
    for size in (args.size, 2 * args.size):
        shape = (args.batch, args.channels, size, size)
        student, teacher = torch.randn(shape, device='cuda', requires_grad=True), torch.randn(shape, device='cuda')
        seconds = on_device(
            lambda student=student, teacher=teacher: torch.autograd.grad(pairwise_l1(student, teacher).sum(), student),
            args.turns,
        )
        rate = 5 * student.nbytes / seconds / 1e9
        rates = {'distances': round(rate, 1), 'share': round(rate / copy, 3)}
        found.append({'size': size, 'feature_mib': round(student.nbytes / MIB, 1), **rates})
    l2 = torch.cuda.get_device_properties(0).L2_cache_size / MIB
    return {'copy': round(copy, 1), 'l2_mib': round(l2, 1), 'by_size': found}


def shape(args: argparse.Namespace) -> tuple[int, int, int]:
    return args.batch, args.channels, args.size


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument('--batch', type=int, default=16)
    arguments.add_argument('--channels', type=int, default=256)
    arguments.add_argument('--size', type=int, default=48)
    arguments.add_argument('--device', choices=('auto', 'cpu', 'cuda'), default='auto')
    arguments.add_argument('--turns', type=int, default=20 if torch.cuda.is_available() else 5)
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
    recorder = Recorder(args.out, ['memory', 'time', 'differences', *(['bandwidth'] if device == 'cuda' else [])])
    used = {
        variant: memory(variant, args, device) if device == 'cuda' else memory_in_own_process(variant, args)
        for variant in variants
    }
    case = Case(*shape(args), device)
    full = {variant: used[variant]['full'][args.batch] for variant in variants}
    results: dict[str, Any] = {
        'taps': len(LAYER_WEIGHTS),
        **{key: getattr(args, key) for key in ('batch', 'channels', 'size', 'threads', 'turns')},
        'machine': machine(),
        'device': torch.cuda.get_device_name() if device == 'cuda' else 'cpu',
        'load_average': os.getloadavg()[0],  # over the last minute, including this benchmark
        'versions': versions(),
        'extra_mib': full,
        'gradients_mib': round(sum(feat.numel() for feat in case.student) * 4 / MIB, 1),
        'times_less_memory_than_literal': {v: round(full['literal broadcast'] / full[v], 1) for v in variants},
        'sweep': {
            'channels': SWEEP_CHANNELS,
            'size': SWEEP_SIZE,
            'extra_mib': {variant: used[variant]['sweep'] for variant in variants},
            'grows_with_batch_to_the_power_of': {variant: growth(used[variant]['sweep']) for variant in variants},
        },
    }
    recorder.write('memory', results)
    ms = milliseconds(case, variants, args.turns, device)
    faster = {v: round(ms['literal broadcast'] / ms[v], 1) for v in variants}
    results |= {'ms': ms, 'times_faster_than_literal': faster}
    recorder.write('time', results)
    results['relative_differences_to_literal'] = {v: differences(case, v) for v in variants[:-1]}
    recorder.write('differences', results)
    if device == 'cuda':
        results['gb_per_second'] = found = bandwidth(args)
        recorder.write('bandwidth', results)
        print(
            *(f'{by["feature_mib"]} MiB: {by["distances"]} GB/s of {found["copy"]}' for by in found['by_size']),
            sep='\n',
        )
    rows = [
        [v, f'{ms[v]:.2f}', f'{faster[v]:.1f}', f'{full[v]:.0f}'] + [f'{used[v]["sweep"][n]:.0f}' for n in SWEEP]
        for v in variants
    ]
    print(text_table(['variant', 'ms', 'faster', 'extra MiB', *(f'N = {n}' for n in SWEEP)], rows))


if __name__ == '__main__':
    main()
