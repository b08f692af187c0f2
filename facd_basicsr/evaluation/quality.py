"""How close an upscaled image is to the ground truth."""

import numpy as np
import torch
from basicsr.metrics import calculate_psnr, calculate_ssim
from basicsr.metrics.metric_util import to_y_channel
from basicsr.utils import img2tensor, tensor2img
from basicsr.utils.matlab_functions import imresize
from torch import Tensor, nn


def upscale(net: nn.Module, lq: np.ndarray) -> np.ndarray:
    """The network's output as an 8-bit image: BGR uint8 (H, W, 3) -> BGR uint8 (H * scale, W * scale, 3)."""
    with torch.inference_mode():
        return tensor2img(net(as_input(lq)))


def as_input(lq: np.ndarray) -> Tensor:
    """BGR uint8 (H, W, 3) -> RGB float32 (1, 3, H, W) in [0, 1]."""
    return img2tensor(lq.astype(np.float32) / 255)[None]


def bicubic(lq: np.ndarray, scale: int) -> np.ndarray:
    """MATLAB's bicubic upscaling: uint8 (H, W, 3) -> uint8 (H * scale, W * scale, 3)."""
    return (imresize(lq.astype(np.float32) / 255, scale) * 255).round().clip(0, 255).astype(np.uint8)


def score(sr: np.ndarray, gt: np.ndarray, scale: int, gray: bool = False) -> dict[str, float]:
    """``psnr_y`` and ``psnr_rgb`` in dB and ``ssim_y``, by BasicSR's metrics, without ``scale`` pixels of border.

    Args:
        sr, gt: BGR uint8 (H, W, 3).
        scale: as the papers have it, also the border that is left out.
        gray: whether GT is a one-channel image, which is its own Y: see :func:`luma`.
    """
    border = {'crop_border': scale}
    y_sr, y_gt = luma(sr, gray), luma(gt, gray)
    return {
        'psnr_y': calculate_psnr(y_sr, y_gt, **border),
        'psnr_rgb': calculate_psnr(sr, gt, **border),
        'ssim_y': calculate_ssim(y_sr, y_gt, **border),
    }


def luma(image: np.ndarray, gray: bool = False) -> np.ndarray:
    """Y of BT.601: BGR uint8 (H, W, 3) -> float32 (H, W, 1) in [16, 235], not rounded.

    With ``gray`` in [0, 255], where the Y of three equal channels is the channel: published figures take a one-channel
    image as it is (img_003 of Set14), which makes its PSNR-Y 20 log10(255 / 219) = 1.32 dB lower than Y's shorter
    range does, and the mean of Set14 0.09 dB.
    """
    y = to_y_channel(image)
    return (y - 16) * (255 / 219) if gray else y
