"""EDSR at the student's size of Table 1."""

from collections.abc import Sequence

from basicsr.archs.edsr_arch import EDSR
from basicsr.archs.rcan_arch import RCAN
from basicsr.utils.registry import ARCH_REGISTRY


@ARCH_REGISTRY.register()
class EDSRStudent(EDSR):
    """BasicSR's EDSR with Table 1's student size as defaults: 64 features, 16 residual blocks, 1.5 M parameters.

    Only the defaults differ, so a checkpoint loads strictly in BasicSR's ``EDSR`` and the other way round.

    Input (N, num_in_ch, H, W) in [0, 1]; output (N, num_out_ch, H * upscale, W * upscale), not clamped.

    Args:
        num_in_ch: channels of the input.
        num_out_ch: channels of the output.
        num_feat: channels of the features.
        num_block: residual blocks.
        upscale: 3 or a power of 2.
        res_scale: factor on each block's residual.
        img_range: the network works on inputs times this.
        rgb_mean: mean of the training images (DIV2K's), subtracted inside the network.
    """

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 64,
        num_block: int = 16,
        upscale: int = 4,
        res_scale: float = 1.0,
        img_range: float = 255.0,
        rgb_mean: Sequence[float] = (0.4488, 0.4371, 0.4040),
    ) -> None:
        super().__init__(num_in_ch, num_out_ch, num_feat, num_block, upscale, res_scale, img_range, rgb_mean)


@ARCH_REGISTRY.register()
class RCANStudent(RCAN):
    """BasicSR's RCAN with Table 1's student size as defaults: 10 groups of 6 blocks, 64 features, 5.17 M parameters.

    Only the defaults differ, so a checkpoint loads strictly in BasicSR's ``RCAN`` and the other way round.

    Input (N, num_in_ch, H, W) in [0, 1]; output (N, num_out_ch, H * upscale, W * upscale), not clamped.

    Args:
        num_in_ch: channels of the input.
        num_out_ch: channels of the output.
        num_feat: channels of the features.
        num_group: residual groups.
        num_block: residual channel attention blocks in each group.
        squeeze_factor: channels over hidden channels in channel attention.
        upscale: 3 or a power of 2.
        res_scale: factor on each block's residual.
        img_range: the network works on inputs times this.
        rgb_mean: mean of the training images (DIV2K's), subtracted inside the network.
    """

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 64,
        num_group: int = 10,
        num_block: int = 6,
        squeeze_factor: int = 16,
        upscale: int = 4,
        res_scale: float = 1.0,
        img_range: float = 255.0,
        rgb_mean: Sequence[float] = (0.4488, 0.4371, 0.4040),
    ) -> None:
        super().__init__(
            num_in_ch,
            num_out_ch,
            num_feat,
            num_group,
            num_block,
            squeeze_factor,
            upscale,
            res_scale,
            img_range,
            rgb_mean,
        )
