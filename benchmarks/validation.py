"""Time of a validation on Set14 x4: BasicSR's ``nondist_validation`` compared with ours.

    python benchmarks/validation.py --data datasets/Set14/GTmod12 datasets/Set14/LRbicx4 \
        --out benchmarks/results/validation.json

Both validate the same networks, with random weights, by the metrics of the shipped option files. They take turns, so
that other load on the machine affects both equally. Medians of wall time and of the CPU time of all threads, which
depends less on other processes; the largest difference of the metrics; and the breakdown of the time.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import facd_basicsr  # noqa: F401  must come before basicsr

# isort: split
import cv2
import torch
from basicsr.data import build_dataloader, build_dataset
from basicsr.metrics import calculate_metric
from basicsr.models.sr_model import SRModel
from basicsr.utils import tensor2img
from recorder import Recorder
from torch.utils.data import DataLoader

from facd_basicsr.environment import machine, versions
from facd_basicsr.evaluation.tables import text_table
from facd_basicsr.models.safe_model import SafeModel, build_model
from facd_basicsr.models.validation import validation_forward
from facd_basicsr.runtime.metrics import scores, to_image

SCALE = 4
STUDENTS = {'EDSR 64x16': (64, 16), 'EDSR 16x4': (16, 4)}  # the paper's, and a small one
METRICS = {
    f'{metric}_{channels}': {'type': f'calculate_{metric}', 'crop_border': SCALE, 'test_y_channel': channels == 'y'}
    for channels in ('y', 'rgb')
    for metric in ('psnr', 'ssim')
}
SET14 = Path('datasets/Set14')  # datasets/README.md


def build(features: int, blocks: int, gpus: int) -> SafeModel:
    """A student with seeded random weights, built as in test.py."""
    torch.manual_seed(0)
    network = {'type': 'EDSRStudent', 'num_feat': features, 'num_block': blocks, 'upscale': SCALE}
    shared = {'is_train': False, 'dist': False, 'rank': 0, 'world_size': 1, 'num_gpu': gpus, 'scale': SCALE}
    paths = {'path': {}, 'name': 'benchmark', 'model_type': 'SRModel'}
    return build_model(
        {**shared, **paths, 'network_g': network, 'val': {'metrics': METRICS, 'tile': None, 'pbar': False}}
    )


def timed(run: Callable[[], Any]) -> tuple[float, float]:
    """Wall and CPU seconds of a call."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - processor


def split(model: SafeModel, loader: DataLoader) -> dict[str, dict[str, float]]:
    """CPU seconds of each part: reading, forward, conversion to 8 bits, and each metric."""
    samples = list(loader)
    net = model.net_g.eval()
    inputs = [sample['lq'].to(model.device) for sample in samples]

    def outputs(run: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
        with torch.no_grad():
            return [run(lq).cpu() for lq in inputs]

    results = list(zip(outputs(net), (sample['gt'] for sample in samples)))
    images = [(to_image(result), to_image(gt)) for result, gt in results]
    parts: dict[str, dict[str, Callable[[], Any]]] = {
        'BasicSR': {
            'forward': lambda: outputs(net),
            'to 8 bits': lambda: [(tensor2img([result]), tensor2img([gt])) for result, gt in results],
            **{
                name: lambda opt=opt: [calculate_metric({'img': image, 'img2': gt}, opt) for image, gt in images]
                for name, opt in METRICS.items()
            },
        },
        'ours': {
            'forward': lambda: outputs(lambda lq: validation_forward(net, lq, SCALE, 0, 0)),
            'to 8 bits': lambda: [(to_image(result), to_image(gt)) for result, gt in results],
            **{
                name: lambda name=name, opt=opt: [scores(image, gt, {name: opt}) for image, gt in images]
                for name, opt in METRICS.items()
            },
        },
    }
    reading = round(timed(lambda: list(loader))[1], 3)
    return {who: {'reading': reading, **{k: round(timed(v)[1], 3) for k, v in of.items()}} for who, of in parts.items()}


def compare(model: SafeModel, loader: DataLoader, turns: int) -> dict[str, Any]:
    """BasicSR's validation and ours in turns; the first turn is excluded."""
    validations = {'BasicSR': SRModel.nondist_validation, 'ours': SafeModel.validation}
    seconds: dict[str, list[tuple[float, float]]] = {who: [] for who in validations}
    metrics = {}
    for _ in range(1 + turns):
        for who, validation in validations.items():
            seconds[who].append(
                timed(lambda validation=validation: validation(model, loader, 'benchmark', None, False))
            )
            metrics[who] = dict(model.metric_results)
    by_turn = {who: list(zip(*times[1:])) for who, times in seconds.items()}
    medians = {who: [round(statistics.median(times), 3) for times in both] for who, both in by_turn.items()}
    ratios = [theirs / ours for theirs, ours in zip(by_turn['BasicSR'][0], by_turn['ours'][0])]
    return {
        'seconds': {who: wall for who, (wall, _) in medians.items()},
        'processor_seconds': {who: processor for who, (_, processor) in medians.items()},
        'times_faster': round(medians['BasicSR'][0] / medians['ours'][0], 2),
        'times_faster_by_turn': [round(ratio, 2) for ratio in ratios],
        'processor_times_faster': round(medians['BasicSR'][1] / medians['ours'][1], 2),
        'metrics': {name: round(float(value), 6) for name, value in metrics['BasicSR'].items()},
        'differences': {name: abs(float(metrics['ours'][name] - value)) for name, value in metrics['BasicSR'].items()},
        'processor_seconds_by_part': split(model, loader),
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = [SET14 / 'GTmod12', SET14 / f'LRbicx{SCALE}']
    arguments.add_argument('--data', type=Path, nargs=2, metavar=('GT', 'LQ'), default=default, help='folders, x4')
    arguments.add_argument('--turns', type=int, default=3)
    arguments.add_argument('--threads', type=int, default=torch.get_num_threads())
    arguments.add_argument('--students', nargs='+', choices=STUDENTS, default=list(STUDENTS))
    arguments.add_argument('--out', type=Path, required=True)
    args = arguments.parse_args()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    gt, lq = map(str, args.data)
    paths = {'name': 'Set14', 'type': 'PairedImageDataset', 'dataroot_gt': gt, 'dataroot_lq': lq}
    opt = {**paths, 'io_backend': {'type': 'disk'}, 'phase': 'val', 'scale': SCALE}
    loader = build_dataloader(build_dataset(opt), opt)
    gpus = min(1, torch.cuda.device_count())
    recorder = Recorder(args.out, args.students)
    students: dict[str, Any] = {}
    results = {
        'images': len(loader),
        'machine': machine(),
        'threads': args.threads,
        'turns': args.turns,
        'versions': versions(),
        'students': students,
    }
    for name in args.students:
        students[name] = compare(build(*STUDENTS[name], gpus), loader, args.turns)
        recorder.write(name, results)
    rows = []
    for student, found in students.items():
        for who in found['seconds']:
            parts = [f'{seconds:.2f}' for seconds in found['processor_seconds_by_part'][who].values()]
            rows.append(
                [student, who, f'{found["seconds"][who]:.2f}', f'{found["processor_seconds"][who]:.2f}', *parts]
            )
        difference = max(found['differences'].values())
        print(f'{student}: {found["times_faster"]} times faster; metrics differ by {difference:.1e}')
    header = ['student', 'validation', 'seconds', 'processor', 'reading', 'forward', 'to 8 bits', *METRICS]
    print(text_table(header, rows))


if __name__ == '__main__':
    main()
