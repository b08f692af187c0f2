"""Compares MATLAB-bicubic LR images with published LR files, and bicubic's PSNR with published values.

    python benchmarks/bicubic.py ../shared/data/benchmark --out benchmarks/results/bicubic.json

The folder holds ``SET/GTx{scale}`` and ``SET/LRx{scale}`` of Set5 and Set14.
"""

import argparse
import json
from pathlib import Path

import facd_basicsr  # noqa: F401  must come before basicsr

# isort: split
import cv2
import numpy as np
from basicsr.metrics import calculate_psnr
from basicsr.utils import bgr2ycbcr
from basicsr.utils.matlab_functions import imresize

from facd_basicsr.data.bicubic import bicubic_lr
from facd_basicsr.environment import versions
from facd_basicsr.evaluation.tables import text_table
from facd_basicsr.runtime.metrics import bicubic, score

# bicubic's PSNR-Y at x2, x3, x4, as reported by SRCNN, VDSR and most later papers
PUBLISHED = {'Set5': [33.66, 30.39, 28.42], 'Set14': [30.24, 27.55, 26.00]}


def basicsr_lr(hr: np.ndarray, scale: int) -> np.ndarray:
    """Bicubic by BasicSR's ``imresize`` in floating point: uint8 (H, W, C) -> uint8 (H / scale, W / scale, C)."""
    return (imresize(hr.astype(np.float32) / 255, 1 / scale) * 255).round().clip(0, 255).astype(np.uint8)


def published_psnr(gt: np.ndarray, scale: int) -> float:
    """Bicubic's PSNR-Y by SRCNN's protocol: Y alone, in 8 bits, with an unrounded LR; a gray image is used as Y."""
    y = gt if gt.ndim == 2 else (bgr2ycbcr(gt.astype(np.float32) / 255, y_only=True) * 255).round()
    lr = imresize(y.astype(np.float32) / 255, 1 / scale)
    return calculate_psnr((imresize(lr, scale) * 255).round().clip(0, 255)[..., None], y[..., None], crop_border=scale)


def compare(folder: Path, scale: int) -> dict[str, float]:
    """Differences of a set's LR images in 8-bit levels, and mean PSNR values in dB."""
    differences: dict[str, list] = {'our': [], 'basicsr': []}
    psnr = []
    for path in sorted((folder / f'GTx{scale}').iterdir()):
        gt, their_lr = cv2.imread(str(path)), cv2.imread(str(folder / f'LRx{scale}' / path.name))
        lrs = {'our': bicubic_lr(gt, scale), 'basicsr': basicsr_lr(gt, scale)}
        for name, lr in lrs.items():
            differences[name].append(np.abs(lr.astype(int) - their_lr))
        from_lr = [score(bicubic(lr, scale), gt, scale)['psnr_y'] for lr in (their_lr, *lrs.values())]
        psnr.append([*from_lr, published_psnr(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), scale)])
    theirs, ours, basicsrs, protocol = np.mean(psnr, axis=0)
    result: dict[str, float] = {'images': len(psnr)}
    for name, images in differences.items():
        result[f'{name}_equal_images'] = sum(not image.any() for image in images)
        result[f'{name}_largest_difference'] = int(max(image.max() for image in images))
        result[f'{name}_mean_difference'] = round(float(np.mean([image.mean() for image in images])), 4)
    return {
        **result,
        'psnr_y_their_lr': round(float(theirs), 3),
        'psnr_y_our_lr': round(float(ours), 3),
        'psnr_y_basicsr_lr': round(float(basicsrs), 3),
        'psnr_y_published_protocol': round(float(protocol), 3),
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument('folder', type=Path, nargs='?', default=Path('../shared/data/benchmark'))
    arguments.add_argument('--out', type=Path)
    args = arguments.parse_args()
    if not (args.folder / 'Set5' / 'GTx2').is_dir():
        arguments.error(f'{args.folder} has no Set5/GTx2; accepted: a folder with SET/GTx2 and SET/LRx2, x3 and x4')

    results: dict[str, dict] = {}
    for name, published in PUBLISHED.items():
        for scale, psnr in zip((2, 3, 4), published):
            results[f'{name} x{scale}'] = {**compare(args.folder / name, scale), 'psnr_y_published': psnr}
    header = [
        'bicubic',
        'equal',
        'largest',
        'mean',
        'BasicSR: largest',
        'mean',
        'Y: our LR',
        "papers' protocol",
        'published',
    ]
    rows = []
    for name, result in results.items():
        cells = [f'{result["our_equal_images"]} of {result["images"]}']
        for whose in ('our', 'basicsr'):
            cells += [f'{result[f"{whose}_largest_difference"]}', f'{result[f"{whose}_mean_difference"]:.3f}']
        cells += [f'{result[f"psnr_y_{key}"]:.2f}' for key in ('our_lr', 'published_protocol', 'published')]
        rows.append([name, *cells])
    print(text_table(header, rows))
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({**results, 'versions': versions()}, indent=2) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
