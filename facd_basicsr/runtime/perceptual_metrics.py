"""LPIPS and DISTS: torchmetrics' networks, on torchvision's, as metrics of BasicSR's registry."""

from collections.abc import Mapping
from functools import cache
from threading import Lock
from types import SimpleNamespace
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch
from basicsr.utils import img2tensor
from basicsr.utils.registry import METRIC_REGISTRY
from torch import Tensor, nn
from torchvision.models import alexnet, vgg16

from facd_basicsr.errors import UserError
from facd_basicsr.files.state_dicts import load_features
from facd_basicsr.runtime.rng import preserve_rng_state

BACKBONES = {'alex': alexnet, 'vgg': vgg16}
Backbone = Literal['alex', 'vgg']
BUILDING = Lock()  # validation scores in threads


@METRIC_REGISTRY.register()
def calculate_lpips(
    img: np.ndarray,
    img2: np.ndarray,
    crop_border: int,
    net: Backbone = 'alex',
    weights: str | None = None,
    **kwargs: Any,
) -> float:
    """LPIPS 0.1 of two images (Zhang et al., CVPR 2018): 0 for equal images, the lower the better.

    Args:
        img, img2: BGR uint8 (H, W, 3), or gray (H, W).
        crop_border: pixels left out at each side.
        net: the network whose features are compared. Papers that report LPIPS mostly mean `alex`
        weights: path or address of torchvision's checkpoint of it (alexnet: 244 MB, vgg16: 553 MB); `null`:
            torchvision's address
        kwargs: what else BasicSR calls metrics with.

    Raises:
        UserError: torchmetrics is not installed, its network cannot be had, or the images differ in size.
    """
    return _distance('calculate_lpips', net, weights, img, img2, crop_border)


@METRIC_REGISTRY.register()
def calculate_dists(
    img: np.ndarray, img2: np.ndarray, crop_border: int, weights: str | None = None, **kwargs: Any
) -> float:
    """DISTS of two images (Ding et al., TPAMI 2020): 0 for equal images, the lower the better.

    The authors' code first shrinks images to 256 pixels at the shorter side; here they keep their size.

    Args:
        img, img2: BGR uint8 (H, W, 3), or gray (H, W).
        crop_border: pixels left out at each side.
        weights: path or address of torchvision's vgg16 checkpoint (553 MB); `null`: torchvision's address
        kwargs: what else BasicSR calls metrics with.

    Raises:
        UserError: as of :func:`calculate_lpips`.
    """
    return _distance('calculate_dists', 'vgg', weights, img, img2, crop_border)


def prepare(where: str, opt: Mapping[str, Any]) -> None:
    """Builds the network of a perceptual metric, once in a process; other metrics have none.

    Args:
        where: the key of the metric's block, for messages.
        opt: that block in ``val.metrics``.

    Raises:
        UserError: torchmetrics is not installed, or the weights cannot be downloaded or read, or do not fit.
    """
    if METRIC_REGISTRY.get(opt['type']) in (calculate_lpips, calculate_dists):
        _prepared(where, opt['type'], opt.get('net', 'alex'), opt.get('weights'))


def _prepared(where: str, metric: str, net: Backbone, weights: str | None) -> nn.Module:
    try:
        with BUILDING:
            return _network(metric, net if metric == 'calculate_lpips' else 'vgg', weights)
    except UserError as error:
        raise UserError(f'{where}.{error}') from error


@cache
def _network(metric: str, net: Backbone, weights: str | None) -> nn.Module:
    """torchmetrics' network in eval mode, on this process's GPU if there is one."""
    try:
        from torchmetrics.functional.image import dists, lpips
    except ImportError as error:
        raise UserError(
            f'type: {metric} needs torchmetrics ({error}); accepted: another metric, or '
            "`pip install 'facd_basicsr[perceptual]'`"
        ) from error
    layers = load_features(BACKBONES[net], weights, 'weights')
    # Their constructors ask torchvision for its network with the weights that it would download itself.
    with (
        preserve_rng_state(),
        patch.object(lpips, '_get_tv_model_features', lambda *_: layers),
        patch.object(dists, 'vgg16', lambda **_: SimpleNamespace(features=layers)),
    ):
        found = lpips._NoTrainLpips(net=net) if metric == 'calculate_lpips' else dists.DISTSNetwork()
    device = torch.device('cuda', torch.cuda.current_device()) if torch.cuda.is_available() else torch.device('cpu')
    return found.eval().requires_grad_(False).to(device)


def _distance(
    metric: str, net: Backbone, weights: str | None, img: np.ndarray, img2: np.ndarray, crop_border: int
) -> float:
    if img.shape != img2.shape:
        raise UserError(f'{metric}: images of {img.shape} and {img2.shape}; accepted: equal sizes')
    network = _prepared(metric, metric, net, weights)
    device = next(network.parameters()).device
    images = [_rgb(image, crop_border).to(device) for image in (img, img2)]
    with torch.no_grad():
        return float(network(*images, **({'normalize': True} if metric == 'calculate_lpips' else {})))


def _rgb(image: np.ndarray, border: int) -> Tensor:
    """BGR uint8 (H, W, 3) or gray (H, W) -> RGB float32 (1, 3, H - 2 * border, W - 2 * border) in [0, 1]."""
    inner = image[border : image.shape[0] - border, border : image.shape[1] - border].astype(np.float32) / 255
    return img2tensor(inner if inner.ndim == 3 else np.repeat(inner[..., None], 3, axis=2))[None]
