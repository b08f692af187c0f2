"""The metrics of an upscaled image: BasicSR's, PSNR and SSIM in a fraction of its time."""

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import cv2
import numpy as np
import torch
from basicsr.metrics.niqe import calculate_niqe
from basicsr.metrics.psnr_ssim import calculate_psnr, calculate_psnr_pt, calculate_ssim, calculate_ssim_pt
from basicsr.utils import img2tensor, tensor2img
from basicsr.utils.matlab_functions import imresize
from basicsr.utils.registry import METRIC_REGISTRY
from torch import Tensor, nn

from facd_basicsr.errors import UserError
from facd_basicsr.files.images import photograph
from facd_basicsr.runtime.perceptual_metrics import calculate_dists, calculate_lpips

C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
GAUSSIAN = cv2.getGaussianKernel(11, 1.5)
GAUSSIAN_RADIUS = 5  # of the Gaussian, which stays inside the image
SSIM_ROWS = 64  # of SSIM at a time, whose maps stay in the processor's cache
UNIT = (np.arange(256, dtype=np.float32) / 255).astype(np.float64)  # BasicSR rounds these, and continues in float64
Y_OF_BGR = np.array([[24.966, 128.553, 65.481, 16.0]])


def upscale(net: nn.Module, lq: np.ndarray) -> np.ndarray:
    """The network's output as an 8-bit image: BGR uint8 (H, W, 3) -> BGR uint8 (H * scale, W * scale, 3)."""
    with torch.inference_mode():
        return tensor2img(net(as_input(lq)))


def as_input(lq: np.ndarray) -> Tensor:
    """BGR uint8 (H, W, 3) -> RGB float32 (1, 3, H, W) in [0, 1]."""
    return img2tensor(lq.astype(np.float32) / 255)[None]


@cache
def _quarter(name: str) -> np.ndarray:
    """A photograph with a quarter of its height and width."""
    return cv2.resize(photograph(name), None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)


