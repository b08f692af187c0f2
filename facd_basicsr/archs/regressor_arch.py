"""The deep regressor DR of equation (3)."""

from itertools import pairwise

from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from facd_basicsr.errors import UserError


@ARCH_REGISTRY.register()
class DeepRegressor(nn.Sequential):
    """Maps a student's feature map to the teacher's width: 1x1 convolutions with PReLU between them.

    The paper (Section 3.2) says five 1x1 convolutions with PReLU activation, and no more. Read here as PReLU
    between the convolutions only (features are signed, so none after the last, unless ``last_act``), with PyTorch's
    single learned slope, and the teacher's width as the hidden width.

    Input (N, num_in_ch, H, W); output (N, num_out_ch, H, W).

    Args:
        num_in_ch: channels of the student's feature.
        num_out_ch: channels of the teacher's feature.
        num_feat: hidden channels; 0 means ``num_out_ch``.
        num_layer: number of convolutions, at least 1.
        last_act: whether a PReLU follows the last convolution too.

    Raises:
        UserError: ``num_layer`` is less than 1.
    """

    def __init__(
        self, num_in_ch: int, num_out_ch: int, num_feat: int = 0, num_layer: int = 5, last_act: bool = False
    ) -> None:
        if num_layer < 1:
            raise UserError(f'network_r.num_layer: {num_layer}; accepted: 1 or more')
        widths = [num_in_ch, *[num_feat or num_out_ch] * (num_layer - 1), num_out_ch]
        layers: list[nn.Module] = []
        for c_in, c_out in pairwise(widths):
            layers += [nn.Conv2d(c_in, c_out, kernel_size=1), nn.PReLU()]
        super().__init__(*(layers if last_act else layers[:-1]))
