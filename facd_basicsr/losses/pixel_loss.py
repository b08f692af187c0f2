"""Pixel losses in BasicSR's form, beside its L1Loss, MSELoss and CharbonnierLoss: L1 of transformed images."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from basicsr.losses.loss_util import reduce_loss
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from facd_basicsr.losses.base import option
from facd_basicsr.losses.pairwise import at_least_float32


def spectra_difference(pred: Tensor, target: Tensor, of: str = 'complex', norm: str = 'backward') -> Tensor:
    """The difference of the spectra P and T: (N, C, H, W) x (N, C, H, W) -> (N, C, H, W, 2).

    Args:
        pred, target: images, about [0, 1].
        of: ``complex``: real and imaginary part of P - T; ``amplitude_phase``: |P| - |T| and the angle from T to P,
            in [-pi, pi]. The angle's gradient grows as 1 / |P|: so it is 0, without gradient, where |P| or |T| is less
            than rounding to 8 bits makes on average, sqrt(H W / 12) / 255 (norm ``backward``).
        norm: torch.fft's.
    """
    if of == 'complex':
        return torch.view_as_real(torch.fft.fft2(pred - target, norm=norm))
    p, t = (torch.fft.fft2(x, norm='ortho') for x in (pred, target))
    faint = torch.minimum(p.abs(), t.abs()) < 12**-0.5 / 255
    angle = (p * t.conj()).masked_fill(faint, 1).angle()
    scale = (p.shape[2] * p.shape[3]) ** 0.5 if norm == 'backward' else 1
    return torch.stack([scale * (p.abs() - t.abs()), angle], dim=-1)


def haar(x: Tensor, levels: int, ll: bool = True) -> Tensor:
    """Coefficients (N, K) of the orthonormal Haar transform of (N, C, H, W), each weighted by K over those of its band.

    So their mean is a sum of means: of each level's LH, HL and HH, and if ``ll`` of the last level's LL. Of an odd
    size the last row or column is repeated; levels end where LL is one pixel.
    """
    bands = []
    for _ in range(levels):
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2), mode='replicate')
        a, b, c, d = F.pixel_unshuffle(x, 2).unflatten(1, (-1, 4)).unbind(2)  # a b above c d: (N, C, H / 2, W / 2)
        bands.append(torch.stack([a + b - c - d, a - b + c - d, a - b - c + d], dim=1) / 2)
        x = (a + b + c + d) / 2
        if x.shape[2:] == (1, 1):
            break
    bands += [x] if ll else []
    k = sum(band[0].numel() for band in bands)
    return torch.cat([band.flatten(1) * (k / band[0].numel()) for band in bands], dim=1)


def sobel(x: Tensor) -> Tensor:
    """Sobel's gradient in x and y, (1 2 1) times (-1 0 1), the border repeated: (N, C, H, W) -> (N, 2, C, H, W)."""
    x = F.pad(x, (1, 1, 1, 1), mode='replicate')
    rows = x[..., :-2, :] + 2 * x[..., 1:-1, :] + x[..., 2:, :]  # (N, C, H, W + 2)
    columns = x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]  # (N, C, H + 2, W)
    return torch.stack([rows[..., 2:] - rows[..., :-2], columns[..., 2:, :] - columns[..., :-2, :]], dim=1)


@dataclass(eq=False)
class PixelLoss(nn.Module, ABC):
    """``loss_weight`` times the mean or sum of |``difference``|, in float32 or more; ``none``: elements (N, ...)."""

    loss_weight: float = option(1.0, 'factor on the loss')
    reduction: str = option('mean', 'of the elements', choices=('none', 'mean', 'sum'))

    def __post_init__(self) -> None:
        super().__init__()

    @abstractmethod
    def difference(self, pred: Tensor, target: Tensor) -> Tensor:
        """(N, C, H, W) x (N, C, H, W), of any size and about [0, 1], -> (N, ...)."""

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        elements = self.difference(at_least_float32(pred), at_least_float32(target)).abs()
        return self.loss_weight * reduce_loss(elements, self.reduction)


@LOSS_REGISTRY.register()
@dataclass(eq=False)
class FFTLoss(PixelLoss):
    """L1 of spectra, as MIMO-UNet's (chosj95/MIMO-UNet, train.py); ``amplitude_phase``: Fuoli et al., ICCV 2021.

    SAFMN's (sunny2109/SAFMN, basicsr/losses/losses.py), of ``L1 + 0.05 FFT``, is the mean over rfft2's half of the
    spectrum, where the columns of frequency 0 and W / 2 weigh twice. Fuoli et al. multiply images by a window first.
    """

    of: str = option('complex', 'the parts that are compared', choices=('complex', 'amplitude_phase'))
    norm: str = option(
        'backward',
        "torch's. `backward`: none, so that the loss grows with the side of the patch; `ortho`: over its root area",
        choices=('backward', 'ortho'),
    )

    def difference(self, pred: Tensor, target: Tensor) -> Tensor:
        return spectra_difference(pred, target, self.of, self.norm)


@LOSS_REGISTRY.register()
@dataclass(eq=False)
class WaveletLoss(PixelLoss):
    """L1 of Haar wavelets, as MTKD's dwtLoss (YuxuanJJ/MTKD, basicsr/losses/basic_loss.py), but LL of all samples."""

    levels: int = option(4, 'levels of the transform, each of the LL of the one before', least=1)
    ll: bool = option(True, 'whether LL of the last level counts')

    def difference(self, pred: Tensor, target: Tensor) -> Tensor:
        return haar(pred - target, self.levels, self.ll)


@LOSS_REGISTRY.register()
@dataclass(eq=False)
class GradientLoss(PixelLoss):
    """L1 of Sobel gradients, as dwHou/NTIRE21 (EMGA_GAN/src_online/loss/gradient.py), which sums x and y, of G alone,
    and pads with 0."""

    def difference(self, pred: Tensor, target: Tensor) -> Tensor:
        return sobel(pred - target)
