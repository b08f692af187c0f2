import pytest
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from facd_basicsr.archs import input_channels


@ARCH_REGISTRY.register()
class GrayByDefault(nn.Module):
    def __init__(self, num_in_ch: int = 1, upscale: int = 2) -> None:
        super().__init__()
        self.upsample = nn.Sequential(nn.Conv2d(num_in_ch, 3 * upscale**2, 3, padding=1), nn.PixelShuffle(upscale))

    def forward(self, x):
        return self.upsample(x)


@pytest.mark.parametrize(
    ('network_opt', 'channels'),
    [
        ({'type': 'GrayByDefault'}, 1),
        ({'type': 'GrayByDefault', 'num_in_ch': 4}, 4),
        ({'type': 'EDSR', 'num_in_ch': 1, 'num_out_ch': 3}, 1),
        ({'type': 'EDSR'}, 3),  # which has no default
        ({'type': 'SwinIR', 'in_chans': 1}, 1),
        ({'type': 'RIDNet', 'in_channels': 1}, 1),
        ({'type': 'SRVGGNetCompact'}, 3),  # registered as SRVGGNetCompact_basicsr
        ({'type': 'DUF'}, 3),  # which has no such argument
        ({'type': 'OfAnotherProgram', 'num_in_ch': 1}, 1),
        ({'type': 'OfAnotherProgram'}, 3),
    ],
)
def test_channels_are_the_blocks_else_the_classs(network_opt, channels):
    assert input_channels(network_opt) == channels
