"""Milliseconds of one iteration of every method of a comparison.

    python benchmarks/step_time.py options/compare/mini_x2.yml --threads 1 --out benchmarks/results/step_time.json

The models take turns, one iteration each on the same random batch, so that other load on the machine affects all of
them equally. Medians, and their ratio to the baseline's.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import facd_basicsr  # noqa: F401  must come before basicsr

# isort: split
import torch
from basicsr.models.base_model import BaseModel

from facd_basicsr.comparison.plan import Comparison, read_comparison
from facd_basicsr.environment import machine, versions
from facd_basicsr.evaluation.tables import text_table
from facd_basicsr.models.safe_model import build_model
from facd_basicsr.options.option_check import with_defaults

WARM_UP = 2  # turns excluded from the medians


def build(comparison: Comparison) -> dict[str, BaseModel]:
    """Every method's model, as train.py builds it."""
    gpus = min(1, torch.cuda.device_count())
    shared = {'is_train': True, 'dist': False, 'rank': 0, 'world_size': 1, 'num_gpu': gpus, 'root_path': '.'}

    def options(opt: dict[str, Any]) -> dict[str, Any]:
        complete = with_defaults(opt, is_train=True)
        return {**complete, **shared, 'path': {**complete['path'], 'experiments_root': '.'}}

    return {method: build_model(options(opt)) for method, opt in comparison.methods.items()}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument('comparison', type=Path)
    arguments.add_argument('--turns', type=int, default=15)
    arguments.add_argument('--threads', type=int, default=torch.get_num_threads())
    arguments.add_argument('--out', type=Path, required=True)
    args = arguments.parse_args()
    torch.set_num_threads(args.threads)
    torch.backends.cudnn.benchmark = True  # as train.py
    comparison = read_comparison(args.comparison)
    models = build(comparison)
    train_opt = comparison.methods[comparison.baseline]['datasets']['train']
    gt_size, n = train_opt['gt_size'], train_opt['batch_size_per_gpu']
    lq_size = gt_size // comparison.scale
    batch = {'lq': torch.rand(n, 3, lq_size, lq_size), 'gt': torch.rand(n, 3, gt_size, gt_size)}
    seconds: dict[str, list[float]] = {method: [] for method in models}
    for turn in range(WARM_UP + args.turns):
        for method, model in models.items():
            start = time.perf_counter()
            model.feed_data(batch)
            model.optimize_parameters(turn + 1)
            model.get_current_log()  # reads values back, so it waits for the device
            seconds[method].append(time.perf_counter() - start)
    ms = {method: round(1000 * statistics.median(times[WARM_UP:]), 1) for method, times in seconds.items()}
    results = {
        'comparison': comparison.name,
        'machine': machine(),
        'threads': args.threads,
        'turns': args.turns,
        'versions': versions(),
        'ms': ms,
    }
    args.out.write_text(json.dumps(results, indent=1) + '\n', encoding='utf-8')
    base = ms[comparison.baseline]
    rows = [[method, f'{value:.0f}', f'{value / base:.2f}'] for method, value in ms.items()]
    print(text_table(['method', 'ms/iteration', f'vs {comparison.baseline}'], rows))


if __name__ == '__main__':
    main()
