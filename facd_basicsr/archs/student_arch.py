"""The students of Table 1: BasicSR's EDSR and RCAN with other defaults, as keyword arguments."""

from functools import partialmethod

from basicsr.archs.edsr_arch import EDSR
from basicsr.archs.rcan_arch import RCAN
from basicsr.utils.registry import ARCH_REGISTRY


@ARCH_REGISTRY.register()
class EDSRStudent(EDSR):
    """BasicSR's EDSR with Table 1's student size as defaults: 64 features, 16 residual blocks, 1.5 M parameters.

    Only the defaults differ, so a checkpoint loads strictly in BasicSR's ``EDSR`` and the other way round.

    Input (N, num_in_ch, H, W) in [0, 1]; output (N, num_out_ch, H * upscale, W * upscale), not clamped.
    """

    __init__ = partialmethod(EDSR.__init__, num_in_ch=3, num_out_ch=3, num_feat=64, num_block=16, res_scale=1.0)


@ARCH_REGISTRY.register()
class RCANStudent(RCAN):
    """BasicSR's RCAN with Table 1's student size as defaults: 10 groups of 6 blocks, 64 features, 5.17 M parameters.

    Only the defaults differ, so a checkpoint loads strictly in BasicSR's ``RCAN`` and the other way round.

    Input (N, num_in_ch, H, W) in [0, 1]; output (N, num_out_ch, H * upscale, W * upscale), not clamped.
    """

    __init__ = partialmethod(
        RCAN.__init__, num_in_ch=3, num_out_ch=3, num_feat=64, num_group=10, num_block=6, res_scale=1.0
    )
