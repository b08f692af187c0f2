"""Scaling of a FACD run over GPUs, computed from its FLOPs and bytes, not measured.

    python benchmarks/scaling.py --out benchmarks/results/scaling.json

The assumptions are the constants below. In a step the ranks all-reduce the gradients of student and regressors, and
all-gather the teacher's features, since FACD compares each sample with those of all ranks. No overlap of communication
and computation is assumed, so the result is a lower bound on the efficiency at these rates.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import facd_basicsr  # noqa: F401  must come before basicsr

# isort: split
import torch
from basicsr.archs import build_network
from gpu_hours import OPTIONS, step_flops

from facd_basicsr.distill.regressors import build_regressors
from facd_basicsr.distill.taps import Taps
from facd_basicsr.evaluation.complexity import parameters
from facd_basicsr.evaluation.tables import text_table
from facd_basicsr.options import read_option_file

FILES = ('FACD_EDSR_x4', 'FACD_RCAN_x4')
GPUS = (1, 2, 4, 8)
RATE = 0.5 * 989e12  # FLOP/s: half of an H200's dense bfloat16 peak
MEMORY = 0.6 * 4.8e12  # bytes/s of the distances: 60 % of an H200's memory bandwidth
LINK = 300e9  # bytes/s into and out of a GPU in a collective: two thirds of NVLink 4's 450 GB/s each way
FLOAT = 4  # bytes; gradients and features are exchanged in float32


def sizes(opt: dict[str, Any]) -> tuple[int, int]:
    """Number of trained parameters, and of elements of one sample's teacher features at all taps."""
    size = opt['datasets']['train']['gt_size'] // opt['scale']
    lq = torch.empty(1, 3, size, size, device='meta')
    with torch.device('meta'), torch.no_grad():
        nets = {'student': build_network(opt['network_g']), 'teacher': build_network(opt['teacher']['network'])}
        feats = {key: Taps(net, [tap[key] for tap in opt['taps']], key).run(net, lq)[1] for key, net in nets.items()}
        net_r = build_regressors(opt['network_r'], 'always', feats['student'], feats['teacher'])
    return parameters(nets['student']) + parameters(net_r), sum(feat.numel() for feat in feats['teacher'])


def step_seconds(flops: float, trained: int, elements: int, batch: int, gpus: int) -> dict[str, float]:
    """Seconds of each part of a step.

    Args:
        flops: FLOPs per GPU.
        trained: number of trained parameters.
        elements: number of elements of one sample's teacher features.
        batch: samples per GPU.
        gpus: world size.
    """
    reads = 2 * (batch + batch * gpus) * elements * FLOAT  # own features and all ranks', forward and backward
    return {
        'networks': flops / RATE,
        'distances': reads / MEMORY,
        'gradients': 2 * (gpus - 1) / gpus * trained * FLOAT / LINK,
        'features': (gpus - 1) * batch * elements * FLOAT / LINK,
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument('--out', type=Path, required=True)
    args = arguments.parse_args()
    runs = []
    for name in FILES:
        opt = read_option_file(str(OPTIONS / f'{name}.yml'))
        batch = opt['datasets']['train']['batch_size_per_gpu']
        flops, (trained, elements) = step_flops(opt), sizes(opt)
        one_gpu = sum(step_seconds(flops, trained, elements, batch, 1).values())
        for shared in (False, True):  # weak scaling (a batch per GPU), strong scaling (one batch split over the GPUs)
            for gpus in GPUS:
                n = batch // gpus if shared else batch
                parts = step_seconds(flops * n / batch, trained, elements, n, gpus)
                speed_up = one_gpu / sum(parts.values()) * n * gpus / batch
                runs.append({'option_file': name, 'gpus': gpus, 'batch_per_gpu': n, 'speed_up': round(speed_up, 2)})
                runs[-1] |= {part: round(value, 6) for part, value in parts.items()}
    assumptions = {'flop_s': RATE, 'memory_bytes_s': MEMORY, 'link_bytes_s': LINK, 'bytes': FLOAT, 'overlap': 'none'}
    results = {'kind': 'computed', 'assumptions': assumptions, 'runs': runs}
    args.out.write_text(json.dumps(results, indent=1) + '\n', encoding='utf-8')
    header = ['option file', 'GPUs', 'batch per GPU', 'networks', 'distances', 'gradients', 'features', 'speed-up']
    parts = ('networks', 'distances', 'gradients', 'features')
    rows = []
    for run in runs:
        cells = [f'{1000 * run[part]:.2f}' for part in parts]
        rows.append([run['option_file'], str(run['gpus']), str(run['batch_per_gpu']), *cells, str(run['speed_up'])])
    print(text_table(header, rows))


if __name__ == '__main__':
    main()
