"""Training throughput of an option file: iterations per second, data wait and peak memory, as JSON.

    python benchmarks/train_speed.py -opt options/train/FACD_RCAN_x4.yml --iterations 20 --random-teacher \
        --out benchmarks/results/NAME.json --force_yml datasets:train:dataroot_gt=...

Runs ``facd_basicsr.train.train`` in a temporary folder, without validation and checkpoints.
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import facd_basicsr  # noqa: F401  must come before basicsr

# isort: split
import torch
from distillation_models import random_teacher

from facd_basicsr.engine import loop
from facd_basicsr.environment import machine, versions
from facd_basicsr.options import parser, read_option_file
from facd_basicsr.train import train

WARM_UP = 2  # iterations excluded from the medians


class Waiting:
    """Seconds that the training loop waits for each batch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._batches = loop.batches
        loop.batches = self._timed

    def _timed(self, *args: Any) -> Iterator[dict[str, Any]]:
        found = self._batches(*args)
        while True:
            start = time.perf_counter()
            batch = next(found, None)
            if batch is None:
                return
            self.seconds.append(time.perf_counter() - start)
            yield batch


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument('-opt', required=True)
    arguments.add_argument('--iterations', type=int, default=20)
    arguments.add_argument('--random-teacher', action='store_true', help='random weights instead of teacher.weights')
    arguments.add_argument('--out', type=Path, required=True)
    arguments.add_argument('--force_yml', nargs='+', default=[])
    args = arguments.parse_args()
    if args.iterations <= WARM_UP:
        arguments.error(f'--iterations: {args.iterations}; accepted: more than {WARM_UP}, the warm-up')

    ends, waiting = [], Waiting()
    with tempfile.TemporaryDirectory() as folder:
        overrides = [*args.force_yml, f'train:total_iter={args.iterations}', 'val=~', 'logger:print_freq=1']
        overrides += ['logger:use_tb_logger=false', f'logger:save_checkpoint_freq={args.iterations + 1}']
        if args.random_teacher:
            network = read_option_file(args.opt)['teacher']['network']
            overrides.append(f'teacher:weights={random_teacher(network, Path(folder))}')
        train_args = parser().parse_args(['-opt', args.opt, '--force_yml', *overrides])
        train(train_args, root=Path(folder), on_iteration=lambda _: ends.append(time.perf_counter()))

    seconds = [end - start for start, end in pairwise(ends)][WARM_UP - 1 :]
    median = statistics.median(seconds)
    data = statistics.median(waiting.seconds[WARM_UP:])
    result = {
        'option_file': args.opt,
        'changes': [change for change in args.force_yml if 'dataroot' not in change],
        'iterations': args.iterations,
        'seconds_per_iteration_median': round(median, 4),
        'data_seconds_per_iteration_median': round(data, 5),
        'data_share': round(data / median, 4),
        'seconds_per_iteration_min_max': [round(min(seconds), 4), round(max(seconds), 4)],
        'iterations_per_second': round(1 / median, 5),
        'peak_memory_gib': round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
        'loader_peak_memory_gib': round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20, 3),
        'threads': torch.get_num_threads(),
        'device': machine(),
        'versions': versions(),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')
    print(json.dumps(result, indent=2))


if __name__ == '__main__':
    main()
