"""EDSR and RCAN with upsampler and last convolution in tiles: these take the most memory."""

import copy

from basicsr.archs.edsr_arch import EDSR
from basicsr.archs.rcan_arch import RCAN
from torch import Tensor, nn

from facd_basicsr.archs import CONVOLUTIONAL
from facd_basicsr.runtime.tiling import receptive_field_radius, tiled

TAIL_TILE = 128  # LQ pixels: 64 features of x4 take 160 MB


class InTiles(nn.Module):
    """A network that runs in tiles: (N, C, h, w) -> (N, C', h * scale, w * scale).

    Raises:
        UserError: it does not work in tiles.
    """

    def __init__(self, net: nn.Module, channels: int, scale: int, tile: int) -> None:
        super().__init__()
        self.net = net
        self._scale, self._tile = scale, tile
        self._reach = receptive_field_radius(net, channels, scale, tile)

    def forward(self, x: Tensor) -> Tensor:
        return tiled(self.net, x, self._scale, self._tile, self._reach)


def has_tail(net: nn.Module) -> bool:
    """Whether its output is ``conv_last(upsample(features))``, which nobody knows of a class derived from these."""
    return type(net) in CONVOLUTIONAL


def with_tail_in_tiles(net: EDSR | RCAN, scale: int) -> nn.Module:
    """The same network, of the same parameters, which runs its upsampler and last convolution in tiles.

    At x4 these hold 2000 numbers for each pixel of LQ, all before them some 350, and what looks at the whole image,
    RCAN's channel attention, is before them. So the output is the whole image's, but for rounding.
    """
    twin = copy.deepcopy(net, {id(parameter): parameter for parameter in net.parameters()})
    tail = nn.Sequential(twin.upsample, twin.conv_last)
    twin.upsample = InTiles(tail, net.conv_last.in_channels, scale, TAIL_TILE)
    twin.conv_last = nn.Identity()
    return twin.eval()
