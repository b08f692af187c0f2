"""MATLAB-bicubic LR images against independent ones, and bicubic's PSNR against the published, as JSON and a table.

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
from basicsr.utils.matlab_functions import cubic, imresize
from torch import from_numpy

from facd_basicsr.data.bicubic import bicubic_lr
from facd_basicsr.engine.logs import versions
from facd_basicsr.evaluation.quality import bicubic, score
from facd_basicsr.evaluation.table import text_table

# bicubic's Y-PSNR at x2, x3, x4, as SRCNN, VDSR and most papers since have it
PUBLISHED = {'Set5': [33.66, 30.39, 28.42], 'Set14': [30.24, 27.55, 26.00]}


def matlab_uint8(hr: np.ndarray, scale: int) -> np.ndarray:
    """Bicubic as MATLAB's imresize has it for uint8, borders replicated: (H, W, C) -> (H / scale, W / scale, C).

    Height first, and rounded to 8 bits after each direction. ``bicubic_lr`` rounds once and reflects the borders.
    """
    for axis in (0, 1):
        length = hr.shape[axis]
        centre = (np.arange(length // scale) + 0.5) * scale - 0.5
        taps = np.floor(centre - 2 * scale)[:, None] + np.arange(4 * scale + 2)
        weights = cubic(from_numpy((centre[:, None] - taps) / scale)).numpy()
        weights /= weights.sum(1, keepdims=True)
        lines = np.moveaxis(hr, axis, 0)[taps.clip(0, length - 1).astype(int)]  # (length / scale, taps, ...)
        resized = np.floor(np.einsum('ot,ot...->o...', weights, lines.astype(float)) + 0.5).clip(0, 255)
        hr = np.moveaxis(resized, 0, axis).astype(np.uint8)
    return hr


def published_psnr(gt: np.ndarray, scale: int) -> float:
    """Bicubic's Y-PSNR by SRCNN's protocol: Y alone, in 8 bits, its LR not rounded; a gray image is Y as it is."""
    y = gt if gt.ndim == 2 else (bgr2ycbcr(gt.astype(np.float32) / 255, y_only=True) * 255).round()
    lr = imresize(y.astype(np.float32) / 255, 1 / scale)
    return calculate_psnr((imresize(lr, scale) * 255).round().clip(0, 255)[..., None], y[..., None], crop_border=scale)


def compare(folder: Path, scale: int) -> dict[str, float]:
    """A set's differences in 8-bit levels and its mean PSNRs in dB."""
    largest, largest_inside, means, exact, psnr = [], [], [], [], []
    for path in sorted((folder / f'GTx{scale}').iterdir()):
        gt, their_lr = cv2.imread(str(path)), cv2.imread(str(folder / f'LRx{scale}' / path.name))
        our_lr = bicubic_lr(gt, scale)
        difference = np.abs(our_lr.astype(int) - their_lr)
        largest.append(difference.max())
        largest_inside.append(difference[3:-3, 3:-3].max())  # no kernel there reaches a border
        means.append(difference.mean())
        exact.append(np.array_equal(matlab_uint8(gt, scale), their_lr))
        from_lr = [score(bicubic(lr, scale), gt, scale)['psnr_y'] for lr in (their_lr, our_lr)]
        psnr.append([*from_lr, published_psnr(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), scale)])
    theirs, ours, protocol = np.mean(psnr, axis=0)
    return {
        'images': len(means),
        'largest_difference': int(max(largest)),
        'largest_difference_inside': int(max(largest_inside)),
        'mean_difference': round(float(np.mean(means)), 4),
        'equal_to_matlab_uint8': int(sum(exact)),
        'psnr_y_their_lr': round(float(theirs), 3),
        'psnr_y_our_lr': round(float(ours), 3),
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
    header = ['bicubic', 'largest', 'inside', 'mean', 'Y: their LR', 'our LR', "papers' way", 'published']
    rows = []
    for name, result in results.items():
        cells = [f'{result["largest_difference"]}', f'{result["largest_difference_inside"]}']
        cells += [f'{result["mean_difference"]:.3f}', f'{result["psnr_y_their_lr"]:.2f}']
        cells += [f'{result["psnr_y_our_lr"]:.2f}', f'{result["psnr_y_published_protocol"]:.2f}']
        rows.append([name, *cells, f'{result["psnr_y_published"]:.2f}'])
    print(text_table(header, rows))
    exact, count = (sum(result[key] for result in results.values()) for key in ('equal_to_matlab_uint8', 'images'))
    print(f'\n{exact} of {count} LR images are equal to matlab_uint8.')
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({**results, 'versions': versions()}, indent=2) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
