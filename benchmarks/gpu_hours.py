"""Cost of the paper's runs: FLOPs of one iteration, and hours at a given FLOP rate.

    python benchmarks/gpu_hours.py --out benchmarks/results/gpu_hours.json --into docs/reproduce.md

Computed, not measured: networks, regressors and loss are on the meta device. Counts convolutions and matrix products of
forward and backward, two FLOPs per multiply-add, but not the L1 distances of equation (3). The rate is an assumption.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import facd_basicsr  # noqa: F401  must come before basicsr

# isort: split
import torch
from basicsr.archs import build_network
from torch.utils.flop_counter import FlopCounterMode, bmm_flop

from facd_basicsr.comparison.summary import with_blocks
from facd_basicsr.distill.regressors import build_regressors
from facd_basicsr.distill.taps import Taps
from facd_basicsr.evaluation.tables import markdown_table
from facd_basicsr.losses import DistillState
from facd_basicsr.losses.loss_sum import LossSum
from facd_basicsr.options import read_option_file

OPTIONS = Path(__file__).resolve().parents[1] / 'options' / 'train'
RATE, DEVICE = 8.0, 'TITAN RTX'  # TFLOP/s: half of 16.3, its peak in float32
LATER = ('CSD', 'FACDB', 'DUKD', 'ECO', 'DCKD', 'MTKD')  # not the paper's
BEGIN = '<!-- benchmarks/gpu_hours.py -->'


def _baddbmm_flops(_: Any, a_shape: Any, b_shape: Any, **__: Any) -> int:
    """FLOPs of an in-place (N, R, C) x (N, C, W) in FAKD's loss, which torch's counter lacks."""
    return bmm_flop(a_shape, b_shape)


def step_flops(opt: dict[str, Any]) -> int:
    """FLOPs of one iteration of a train file."""
    size = opt['datasets']['train']['gt_size'] // opt['scale']
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.baddbmm_: _baddbmm_flops})
    with torch.device('meta'), counter:
        student = build_network(opt['network_g'])
        lq = torch.empty(opt['datasets']['train']['batch_size_per_gpu'], 3, size, size)
        if 'distill_opt' not in opt['train']:
            student(lq).sum().backward()
            return counter.get_total_flops()
        teacher = build_network(opt['teacher']['network']).requires_grad_(False)
        loss = LossSum(opt['train']['distill_opt'])
        taps = opt.get('taps', [])
        sr, feats = Taps(student, [tap['student'] for tap in taps], 'student').run(student, lq)
        sr_t, feats_t = Taps(teacher, [tap['teacher'] for tap in taps], 'teacher').run(teacher, lq)
        net_r = build_regressors(opt.get('network_r'), loss.regressor, feats, feats_t)
        regressed = () if net_r is None else net_r(feats)
        terms = loss(DistillState(sr, sr_t, torch.empty_like(sr_t), lq, feats, feats_t, regressed))
        sum(value for name, value in terms.items() if name.startswith('l_')).backward()
    return counter.get_total_flops()


def table(costs: list[dict[str, Any]]) -> str:
    """Markdown table: a row per method and network; TFLOPs of an iteration and hours of a run per scale."""
    scales = (2, 3, 4)
    found = {(cost['method'], cost['network'], cost['scale']): cost for cost in costs}
    rows = []
    for method, network in dict.fromkeys((cost['method'], cost['network']) for cost in costs):
        cells = [found.get((method, network, scale)) for scale in scales]
        flops = ['-' if cell is None else f'{cell["flops"] / 1e12:.2f}' for cell in cells]
        hours = ['-' if cell is None else f'{cell["hours"]:.0f}' for cell in cells]
        rows.append([f'{method} {network}', *flops, *hours])
    header = ['run', *(f'TFLOP x{scale}' for scale in scales), *(f'hours x{scale}' for scale in scales)]
    return markdown_table(header, rows)


def filled(page: str, costs: list[dict[str, Any]]) -> str:
    """The page with an updated table between its markers."""
    return with_blocks(page, re.escape(BEGIN), lambda _: table(costs))[0]


def papers_files() -> list[tuple[Path, str, str, int]]:
    """Option files of the paper's tables, each with its method, network and scale."""
    found = []
    for path in [*sorted(OPTIONS.glob('*.yml')), *sorted(OPTIONS.glob('ablation/*.yml'))]:
        words = re.fullmatch(r'(\w+)_(EDSR|RCAN)_x(\d)', path.stem)
        if words is not None and words[1] not in LATER:
            found.append((path, words[1], words[2], int(words[3])))
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument('--out', type=Path, required=True)
    arguments.add_argument('--into', type=Path, help='page whose table is updated')
    args = arguments.parse_args()
    costs = []
    for path, method, network, scale in papers_files():
        opt = read_option_file(str(path))
        flops = step_flops(opt)
        hours = flops * opt['train']['total_iter'] / (RATE * 1e12) / 3600
        costs.append({'method': method, 'network': network, 'scale': scale, 'flops': flops, 'hours': hours})
        print(f'{path.stem}: {flops / 1e12:.3f} TFLOP an iteration, {hours:.0f} h', flush=True)
    results = {'rate_tflops': RATE, 'device': DEVICE, 'kind': 'computed', 'runs': costs}
    args.out.write_text(json.dumps(results, indent=1) + '\n', encoding='utf-8')
    if args.into is not None:
        args.into.write_text(filled(args.into.read_text(encoding='utf-8'), costs), encoding='utf-8')


if __name__ == '__main__':
    main()
