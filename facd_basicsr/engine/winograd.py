"""3x3 convolutions on the CPU by Winograd's algorithm, which needs a fifth of the multiplications."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

LEAST_CHANNELS = 64  # of the input; below, the transforms cost what they save
USUAL = [(1, 1), (1, 1), (1, 1), 1]  # stride, padding, dilation, groups


def gains(net: nn.Module) -> bool:
    """Whether a network on the CPU has convolutions that :class:`Winograd` takes over, and this processor can."""
    if not getattr(torch, '_nnpack_available', lambda: False)():  # torch promises neither this nor the convolution
        return False
    return any(_fits(module.weight) for module in net.modules() if isinstance(module, nn.Conv2d))


def _fits(weight: torch.Tensor) -> bool:
    on_cpu = weight.device.type == 'cpu' and weight.dtype == torch.float32
    return on_cpu and weight.shape[1] >= LEAST_CHANNELS and weight.shape[2:] == (3, 3)


class Winograd(TorchFunctionMode):
    """A context in which wide 3x3 convolutions go through NNPACK, without gradients.

    In float32 as others: a convolution's outputs differ by 1e-5 of their size, an EDSR's image by 1e-5 of its range.
    """

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.conv2d and not kwargs and list(args[3:]) == USUAL and _fits(args[1]):
            x, weight, bias = args[:3]
            with suppress(RuntimeError):  # NNPACK knows no other error than that it has failed
                return torch._nnpack_spatial_convolution(x, weight, bias, padding=(1, 1))
        return func(*args, **(kwargs or {}))
