"""The deep regressor DR of equation (3)."""

from itertools import pairwise
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from facd_basicsr.errors import UserError


class _PReLU(torch.autograd.Function):
    """PReLU of one slope whose backward is four passes over the input; torch's takes 4 to 7 times as long on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.ops.aten.leaky_relu(x, *weight.tolist())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        grad_weight = (x.clamp(max=0) * grad).sum(dtype=weight.dtype)
        return torch.ops.aten.leaky_relu_backward(grad, x, *weight.tolist(), False), grad_weight.reshape_as(weight)


class PReLU(nn.PReLU):
    """As torch's with its default of one slope, and faster to train on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        one_slope = self.weight.numel() == 1
        if x.device.type != 'cpu' or torch.compiler.is_compiling() or not one_slope:  # a GPU would be waited for
            return super().forward(x)
        return _PReLU.apply(x, self.weight)


@ARCH_REGISTRY.register()
class DeepRegressor(nn.Sequential):
    """Maps a student's feature map to the teacher's width: 1x1 convolutions with PReLU between them.

    The paper (Section 3.2) says five 1x1 convolutions with PReLU activation, and no more. Read here as PReLU
    between the convolutions only (features are signed, so none after the last), with PyTorch's single learned
    slope, and the teacher's width as the hidden width.

    Input (N, num_in_ch, H, W); output (N, num_out_ch, H, W).

    Args:
        num_in_ch: channels of the student's feature.
        num_out_ch: channels of the teacher's feature.
        num_feat: hidden channels; 0 means ``num_out_ch``.
        num_layer: number of convolutions, at least 1.

    Raises:
        UserError: ``num_layer`` is less than 1.
    """

    def __init__(self, num_in_ch: int, num_out_ch: int, num_feat: int = 0, num_layer: int = 5) -> None:
        if num_layer < 1:
            raise UserError(f'network_r.num_layer: {num_layer}; accepted: 1 or more')
        widths = [num_in_ch, *[num_feat or num_out_ch] * (num_layer - 1), num_out_ch]
        layers: list[nn.Module] = []
        for c_in, c_out in pairwise(widths):
            layers += [nn.Conv2d(c_in, c_out, kernel_size=1), PReLU()]
        super().__init__(*layers[:-1])
