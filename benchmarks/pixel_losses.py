"""Size of each pixel loss compared with L1Loss, on real photographs: what its ``loss_weight`` is relative to.

    python benchmarks/pixel_losses.py FOLDER --teacher EDSR_f48b12_x2.pth --out benchmarks/results/pixel_losses.json

The prediction is bicubic x4, and if it is given an EDSR x2. Center crops of FOLDER's images; medians, over the images,
of the loss over L1Loss, and of its gradient's norm on the prediction over that of L1Loss.
"""

import argparse
import json
import statistics
from pathlib import Path

import facd_basicsr  # noqa: F401  must come before basicsr

# isort: split
import torch
from basicsr.archs import build_network
from basicsr.utils import img2tensor
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from facd_basicsr.data.bicubic import bicubic_lr
from facd_basicsr.evaluation.tables import text_table
from facd_basicsr.files.images import images_in, read_bgr
from facd_basicsr.losses import build_loss

SIZES = (96, 192, 256)
LOSSES = {
    'L1Loss': {},
    'MSELoss': {},
    'CharbonnierLoss': {},
    'FFTLoss': {},
    'FFTLoss, ortho': {'norm': 'ortho'},
    'FFTLoss, amplitude_phase': {'of': 'amplitude_phase'},
    'WaveletLoss': {},
    'WaveletLoss, levels: 1': {'levels': 1},
    'WaveletLoss, ll: false': {'ll': False},
    'GradientLoss': {},
}


def sizes_of(pred: Tensor, gt: Tensor) -> dict[str, tuple[float, float]]:
    """{loss: (value, norm of its gradient on ``pred``)}; images (1, 3, H, W)."""
    found = {}
    for name, options in LOSSES.items():
        pred = pred.detach().requires_grad_()
        value = build_loss({'type': name.partition(',')[0], **options})(pred, gt)
        (gradient,) = torch.autograd.grad(value, pred)
        found[name] = value.item(), gradient.norm().item()
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument('folder', type=Path)
    arguments.add_argument('--teacher', type=Path, help='EDSR, 48 features, 12 blocks, x2')
    arguments.add_argument('--out', type=Path, required=True)
    args = arguments.parse_args()
    upscalers = {4: lambda lq: F.interpolate(lq, scale_factor=4, mode='bicubic')}
    if args.teacher:
        edsr = build_network(
            {
                'type': 'EDSR',
                'num_in_ch': 3,
                'num_out_ch': 3,
                'num_feat': 48,
                'num_block': 12,
                'upscale': 2,
                'res_scale': 1,
            }
        )
        edsr.load_state_dict(torch.load(args.teacher, weights_only=True)['params'])
        upscalers[2] = edsr.eval()
    results = {}
    for scale, upscale in upscalers.items():
        for size in SIZES:
            found = []
            for path in images_in(args.folder):
                image = read_bgr(path)
                top, left = ((side - size) // 2 for side in image.shape[:2])
                if min(top, left) < 0:
                    continue
                hr = image[top : top + size, left : left + size]
                lq, gt = (img2tensor(part / 255.0).float()[None] for part in (bicubic_lr(hr, scale), hr))
                with torch.no_grad():
                    pred = upscale(lq)
                found.append(sizes_of(pred, gt))
            results[f'x{scale}, {size} x {size}'] = {
                name: [
                    float(f'{statistics.median(each[name][i] / each["L1Loss"][i] for each in found):.3g}')
                    for i in range(2)
                ]
                for name in LOSSES
            } | {'images': len(found)}
    args.out.write_text(json.dumps(results, indent=1) + '\n', 'utf-8')
    rows = [[name, *(f'{results[key][name][i]:g}' for key in results for i in range(2))] for name in LOSSES]
    print(text_table(['loss', *['value', 'gradient'] * len(results)], rows, ['', *(k for k in results for _ in '12')]))


if __name__ == '__main__':
    main()
