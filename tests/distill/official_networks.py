"""EDSR and RCAN as their authors compute them, written from the papers and the published key names, for tests.

Input and output are images in [0, 255], or [0, img_range]. The modules' names give the checkpoints' keys: ``head``,
``body``, ``tail``, ``sub_mean``, ``add_mean``.
"""

import torch
from torch import Tensor, nn


def conv(c_in: int, c_out: int, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, size, padding=size // 2)


def mean_shift(mean: tuple[float, ...], img_range: float, sign: int) -> nn.Conv2d:
    shift = conv(3, 3, 1)
    shift.weight.data = torch.eye(3)[:, :, None, None].clone()
    shift.bias.data = sign * img_range * torch.tensor(mean)
    return shift


def upsampler(scale: int, feats: int) -> nn.Sequential:
    factors = [3] if scale == 3 else [2] * (scale.bit_length() - 1)
    return nn.Sequential(*[m for r in factors for m in (conv(feats, feats * r * r), nn.PixelShuffle(r))])


class Block(nn.Module):
    """x + res_scale * body(x): EDSR's block, RCAN's block and group."""

    def __init__(self, *layers: nn.Module, res_scale: float = 1.0) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers)
        self.res_scale = res_scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.res_scale * self.body(x)


class Attention(nn.Module):
    def __init__(self, feats: int, reduction: int) -> None:
        super().__init__()
        hidden = feats // reduction
        self.conv_du = nn.Sequential(conv(feats, hidden, 1), nn.ReLU(), conv(hidden, feats, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv_du(x.mean((2, 3), keepdim=True))


class Official(nn.Module):
    def __init__(self, blocks: list[nn.Module], feats: int, scale: int, mean: tuple[float, ...], img_range: float):
        super().__init__()
        self.sub_mean, self.add_mean = mean_shift(mean, img_range, -1), mean_shift(mean, img_range, 1)
        self.head = nn.Sequential(conv(3, feats))
        self.body = nn.Sequential(*blocks, conv(feats, feats))
        self.tail = nn.Sequential(upsampler(scale, feats), conv(feats, 3))

    def forward(self, x: Tensor) -> Tensor:
        first = self.head(self.sub_mean(x))
        return self.add_mean(self.tail(first + self.body(first)))


DIV2K = (0.4488, 0.4371, 0.4040)


def official_edsr(feats: int, n: int, scale: int, res_scale: float, mean: tuple[float, ...] = DIV2K) -> Official:
    blocks = [Block(conv(feats, feats), nn.ReLU(), conv(feats, feats), res_scale=res_scale) for _ in range(n)]
    return Official(blocks, feats, scale, mean, 255.0)


def official_rcan(
    feats: int, groups: int, n: int, scale: int, reduction: int = 4, img_range: float = 255.0
) -> Official:
    def group() -> Block:
        blocks = [
            Block(conv(feats, feats), nn.ReLU(), conv(feats, feats), Attention(feats, reduction)) for _ in range(n)
        ]
        return Block(*blocks, conv(feats, feats))

    return Official([group() for _ in range(groups)], feats, scale, DIV2K, img_range)


def with_trained_color_maps(net: Official, drift: float = 0.02) -> Official:
    """As RCAN's own code leaves them: it sets ``requires_grad`` of the module, which does not freeze its parameters."""
    with torch.no_grad():
        for shift in (net.sub_mean, net.add_mean):
            shift.weight += drift * torch.randn_like(shift.weight)
            shift.bias *= 1 + drift * torch.randn_like(shift.bias)
    return net
