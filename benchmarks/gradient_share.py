"""Gradient norm of a method's feature term on the student's body, relative to the image term's.

    python benchmarks/gradient_share.py options/compare/mini_x2.yml --out benchmarks/results/gradient_share.json

For every method of a comparison with both terms, at the first seed's initial and trained weights: the ratio of the
gradient norms of the weighted feature and image terms, and the cosine between the gradients. Medians over ten batches.
"""

import argparse
import copy
import json
import random
import statistics
from pathlib import Path
from typing import Any

import facd_basicsr  # noqa: F401  must come before basicsr

# isort: split
import torch
from basicsr.data import build_dataset
from torch import Tensor

from facd_basicsr.comparison.plan import Run, read_comparison
from facd_basicsr.comparison.run_record import checkpoint_of
from facd_basicsr.evaluation.tables import text_table
from facd_basicsr.models.safe_model import build_model
from facd_basicsr.options.option_check import with_defaults

BATCHES = 10
BODY = ('conv_first', 'body')  # the layers before the last tap


def gradients(run: Run, trained: bool) -> dict[str, float]:
    """The medians for one run, at its trained or initial weights."""
    opt = with_defaults(run.opt, is_train=True) | {
        'is_train': True,
        'dist': False,
        'rank': 0,
        'world_size': 1,
        'root_path': '.',
    }
    opt['num_gpu'] = 0
    opt['path']['experiments_root'] = '.'
    if trained:
        models = checkpoint_of(run).parent
        opt['path']['pretrain_network_g'] = str(models / 'net_g_latest.pth')
        if 'network_r' in opt:
            opt['path']['pretrain_network_r'] = str(models / 'net_r_latest.pth')
    torch.manual_seed(run.seed)
    model = build_model(opt)
    body = [parameter for name, parameter in model.net_g.named_parameters() if name.startswith(BODY)]
    dataset = build_dataset({**copy.deepcopy(opt['datasets']['train']), 'phase': 'train', 'scale': opt['scale']})
    random.seed(run.seed)
    batch_size = opt['datasets']['train']['batch_size_per_gpu']
    ratios, cosines = [], []
    for _ in range(BATCHES):
        samples = [dataset[random.randrange(len(dataset))] for _ in range(batch_size)]
        lq, gt = (torch.stack([sample[key] for sample in samples]) for key in ('lq', 'gt'))
        terms = model.criterion(model.distill_state(lq, gt))
        (feature,) = (name for name in terms if name.startswith('l_') and name != 'l_sr')
        image, feature = (_gradient(terms[name], body) for name in ('l_sr', feature))
        ratios.append((feature.norm() / image.norm()).item())
        cosines.append(torch.cosine_similarity(feature, image, dim=0).item())
    return {'ratio': round(statistics.median(ratios), 4), 'cosine': round(statistics.median(cosines), 4)}


def _gradient(term: Tensor, parameters: list[Tensor]) -> Tensor:
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(term, parameters, retain_graph=True)])


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument('comparison', type=Path)
    arguments.add_argument('--out', type=Path, required=True)
    args = arguments.parse_args()
    comparison = read_comparison(args.comparison)
    results: dict[str, Any] = {}
    for run in comparison.runs():
        opt = run.opt
        if run.seed == comparison.seeds[0] and 'taps' in opt and checkpoint_of(run).is_file():
            results[run.method] = {'initial': gradients(run, False), 'trained': gradients(run, True)}
    args.out.write_text(json.dumps({'comparison': comparison.name, 'methods': results}, indent=1) + '\n', 'utf-8')
    rows = [
        [method, *(f'{found[when][key]:.3f}' for when in ('initial', 'trained') for key in ('ratio', 'cosine'))]
        for method, found in results.items()
    ]
    print(text_table(['method', 'ratio', 'cosine', 'ratio', 'cosine'], rows, ['', *['initial'] * 2, *['trained'] * 2]))


if __name__ == '__main__':
    main()
