"""What ``teacher.cache`` saves in a step of teacher supervision, and what it changes in the teacher's images.

    OMP_NUM_THREADS=1 python benchmarks/teacher_cache.py options/train/mini/FACD_EDSR16x4_x2.yml \
        --force_yml teacher:weights=TEACHER.pth --out benchmarks/results/teacher_cache.json

The file's student and teacher, with patches of the photographs of its ``datasets.val``. The steps take turns, so that
other load on the machine affects all of them equally; on a CPU their times are of the CPU. The teacher's images of
patches are compared with the patches of its images of whole photographs, as the cache has them.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import facd_basicsr  # noqa: F401  must come before basicsr

# isort: split
import torch
from basicsr.utils import set_random_seed
from torch import Tensor

from facd_basicsr.data.loaders import build_ordered_dataset
from facd_basicsr.environment import machine, versions
from facd_basicsr.evaluation.tables import text_table
from facd_basicsr.models import FACDModel
from facd_basicsr.models.safe_model import build_model
from facd_basicsr.models.validation import validation_forward
from facd_basicsr.options.parse import checked_options

WARM_UP = 2  # turns excluded from the medians
LOSSES = {'teacher supervision': {'type': 'TeacherSupervisionLoss'}, 'student alone': {'type': 'L1Loss'}}
clock = time.perf_counter if torch.cuda.is_available() else time.process_time


def build(opt: dict[str, Any], loss: dict[str, Any]) -> FACDModel:
    """The file's networks with this loss, as train.py builds them."""
    shared = {'is_train': True, 'dist': False, 'rank': 0, 'world_size': 1, 'root_path': '.', 'stage_begin': 0}
    opt = {**opt, **shared, 'num_gpu': min(1, torch.cuda.device_count()), 'taps': []}
    opt = {key: value for key, value in opt.items() if key != 'network_r'}
    train_opt = {**opt['train'], 'distill_opt': {'loss_weight': 1, **loss}, 'pixel_opt': None}
    set_random_seed(0)
    return build_model({**opt, 'train': train_opt, 'path': {**opt['path'], 'experiments_root': '.'}})


def images(model: FACDModel, lq: Tensor) -> Tensor:
    """What the teacher gives, as the cache makes it, but for its 8 bits."""
    return validation_forward(model.teachers[0], lq, model.opt['scale'], 0, 0)


def in_8_bits(sr: Tensor) -> Tensor:
    return (255 * sr.clamp(0, 1)).round() / 255


def psnr(a: Tensor, b: Tensor) -> float:
    """Of RGB, without a border cropped, in dB."""
    return -10 * float(torch.log10((a - b).square().mean()))


def patches(whole: dict[str, Tensor], scale: int, size: int, count: int) -> Iterator[dict[str, Tensor]]:
    """Random patches of a photograph, (1, 3, size, size) of LQ, of its GT and of the teacher's image of it."""
    height, width = whole['lq'].shape[2:]
    for _ in range(count):
        top, left = (int(torch.randint(side - size + 1, ())) for side in (height, width))
        factors = {'lq': 1, 'gt': scale, 'teacher': scale}
        yield {
            name: whole[name][..., f * top : f * (top + size), f * left : f * (left + size)]
            for name, f in factors.items()
        }


def differences(model: FACDModel, patch: dict[str, Tensor]) -> dict[str, float]:
    """dB between the teacher's images of a patch, and to ground truth."""
    live, border = images(model, patch['lq']), patch['lq'].shape[-1] // 4 * model.opt['scale']
    inner = (..., slice(border, -border), slice(border, -border))
    return {
        'whole, cropped': psnr(patch['teacher'], live),
        'whole, cropped, 8 bits': psnr(in_8_bits(patch['teacher']), live),
        'whole, cropped, inner half': psnr(patch['teacher'][inner], live[inner]),
        'flipped': psnr(images(model, patch['lq'].flip(3)).flip(3), live),
        'transposed': psnr(images(model, patch['lq'].transpose(2, 3)).transpose(2, 3), live),
        'patch to ground truth': psnr(live, patch['gt']),
        'whole, cropped, 8 bits, to ground truth': psnr(in_8_bits(patch['teacher']), patch['gt']),
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument('option_file', type=Path)
    arguments.add_argument('--force_yml', nargs='+', default=[], metavar='KEY:KEY=VALUE')
    arguments.add_argument('--photographs', type=int, default=12)
    arguments.add_argument('--patches', type=int, default=16, help='of each')
    arguments.add_argument('--turns', type=int, default=15)
    arguments.add_argument('--out', type=Path, required=True)
    args = arguments.parse_args()
    opt = checked_options(str(args.option_file), args.force_yml, is_train=True)
    scale, n = opt['scale'], opt['datasets']['train']['batch_size_per_gpu']
    size = opt['datasets']['train']['gt_size'] // scale
    models = {name: build(opt, loss) for name, loss in LOSSES.items()}
    model, device = models['teacher supervision'], models['teacher supervision'].device

    dataset = build_ordered_dataset({**opt['datasets']['val'], 'phase': 'val', 'scale': scale})
    set_random_seed(0)
    found: list[dict[str, float]] = []
    taken: list[dict[str, Tensor]] = []
    pixels, seconds_whole = 0, 0.0
    for index in range(min(args.photographs, len(dataset))):
        whole = {name: dataset[index][name][None].to(device) for name in ('lq', 'gt')}
        start = clock()
        whole['teacher'] = images(model, whole['lq'])
        float(whole['teacher'].sum())  # waits for the device
        seconds_whole += clock() - start
        pixels += whole['lq'][0, 0].numel()
        own = list(patches(whole, scale, size, args.patches))
        found += [differences(model, patch) for patch in own]
        taken += own
    batch = {name: torch.cat([patch[name] for patch in (n * taken)[:n]]) for name in ('lq', 'gt', 'teacher')}
    without = {name: batch[name] for name in ('lq', 'gt')}
    steps = {
        'teacher supervision': (model, without),
        'teacher supervision, cached': (model, {**batch, 'teacher': in_8_bits(batch['teacher'])}),
        'student alone': (models['student alone'], without),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(WARM_UP + args.turns):
        for name, (trained, data) in steps.items():
            start = clock()
            trained.feed_data(data)
            trained.optimize_parameters(turn + 1)
            trained.get_current_log()  # reads values back, so it waits for the device
            seconds[name].append(clock() - start)
    results = {
        'option_file': str(args.option_file),
        'teacher': opt['teacher']['network'],
        'batch': n,
        'patch': size,
        'machine': machine(),
        'threads': torch.get_num_threads(),
        'versions': versions(),
        'turns': args.turns,
        'ms': {name: round(1000 * statistics.median(times[WARM_UP:]), 1) for name, times in seconds.items()},
        'ms_per_1000_lq_pixels_of_the_cache': round(1e6 * seconds_whole / pixels, 2),
        'patches': len(found),
        'db': {name: round(statistics.fmean(own[name] for own in found), 2) for name in found[0]},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1) + '\n', encoding='utf-8')
    print(text_table(['step', 'ms'], [[name, str(value)] for name, value in results['ms'].items()]))
    print(
        '\n' + text_table(["teacher's image of", 'dB'], [[name, str(value)] for name, value in results['db'].items()])
    )


if __name__ == '__main__':
    main()
