"""Crops per second of BasicSR's loader and of this project's, from an LMDB, from files and from memory.

    python benchmarks/data_loading.py --gt datasets/DIV2K/DIV2K_train_HR_sub.lmdb \
        --lq datasets/DIV2K/DIV2K_train_LR_bicubic_X4_sub.lmdb --scale 4 --gt-size 192 \
        --out benchmarks/results/data_loading.json

The loaders take turns, each in its own process with one thread: first without workers, then with workers, which run
during their turn only. Medians. The files are the LMDBs' PNGs, written to a temporary folder, where the decoded images
lie too; start-up is the time until these can be read, by a first run, which decodes them, and by a later one. For
several scales, give --lq, --scale and --gt-size one value per scale.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import facd_basicsr  # noqa: F401  must come before basicsr

# isort: split
import cv2
import lmdb
import torch
from basicsr.data import build_dataloader, build_dataset
from basicsr.data.data_sampler import EnlargedSampler
from recorder import Recorder

from facd_basicsr.data.loaders import batches, build_loaders, build_ordered_dataset
from facd_basicsr.environment import machine, versions
from facd_basicsr.evaluation.tables import text_table

BASELINE = 'BasicSR, lmdb'
SOURCES = {BASELINE: 'lmdb', 'lmdb': 'lmdb', 'disk': 'disk', 'memory': 'memory'}
WARM_UP = 1  # turns excluded from the medians
STARTS = 3  # of a first and a later run
SEED = 10


def block_of(gt: Path, lq: Path, scale: int, gt_size: int, batch_size: int, workers: int, backend: str) -> dict:
    """The option block of a training set, as in the option files."""
    return {
        'name': 'crops',
        'type': 'PairedImageDataset',
        'dataroot_gt': str(gt),
        'dataroot_lq': str(lq),
        'io_backend': {'type': backend},
        'gt_size': gt_size,
        'use_hflip': True,
        'use_rot': True,
        'num_worker_per_gpu': workers,
        'batch_size_per_gpu': batch_size,
        'dataset_enlarge_ratio': 200,
        'prefetch_mode': None,
        'pin_memory': None,
        'phase': 'train',
        'scale': scale,
    }


def reader(name: str, block: dict[str, Any]) -> Callable[[], Iterator[dict[str, Any]]]:
    """A function that starts an iterator over batches."""
    if name == BASELINE:  # as in BasicSR's train.py
        dataset = build_dataset(block)
        sampler = EnlargedSampler(dataset, num_replicas=1, rank=0, ratio=block['dataset_enlarge_ratio'])
        loader = build_dataloader(dataset, block, num_gpu=1, dist=False, sampler=sampler, seed=SEED)
        return lambda: iter(loader)
    opt = {'datasets': {'train': block}, 'manual_seed': SEED, 'rank': 0, 'world_size': 1, 'num_gpu': 1, 'dist': False}
    loader = build_loaders(opt).train
    return lambda: batches(loader, opt)


def serve(connection: Connection, name: str, block: dict[str, Any], seconds: float) -> None:
    """Reads batches for ``seconds`` per request; sends crops, wall seconds and this process's CPU seconds."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    start_reading = reader(name, block)
    while connection.recv():
        items = start_reading()
        for _ in range(2 * block['num_worker_per_gpu'] + 1):  # until prefetching is in a steady state
            next(items)
        start, cpu, crops = time.perf_counter(), time.process_time(), 0
        while crops == 0 or time.perf_counter() - start < seconds:
            crops += len(next(items)['gt'])
        answer = crops, time.perf_counter() - start, time.process_time() - cpu
        del items  # ends the workers
        connection.send(answer)


def measure(blocks: dict[str, dict[str, Any]], turns: int, seconds: float) -> dict[str, dict[str, float]]:
    """{name: crops per second, and per second of the reading process's CPU}, medians."""
    context = multiprocessing.get_context('spawn')
    connections, processes = {}, []
    for name, block in blocks.items():
        connections[name], other = context.Pipe()
        processes.append(context.Process(target=serve, args=(other, name, block, seconds)))
        processes[-1].start()
        other.close()
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in blocks}
    for _ in range(WARM_UP + turns):
        for name, connection in connections.items():
            connection.send(True)
            crops, wall, cpu = connection.recv()
            rates[name].append((crops / wall, crops / cpu))
    for connection in connections.values():
        connection.send(False)
    for process in processes:
        process.join()
    return {
        name: {
            'crops_per_second': round(statistics.median(wall for wall, _ in pairs[WARM_UP:]), 1),
            'crops_per_cpu_second': round(statistics.median(cpu for _, cpu in pairs[WARM_UP:]), 1),
        }
        for name, pairs in rates.items()
    }


