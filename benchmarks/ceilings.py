"""Peak throughput of this machine: memory bandwidth, and matrix products in each precision.

python benchmarks/ceilings.py --out benchmarks/results/ceilings.json
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import facd_basicsr  # noqa: F401  must come before basicsr

# isort: split
import torch

from facd_basicsr.environment import machine, versions
from facd_basicsr.evaluation.tables import text_table
from facd_basicsr.runtime.execution import tf32_of

WARM_UP, TURNS = (5, 20) if torch.cuda.is_available() else (2, 7)  # a GPU needs time to reach its clock rate


def seconds(run: Callable[[], object]) -> float:
    """Median over several turns, after warm-up."""
    times = []
    for _ in range(WARM_UP + TURNS):
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[WARM_UP:])


def copy_bandwidth(device: torch.device) -> float:
    """GB/s of a copy much larger than any cache, counting bytes read and written."""
    x = torch.empty(2**30 if device.type == 'cuda' else 2**27, dtype=torch.float32, device=device)
    y = torch.empty_like(x)
    return 2 * x.nbytes / seconds(lambda: y.copy_(x)) / 1e9


def matrix_rate(device: torch.device, precision: str, dtype: torch.dtype) -> float:
    """TFLOP/s of a product of square matrices."""
    n = 8192 if device.type == 'cuda' else 3072
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    with tf32_of(precision if dtype == torch.float32 else None):
        return 2 * n**3 / seconds(lambda: a @ b) / 1e12


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument('--out', type=Path, required=True)
    args = arguments.parse_args()
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    precisions = {'fp32': torch.float32, 'tf32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}
    if device.type == 'cpu':
        del precisions['tf32'], precisions['fp16']
    results = {
        'machine': machine(),
        'threads': torch.get_num_threads(),
        'versions': versions(),
        'copy_gb_s': round(copy_bandwidth(device), 1),
        'tflop_s': {name: round(matrix_rate(device, name, dtype), 3) for name, dtype in precisions.items()},
    }
    args.out.write_text(json.dumps(results, indent=1) + '\n', encoding='utf-8')
    rows = [['copy', f'{results["copy_gb_s"]} GB/s']]
    rows += [[f'matrix product, {name}', f'{rate} TFLOP/s'] for name, rate in results['tflop_s'].items()]
    print(text_table(['ceiling', 'measured'], rows))


if __name__ == '__main__':
    main()
