"""FAKD: spatial affinity between the positions of a feature map, HW x HW, without storing it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor
from torch.autograd.function import once_differentiable

from facd_basicsr.losses.base import DistillLoss, DistillState, option, sum_of, weighted_taps
from facd_basicsr.losses.pairwise import at_least_float32, full_precision
from facd_basicsr.losses.teacher_supervision_loss import supervision

AFFINITY_ENTRIES = 2**22  # entries of the affinities, over the batch, that are there at a time: 16 MiB each


class AffinityL1(torch.autograd.Function):
    """mean |S^T S - T^T T| of unit columns, a block of rows at a time, forward and backward in one pass.

    The gradient to S is S (G + G^T) with G = sign(S^T S - T^T T) / (N HW^2), and G is symmetric, so 2 S G: a block of
    G's rows gives a block of the gradient's columns while it is there. What is kept is as large as S.

    Takes s (N, C_s, HW), t (N, C_t, HW) and how many rows there are to a block; no gradient flows to t.
    """

    @staticmethod
    def forward(ctx: Any, s: Tensor, t: Tensor, rows: int) -> Tensor:
        n, _, hw = s.shape
        gradient = torch.empty_like(s) if s.requires_grad else None
        loss = s.new_zeros(())
        for start in range(0, hw, rows):
            block = slice(start, min(start + rows, hw))
            d = s[:, :, block].transpose(1, 2) @ s  # (N, R, C_s) x (N, C_s, HW) -> (N, R, HW)
            d.baddbmm_(t[:, :, block].transpose(1, 2), t, alpha=-1)  # (N, R, C_t) x (N, C_t, HW)
            loss += d.abs().sum()
            if gradient is not None:
                gradient[:, :, block] = s @ d.sign_().transpose(1, 2)  # (N, C_s, HW) x (N, HW, R) -> (N, C_s, R)
        entries = n * hw * hw
        if gradient is not None:
            ctx.save_for_backward(gradient.mul_(2 / entries))
        return loss / entries

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, output_gradient: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return output_gradient * gradient, None, None


def affinity_loss(student_feat: Tensor, teacher_feat: Tensor, eps: float = 1e-8) -> Tensor:
    """mean |SA(F^S) - SA(F^T)|, SA(F) = F^T F of F's columns divided by their length.

    At batch 16 and 48 x 48 SA has 85 million entries, and autograd would keep several of that size for each tap. Here
    :class:`AffinityL1` goes through it by blocks of rows.

    Args:
        student_feat: F^S, (N, C_s, H, W).
        teacher_feat: F^T, (N, C_t, H, W); the widths may differ. No gradient flows to it.
        eps: added to the lengths, as in the newest version of the authors' code (1e-7 in earlier ones).

    Returns:
        Scalar, at most 2. Computed in float32 (float64 for float64 inputs), whatever autocast says.
    """
    with full_precision(student_feat):
        s, t = (_unit_columns(feat, eps) for feat in (student_feat, teacher_feat.detach()))  # (N, C, HW)
        return AffinityL1.apply(s, t, max(1, AFFINITY_ENTRIES // (len(s) * s.shape[2])))


def _unit_columns(feat: Tensor, eps: float) -> Tensor:
    columns = at_least_float32(feat).flatten(2)  # (N, C, HW)
    return columns / (columns.norm(dim=1, keepdim=True) + eps)


@LOSS_REGISTRY.register()
@dataclass(eq=False)
class FAKDLoss(DistillLoss):
    """FAKD (He et al., ICIP 2020): L1 between spatial affinity matrices, and teacher supervision.

    As its authors' code has it (Vincent-Hoo/Knowledge-Distillation-for-Super-resolution, code/loss.py,
    code/feature_transformation.py: spatial_similarity, scripts/train_edsr_SA_x2.sh: ``--alpha 0.5
    --feature_distilation_type 10*SA --features [1,2,3]``): 0.5 |S - GT| + 0.5 |S - T| on images in [0, 255], plus 10
    times the sum over taps of the mean difference of affinities. It needs no regressor: HW x HW has no channels.
    """

    compares_channels = False

    lambda_: float = option(10.0, 'weight of the affinities', least=0)
    layer_weights: Sequence[float] = option((1.0, 1.0, 1.0), 'one per tap, the shallowest first', least=0)
    img_range: float = option(255.0, 'factor on the images, as in FACDLoss', above=0)

    def forward(self, state: DistillState) -> dict[str, Tensor]:
        """``l_sr``, teacher supervision, and ``l_fakd``, the affinities of all taps, weighted by lambda."""
        l_sa = sum_of(w_j * affinity_loss(s, t) for w_j, s, t in weighted_taps(self.layer_weights, state))
        return {'l_sr': self.img_range * supervision(state), 'l_fakd': self.lambda_ * l_sa}