def start_up(block: dict[str, Any]) -> dict[str, float]:
    """Seconds of a first and of a later run until the decoded images can be read, and their GB on the disk."""
    seconds: dict[str, list[float]] = {'first_run': [], 'later_run': []}
    folder = Path(block['dataroot_gt']).parent
    for _ in range(STARTS):
        for path in folder.glob('*.decoded-*'):
            path.unlink()
        for times in seconds.values():
            start = time.perf_counter()
            build_ordered_dataset(block)
            times.append(time.perf_counter() - start)
    size = sum(path.stat().st_size for path in folder.glob('*.decoded-*'))
    return {**{name: round(statistics.median(times), 3) for name, times in seconds.items()}, 'gb': round(size / 1e9, 3)}


def unpack(path: Path, folder: Path) -> Path:
    """The PNGs of an LMDB as files."""
    folder.mkdir()
    with lmdb.open(str(path), readonly=True, lock=False) as env, env.begin() as txn:
        for key, png in txn.cursor():
            (folder / f'{key.decode()}.png').write_bytes(png)
    return folder


def run(args: argparse.Namespace, lq: Path, scale: int, gt_size: int) -> list[dict[str, Any]]:
    """One entry per number of workers."""
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        files = unpack(args.gt, Path(temporary, 'GT')), unpack(lq, Path(temporary, 'LQ'))
        links = Path(temporary, args.gt.name), Path(temporary, lq.name)  # decoded images lie beside them
        for link, path in zip(links, (args.gt, lq)):
            link.symlink_to(path.resolve())
        from_memory = start_up(block_of(*links, scale, gt_size, args.batch, 0, 'memory'))
        for workers in args.workers:
            blocks = {
                name: block_of(*(files if backend == 'disk' else links), scale, gt_size, args.batch, workers, backend)
                for name, backend in SOURCES.items()
            }
            rates = measure(blocks, args.turns, args.seconds)
            if workers:
                for rate in rates.values():
                    del rate['crops_per_cpu_second']  # excludes the workers' CPU time
            ratios = {
                key: round(rates['memory'][key] / rates[BASELINE][key], 1) for key in rates[BASELINE]
            }  # of memory to BasicSR
            settings = {'scale': scale, 'gt_size': gt_size, 'batch': args.batch, 'workers': workers}
            found = {'rates': rates, 'memory_to_basicsr': ratios, 'memory_start_up': from_memory}
            results.append({**settings, 'lq': lq.name, **found})
    return results


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument('--gt', type=Path, required=True)
    arguments.add_argument('--lq', type=Path, nargs='+', required=True)
    arguments.add_argument('--scale', type=int, nargs='+', required=True)
    arguments.add_argument('--gt-size', type=int, nargs='+', required=True)
    arguments.add_argument('--batch', type=int, default=16)
    arguments.add_argument('--workers', type=int, nargs='+', default=[0, 2])
    arguments.add_argument('--turns', type=int, default=9)
    arguments.add_argument('--seconds', type=float, default=0.7, help='per turn')
    arguments.add_argument('--out', type=Path, required=True)
    args = arguments.parse_args()
    cases = list(zip(args.lq, args.scale, args.gt_size, strict=True))
    recorder = Recorder(args.out, [lq.name for lq, *_ in cases])
    results: list[dict[str, Any]] = []
    record = {
        'gt': args.gt.name,
        'images': len((args.gt / 'meta_info.txt').read_text().splitlines()),
        'machine': machine(),
        'threads': 1,
        'turns': args.turns,
        'seconds': args.seconds,
        'versions': versions(),
        'results': results,
    }
    for lq, scale, gt_size in cases:
        results += run(args, lq, scale, gt_size)
        recorder.write(lq.name, record)
    rows = [
        [
            f'x{result["scale"]}, {result["gt_size"]}',
            str(result['workers']),
            name,
            *(f'{rate[key]:.0f}' if key in rate else '' for key in ('crops_per_second', 'crops_per_cpu_second')),
            f'{rate["crops_per_second"] / result["rates"][BASELINE]["crops_per_second"]:.1f}',
        ]
        for result in results
        for name, rate in result['rates'].items()
    ]
    print(text_table(['patch', 'workers', 'from', 'crops/s', 'per CPU s', f'vs {BASELINE}'], rows))


if __name__ == '__main__':
    main()
