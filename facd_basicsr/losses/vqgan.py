"""The encoder of taming-transformers' VQGAN, in whose features DCKD's authors contrast images."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from facd_basicsr.files.state_dicts import load_part
from facd_basicsr.losses.vgg import ImageFeatures

WIDTHS = (128, 128, 256, 256, 512)  # of the levels: `ch` times `ch_mult` of vqgan_imagenet_f16_1024 and _16384


class ResidualBlock(nn.Module):
    """Two convolutions, each after group normalization and SiLU: (N, C_in, H, W) -> (N, C_out, H, W)."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(32, num_in, eps=1e-6)
        self.conv1 = nn.Conv2d(num_in, num_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(32, num_out, eps=1e-6)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, padding=1)
        self.nin_shortcut = nn.Identity() if num_in == num_out else nn.Conv2d(num_in, num_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        feat = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(feat)))


class Level(nn.Module):
    """The blocks of one resolution, and what leads to the next; of the last level the first block alone."""

    def __init__(self, num_in: int, num_out: int, is_last: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList([ResidualBlock(num_in, num_out)])
        self.downsample = nn.Sequential()
        if not is_last:
            self.block.append(ResidualBlock(num_out, num_out))
            self.downsample.add_module('pad', nn.ZeroPad2d((0, 1, 0, 1)))
            self.downsample.add_module('conv', nn.Conv2d(num_out, num_out, 3, stride=2))


class VQGANEncoder(nn.Module):
    """The encoder up to the first block of level ``depth``, named as in the checkpoint. No attention comes before."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, WIDTHS[0], 3, padding=1)
        widths = zip((WIDTHS[0], *WIDTHS), WIDTHS[:depth])
        self.down = nn.ModuleList([Level(*own, i == depth) for i, own in enumerate(widths, start=1)])

    def slices(self) -> list[nn.Sequential]:
        """What leads from the image to the first block of the first level, and from there to that of the next."""
        slices: list[nn.Sequential] = []
        layers: list[nn.Module] = [self.conv_in]
        for level in self.down:
            first, *others = level.get_submodule('block').children()
            slices.append(nn.Sequential(*layers, first))
            layers = [*others, level.get_submodule('downsample')]
        return slices


def load_vqgan(weights: str, depth: int = len(WIDTHS)) -> ImageFeatures:
    """The features after the first block of each level, as DCKD's code takes them (basicsr/archs/vqgan_arch.py,
    Encoder.get_feas): (N, 128, H, W), (N, 128, H / 2, W / 2), (N, 256, H / 4, W / 4), ..., on the CPU.

    Args:
        weights: path or address of the checkpoint of an f16 VQGAN.
        depth: the number of features, 1 to 5.

    Raises:
        UserError: the file cannot be downloaded or read, or is not of such a VQGAN.
    """
    with torch.device('meta'):
        encoder = VQGANEncoder(depth)
    accepted = 'vqgan_imagenet_f16_1024 or vqgan_imagenet_f16_16384 of taming-transformers'
    load_part(encoder, 'encoder.', weights, 'train.distill_opt.vqgan_weights', accepted)
    return ImageFeatures(encoder.slices())
