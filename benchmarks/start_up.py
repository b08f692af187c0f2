"""Start-up time of train.py, until its first batch and its first iteration, and of ``facd --help``.

    python benchmarks/start_up.py --out benchmarks/results/start_up.json

For each option file these take turns, so that other load on the machine affects both equally:

- the baseline: a process that imports torch and basicsr and builds BasicSR's student and teacher;
- train.py, with an LMDB of synthetic images and a random teacher, until the first batch reaches the model.

Times are from the start of the process; medians. CPU seconds include all threads of the process; on a busy machine
their ratio is the reproducible one. In the last turn train.py completes its first iteration.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import facd_basicsr  # noqa: F401  must come before basicsr

# isort: split
import cv2
import numpy as np
import torch
from distillation_models import random_teacher
from recorder import Recorder

from facd_basicsr.data.bicubic import with_bicubic_lr
from facd_basicsr.data.lmdb_pairs import write_lmdbs
from facd_basicsr.environment import machine, versions
from facd_basicsr.evaluation.tables import text_table
from facd_basicsr.options import read_option_file
from facd_basicsr.options.option_files import option_text

REPOSITORY = Path(__file__).resolve().parents[1]
OPTION_FILES = ('options/train/mini/FACD_EDSR16x4_x2.yml', 'options/train/FACD_EDSR_x4.yml')
PICTURES, SIZE, CROP, STEP = 6, 480, 240, 120  # 9 sub-images each
WARM_UP = 1  # turns excluded from the medians: they read the libraries from disk

# Each process prints time.monotonic(), which all processes share, and its CPU time.
BASELINE = """
import json, runpy, sys, time
runpy.run_path('facd_basicsr/compat.py')  # without it basicsr does not import
import torch, basicsr
for network in json.loads(sys.argv[1]):
    basicsr.archs.build_network(network)
print('mark', time.monotonic(), time.process_time())
"""
TRAIN = """
import functools, sys, time
from pathlib import Path
import facd_basicsr.train
from facd_basicsr.models import FACDModel
from facd_basicsr.options import parser

option_file, until = sys.argv[1:]
feed_data = FACDModel.feed_data

@functools.wraps(feed_data)
def first_batch(self, data):
    print('mark', time.monotonic(), time.process_time())
    if until == 'batch':
        sys.exit()
    feed_data(self, data)

def first_iteration(_):
    print('mark', time.monotonic(), time.process_time())
    sys.exit()

FACDModel.feed_data = first_batch
args = parser().parse_args(['-opt', option_file])
facd_basicsr.train.train(args, root=Path(option_file).parent, console=False, on_iteration=first_iteration)
"""


def prepare(option_file: str, folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    """An option file with data and teacher in ``folder`` and without validation, and BasicSR's student and teacher."""
    opt = read_option_file(option_file)
    scale, train_set = opt['scale'], opt['datasets']['train']
    paths = {1: folder / 'HR.lmdb', scale: folder / 'LR.lmdb'}
    sources = {f'{i:04d}': partial(with_bicubic_lr, _picture(i), multiple=scale) for i in range(PICTURES)}
    write_lmdbs(sources, paths, CROP, STEP)
    opt['datasets'] = {'train': {**train_set, 'dataroot_gt': str(paths[1]), 'dataroot_lq': str(paths[scale])}}
    teacher = opt['teacher']['network']
    opt['teacher'] = {'network': teacher, 'weights': str(random_teacher(teacher, folder))}
    opt.pop('val', None)
    result = folder / 'opt.yml'
    result.write_text(option_text(opt), encoding='utf-8')
    student = {'num_in_ch': 3, 'num_out_ch': 3, **opt['network_g']}  # defaults of our students, not of BasicSR
    student = {**student, 'type': opt['network_g']['type'].removesuffix('Student')}
    return result, [student, teacher]


def _picture(seed: int) -> np.ndarray:
    """A smooth random BGR uint8 picture."""
    coarse = np.random.default_rng(seed).uniform(0, 255, (SIZE // 8, SIZE // 8, 3)).astype(np.float32)
    return cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)


def seconds(*command: str | Path) -> list[tuple[float, float]]:
    """Runs a Python process; returns (wall, CPU) seconds from its start to each mark it prints."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True
    )
    marks = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith('mark ')]  # BasicSR prints too
    return [(float(wall) - start, float(cpu)) for wall, cpu in marks]


def help_seconds() -> float:
    """Wall seconds of ``facd --help``."""
    start = time.monotonic()
    subprocess.run([sys.executable, 'facd_cli.py', '--help'], cwd=REPOSITORY, stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - start


def measure(option_file: str, turns: int) -> dict[str, Any]:
    """The times of one option file."""
    baseline, train, iteration = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        own_file, networks = prepare(option_file, Path(folder))
        for turn in range(WARM_UP + turns):
            baseline += seconds('-c', BASELINE, json.dumps(networks))
            until = 'iteration' if turn == WARM_UP + turns - 1 else 'batch'
            batch, *iteration = seconds('-c', TRAIN, own_file, until)
            train.append(batch)
    result: dict[str, Any] = {}
    for kind, index in (('', 0), ('cpu_', 1)):
        of_baseline, of_train = ([mark[index] for mark in marks[WARM_UP:]] for marks in (baseline, train))
        medians = statistics.median(of_baseline), statistics.median(of_train)
        result |= {
            f'{kind}baseline_seconds': [round(value, 2) for value in of_baseline],
            f'{kind}train_seconds': [round(value, 2) for value in of_train],
            f'{kind}baseline_median': round(medians[0], 2),
            f'{kind}train_median': round(medians[1], 2),
            f'{kind}ratio': round(medians[1] / medians[0], 2),
        }
    return {**result, 'first_iteration_seconds': round(iteration[0][0] - train[-1][0], 2)}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument('option_files', nargs='*', default=OPTION_FILES)
    arguments.add_argument('--turns', type=int, default=5)
    arguments.add_argument('--out', type=Path, required=True)
    args = arguments.parse_args()
    recorder = Recorder(args.out, [*args.option_files, 'facd --help'])
    runs: dict[str, Any] = {}
    results = {
        'machine': machine(),
        'threads': torch.get_num_threads(),
        'turns': args.turns,
        'versions': versions(),
        'runs': runs,
    }
    for option_file in args.option_files:
        runs[option_file] = measure(option_file, args.turns)
        recorder.write(option_file, results)
    helped = [help_seconds() for _ in range(WARM_UP + args.turns)][WARM_UP:]
    results |= {
        'facd_help_seconds': [round(value, 3) for value in helped],
        'facd_help_median': round(statistics.median(helped), 3),
    }
    recorder.write('facd --help', results)
    rows = [
        [option_file, *(f'{found[key]:.2f}' for key in ('baseline_median', 'train_median', 'ratio', 'cpu_ratio'))]
        for option_file, found in runs.items()
    ]
    print(text_table(['option file', 'torch, basicsr, networks', 'train.py', 'ratio', 'of CPU seconds'], rows))
    print(f'facd --help: {results["facd_help_median"]:.2f} s')


if __name__ == '__main__':
    main()