def photograph_input(name: str, channels: int, height: int, width: int) -> Tensor:
    """The middle of a photograph as a network's input, (1, channels, height, width) in [0, 1].

    What a network does is tried on it. On white noise, which no network is trained on, sound ones give values of any
    size: PAN 6e20.

    Args:
        name: as of :func:`facd_basicsr.files.images.photograph`. It has a quarter of its height and width, for the
            detail of an LQ image, and is mirrored where that is too small.
        channels: 3: RGB; any other number: so many equal channels of gray.
    """
    image = _quarter(name)
    missing = [max(0, wanted - found) for wanted, found in zip((height, width), image.shape)]
    image = np.pad(image, [(more // 2, more - more // 2) for more in (*missing, 0)], 'symmetric')
    top, left = ((found - wanted) // 2 for wanted, found in zip((height, width), image.shape))
    lq = as_input(image[top : top + height, left : left + width])
    return lq if channels == 3 else lq.mean(1, keepdim=True).repeat(1, channels, 1, 1)


def bicubic(lq: np.ndarray, scale: int) -> np.ndarray:
    """MATLAB's bicubic upscaling: uint8 (H, W, 3) -> uint8 (H * scale, W * scale, 3)."""
    return (imresize(lq.astype(np.float32) / 255, scale) * 255).round().clip(0, 255).astype(np.uint8)


def score(sr: np.ndarray, gt: np.ndarray, scale: int, gray: bool = False) -> dict[str, float]:
    """``psnr_y`` and ``psnr_rgb`` in dB and ``ssim_y``, as BasicSR's metrics, without ``scale`` pixels of border.

    Args:
        sr, gt: BGR uint8 (H, W, 3).
        scale: as the papers have it, also the border that is left out.
        gray: whether to take GT for a one-channel image, which is its own Y: see :func:`luma`.
    """
    sr, gt = _inner(sr, gt, scale)
    y_sr, y_gt = luma(sr, gray), luma(gt, gray)  # (H - 2 * scale, W - 2 * scale)
    return {'psnr_y': psnr(y_sr, y_gt), 'psnr_rgb': psnr(sr, gt), 'ssim_y': ssim(y_sr, y_gt)}


def psnr_y(sr: np.ndarray, gt: np.ndarray, scale: int) -> float:
    """That of :func:`score`, alone."""
    sr, gt = _inner(sr, gt, scale)
    return psnr(luma(sr), luma(gt))


def _inner(sr: np.ndarray, gt: np.ndarray, border: int) -> tuple[np.ndarray, np.ndarray]:
    inner = np.s_[border : gt.shape[0] - border, border : gt.shape[1] - border]
    return sr[inner], gt[inner]


NIQE = 'niqe'


def niqe_options(scale: int) -> dict[str, Any]:
    """NIQE's block in ``val.metrics`` as the papers have it, without ``scale`` pixels of border."""
    return {'type': 'calculate_niqe', 'crop_border': scale}


def to_image(tensor: Tensor) -> np.ndarray:
    """As BasicSR's ``tensor2img``: RGB (1, 3, H, W) in [0, 1], clamped, to BGR uint8 (H, W, 3)."""
    if tensor.dim() != 4 or tensor.shape[:2] != (1, 3):
        return tensor2img([tensor])
    image = tensor[0].detach().float().clamp(0, 1).mul_(255).round_().byte().cpu()
    return np.ascontiguousarray(image.flip(0).permute(1, 2, 0).numpy())


def scores(image: np.ndarray, gt: np.ndarray | None, metrics: Mapping[str, dict[str, Any]]) -> dict[str, float]:
    """The metrics of an image by an option file's ``val.metrics``, by name and in their order.

    PSNR has BasicSR's bits, SSIM its first twelve digits. Any other metric is called as BasicSR calls it, with those of
    ``img2`` and ``better`` that it takes. NIQE is nan where fewer than two of its blocks have texture.

    Args:
        image, gt: BGR uint8 (H, W, 3) or (H, W); gt: None if there is none, then metrics that need it are left out.

    Raises:
        UserError: the image is too small for a metric.
    """

    @cache
    def planes(border: int, y_channel: bool) -> list[np.ndarray]:
        inner = np.s_[border : image.shape[0] - border, border : image.shape[1] - border]
        pair = [one[inner] for one in (image, gt) if one is not None]
        return list(map(luma, pair)) if y_channel else pair

    def value(metric: Metric, opt: dict[str, Any]) -> float:
        fast = FAST.get(metric)
        if fast is not None and gt is not None and image.shape == gt.shape:
            return fast(*planes(opt['crop_border'], opt.get('test_y_channel', False)))
        arguments = {key: value for key, value in opt.items() if key != 'type'}
        optional = {'img2': gt, 'better': arguments.pop('better', None)}
        taken = {key: value for key, value in optional.items() if value is not None and takes(metric, key)}
        try:
            return metric(img=image, **taken, **arguments)
        except np.linalg.LinAlgError:
            if metric is not calculate_niqe:
                raise
            return float('nan')

    found = {}
    for name, opt in metrics.items():
        metric = METRIC_REGISTRY.get(opt['type'])
        if gt is not None or not needs_gt(metric):
            check_metric_size(name, opt, *image.shape[:2])
            found[name] = float(value(metric, opt))
    return found


Metric = Callable[..., float]  # as METRIC_REGISTRY has it


def needs_gt(metric: Metric) -> bool:
    """Whether a metric compares with a reference: whether it has an argument ``img2`` without a default."""
    parameter = inspect.signature(metric).parameters.get('img2')
    return parameter is not None and parameter.default is parameter.empty


def takes(metric: Metric, argument: str) -> bool:
    """Whether a metric can be called with an argument."""
    parameters = inspect.signature(metric).parameters
    return argument in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def check_metric_size(where: str, opt: Mapping[str, Any], height: int, width: int) -> None:
    """Refuses a metric of BasicSR on images that it has no value for.

    Args:
        where: what names metric and image, for messages.
        opt: the metric's block in ``val.metrics``.
        height, width: of the upscaled image.

    Raises:
        UserError: the image is too small.
    """
    metric, border = METRIC_REGISTRY.get(opt['type']), opt.get('crop_border', 0)
    unit, count = LEAST.get(metric, (0, 0))
    inner = height - 2 * border, width - 2 * border
    if unit and (min(inner) < unit or (inner[0] // unit) * (inner[1] // unit) < count):
        least = f'{count * unit + 2 * border}x{unit + 2 * border}'
        raise UserError(
            f'{where}: {opt["type"]} with crop_border: {border} on {width}x{height} pixels; accepted: {least} or more'
            + (f', {count} blocks of {unit}x{unit} inside the border' if count > 1 else '')
        )


def luma(image: np.ndarray, gray: bool = False) -> np.ndarray:
    """BasicSR's ``to_y_channel``, Y of BT.601: uint8 BGR (H, W, 3), or gray (H, W), to float32 (H, W), not rounded.

    Args:
        gray: whether the three channels are those of a one-channel image, which is then its own Y, in [0, 255] in the
            place of [16, 235]. Published values of bicubic take such an image as it is (img_003 of Set14), those of
            networks since EDSR as color. Y's shorter range makes PSNR-Y 20 log10(255 / 219) = 1.32 dB higher, and the
            mean of Set14 0.09 dB.
    """
    unit = cv2.LUT(image, UNIT)
    if image.ndim == 3:
        unit = cv2.transform(unit, Y_OF_BGR) / 255
    y = unit.astype(np.float32) * np.float32(255)
    return (y - 16) * np.float32(255 / 219) if gray else y


def psnr(image: np.ndarray, gt: np.ndarray) -> float:
    """PSNR in dB, peak 255, of two images of equal shape, (H, W) or (H, W, C); infinite if they are equal."""
    if image.dtype != np.uint8:
        return calculate_psnr(image, gt, crop_border=0)
    squares = round(cv2.norm(image, gt, cv2.NORM_L2SQR))  # an integer, which OpenCV may have taken the root of
    return 10.0 * np.log10(255.0 * 255.0 / (squares / image.size)) if squares else float('inf')


def ssim(image: np.ndarray, gt: np.ndarray) -> float:
    """SSIM of two images (H, W) or (H, W, C) in [0, 255], the mean over the channels; nan below 11 x 11."""
    if image.ndim == 3:
        return float(np.mean([ssim(image[..., i], gt[..., i]) for i in range(image.shape[2])]))
    height, width = (max(0, size - 2 * GAUSSIAN_RADIUS) for size in image.shape)
    if height * width == 0:
        return float('nan')
    bands = [np.s_[top : top + SSIM_ROWS + 2 * GAUSSIAN_RADIUS] for top in range(0, height, SSIM_ROWS)]
    return sum(_ssim_map(image[rows], gt[rows]).sum() for rows in bands) / (height * width)


def _ssim_map(image: np.ndarray, gt: np.ndarray) -> np.ndarray:
    """(H, W) twice -> float64 (H - 10, W - 10). The Gaussian is separable, and variances are needed as a sum only."""
    x, y = image.astype(np.float64), gt.astype(np.float64)
    mean_x, mean_y, squares, product = (_blurred(plane) for plane in (x, y, x * x + y * y, x * y))
    means, mean_squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
    return ((2 * means + C1) * (2 * (product - means) + C2)) / ((mean_squares + C1) * (squares - mean_squares + C2))


def _blurred(plane: np.ndarray) -> np.ndarray:
    return cv2.sepFilter2D(plane, -1, GAUSSIAN, GAUSSIAN)[
        GAUSSIAN_RADIUS:-GAUSSIAN_RADIUS, GAUSSIAN_RADIUS:-GAUSSIAN_RADIUS
    ]


# By registered function, not by name:
FAST: dict[Metric, Callable[[np.ndarray, np.ndarray], float]] = {calculate_psnr: psnr, calculate_ssim: ssim}
BETTER = {  # the direction
    **dict.fromkeys((calculate_psnr, calculate_ssim, calculate_psnr_pt, calculate_ssim_pt), 'higher'),
    **dict.fromkeys((calculate_niqe, calculate_lpips, calculate_dists), 'lower'),
}
# The side of a square that a metric reads, and how many of them it needs. NIQE's statistics are of blocks of 96 pixels,
# and of a single one there is no covariance. Of 31 AlexNet's last features are one pixel, of 16 VGG-16's.
LEAST = {
    calculate_psnr: (1, 1),
    calculate_ssim: (11, 1),
    calculate_niqe: (96, 2),
    calculate_lpips: (31, 1),
    calculate_dists: (16, 1),
}
