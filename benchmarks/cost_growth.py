"""Time and memory of a FACD step against batch size, patch size and world size.

    python benchmarks/cost_growth.py options/train/mini/FACD_EDSR16x4_x2.yml --out benchmarks/results/cost_growth.json

Every setting runs in its own process to measure its peak memory: of the GPU, or the process's increase over its memory
before the first step. Two processes split the batch; they split the threads of one (CPU) or use a GPU each. The file is
written after each group of settings.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import facd_basicsr  # noqa: F401  must come before basicsr

# isort: split
import torch
import torch.distributed as dist
from distillation_models import options, ours, random_batch, train_step, with_execution
from peak_memory import extra_mib
from recorder import Recorder

from facd_basicsr.engine.launch import init_dist
from facd_basicsr.environment import machine, versions
from facd_basicsr.evaluation.tables import text_table

BATCHES = (4, 8, 16, 32, 64)
PATCHES = (24, 48, 72, 96)
BATCH, PATCH = 16, 48  # fixed while the other varies
WARM_UP = 2
MARK = 'RESULT '


def measure(option_file: Path, batch: int, patch: int, turns: int, execution: dict[str, Any]) -> dict[str, float]:
    """Median seconds and peak GiB of this rank's steps."""
    torch.backends.cudnn.benchmark = True
    size = int(os.environ.get('WORLD_SIZE', 1))
    on_gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        opt = with_execution(options(option_file, Path(folder), batch // size, patch), execution)
        if size > 1:
            init_dist('pytorch', on_gpu, {'backend': 'nccl'})
            opt |= {'dist': True, 'rank': dist.get_rank(), 'world_size': size}
        model, data = ours(opt), random_batch(opt)
        seconds = []

        def steps() -> None:
            for turn in range(1, WARM_UP + turns + 1):
                if on_gpu and turn == WARM_UP + 1:
                    torch.cuda.reset_peak_memory_stats()  # cuDNN's benchmark of algorithms needs more memory
                start = time.perf_counter()
                train_step(model, data, turn)
                if on_gpu:
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - start)

        peak = extra_mib(steps, on_gpu) / 1024
    return {'seconds': round(statistics.median(seconds[WARM_UP:]), 5), 'peak_gib': round(peak, 3)}


def measure_in_own_process(args: argparse.Namespace, batch: int, patch: int, processes: int) -> dict[str, Any]:
    """:func:`measure` in new processes; rank 0's values."""
    threads = torch.get_num_threads() // processes or 1
    launcher = ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}'] if processes > 1 else []
    command = [sys.executable, *launcher, str(Path(__file__).resolve()), str(args.option_file), '--measure']
    command += [str(batch), str(patch), '--turns', str(args.turns), '--execution', json.dumps(args.execution)]
    environment = os.environ | {'OMP_NUM_THREADS': str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f'{" ".join(command)}\n{done.stderr}')
    found = next(line for line in done.stdout.splitlines() if line.startswith(MARK))
    result = {'batch': batch, 'patch': patch, 'processes': processes, **json.loads(found.removeprefix(MARK))}
    print(result, flush=True)
    return result


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument('option_file', type=Path)
    arguments.add_argument('--turns', type=int, default=7)
    arguments.add_argument('--execution', type=json.loads, default={'precision': 'fp32', 'channels_last': True})
    arguments.add_argument('--batches', type=int, nargs='+', default=BATCHES)
    arguments.add_argument('--patches', type=int, nargs='+', default=PATCHES)
    arguments.add_argument('--out', type=Path)
    arguments.add_argument('--measure', type=int, nargs=2, metavar=('BATCH', 'PATCH'), help=argparse.SUPPRESS)
    args = arguments.parse_args()
    if args.measure:
        result = measure(args.option_file, *args.measure, args.turns, args.execution)
        if int(os.environ.get('RANK', 0)) == 0:
            print(MARK + json.dumps(result), flush=True)
        if dist.is_initialized():
            dist.destroy_process_group()
        return

    if args.out is None:
        arguments.error('--out: missing')
    counts = (1, 2) if torch.cuda.device_count() != 1 else (1,)
    groups = {
        'by_batch': [(batch, PATCH, 1) for batch in args.batches],
        'by_patch': [(BATCH, patch, 1) for patch in args.patches],
        'by_processes': 3 * [(BATCH, PATCH, processes) for processes in counts],
    }
    recorder = Recorder(args.out, groups)
    results: dict[str, Any] = {
        'option_file': str(args.option_file),
        'execution': args.execution,
        'turns': args.turns,
        'machine': machine(),
        'threads': torch.get_num_threads(),
        'versions': versions(),
    }
    for group, settings in groups.items():
        results[group] = [measure_in_own_process(args, *setting) for setting in settings]
        recorder.write(group, results)
    header = ['batch', 'patch', 'processes', 'ms', 'GiB']
    cells = [
        [
            str(run['batch']),
            str(run['patch']),
            str(run['processes']),
            f'{1000 * run["seconds"]:.0f}',
            str(run['peak_gib']),
        ]
        for group in groups
        for run in results[group]
    ]
    print(text_table(header, cells))


if __name__ == '__main__':
    main()
