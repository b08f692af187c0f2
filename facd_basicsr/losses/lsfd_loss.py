"""LSFD: local feature distillation that attends to where student and teacher differ."""

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from facd_basicsr.losses.base import DistillState, sum_of, weighted_taps
from facd_basicsr.losses.fitnet_loss import hint_loss
from facd_basicsr.losses.lfd_loss import LFDLoss
from facd_basicsr.losses.pairwise import at_least_float32
from facd_basicsr.losses.teacher_supervision_loss import supervision


def attention(student: Tensor, teacher: Tensor, size: tuple[int, int], eps: float = 1e-8) -> Tensor:
    """A_i(p): how far SR_i^S is from SR_i^T around p, over its mean in sample i.

    Args:
        student, teacher: SR^S and SR^T, (N, C, H * scale, W * scale). No gradient flows to either.
        size: height and width of the feature, (H, W).
        eps: makes A 1 everywhere where the images are equal.

    Returns:
        (N, 1, H, W), not negative, with mean 1 in each sample.
    """
    with torch.no_grad():
        difference = (at_least_float32(student) - at_least_float32(teacher)).abs().mean(1, keepdim=True)
        difference = F.adaptive_avg_pool2d(difference, size)  # (N, 1, H * scale, W * scale) -> (N, 1, H, W)
        return (difference + eps) / (difference.mean((2, 3), keepdim=True) + eps)


@LOSS_REGISTRY.register()
class LSFDLoss(LFDLoss):
    """Local-selective feature distillation (Park and Kwak, arXiv 2111.10988): rows LSFD of Table 2.

    No code of its authors is known. Their abstract says that LSFD adds to local feature distillation (LFDLoss) "a
    teacher-student-difference-based soft feature attention method that selectively focuses on specific pixel
    locations"; the FACD paper (Sections 1 and 2.2) says the same, and that the distance is L1.

    Inferred is the attention's formula: the difference is that of the two networks' outputs, since it is of pixels; it
    is averaged over the pixels that a position of the feature stands for, soft in that it weights a position in
    proportion and drops none, of mean 1 in each sample so that LFD's lambda holds, and without gradient. What LFDLoss
    infers, this infers too.
    """

    def forward(self, state: DistillState) -> dict[str, Tensor]:
        """``l_sr``, teacher supervision, and ``l_lsfd``, mean A |r(F^S) - F^T| of all taps, weighted by lambda."""
        l_lsfd = sum_of(
            w_j * hint_loss(s, t, weight=attention(state.student, state.teacher, (t.shape[2], t.shape[3])))
            for w_j, s, t in weighted_taps(self.layer_weights, state)
        )
        return {'l_sr': self.img_range * supervision(state), 'l_lsfd': self.lambda_ * l_lsfd}
