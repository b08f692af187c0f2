"""LSFD: local feature distillation that attends to where student and teacher differ."""

from collections.abc import Sequence

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from facd_basicsr.losses.base import DistillState, check_weights, sum_of
from facd_basicsr.losses.lfd_loss import LFDLoss
from facd_basicsr.losses.pairwise import at_least_float32
from facd_basicsr.losses.teacher_supervision_loss import supervision


def attention(student: Tensor, teacher: Tensor, size: Sequence[int], eps: float = 1e-8) -> Tensor:
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
        height, width = size
        difference = F.adaptive_avg_pool2d(difference, (height, width))  # (N, 1, H * scale, W * scale) -> (N, 1, H, W)
        return (difference + eps) / (difference.mean((2, 3), keepdim=True) + eps)


def attended_l1(student_feat: Tensor, teacher_feat: Tensor, weight: Tensor) -> Tensor:
    """mean A |r(F^S) - F^T|.

    Args:
        student_feat: r(F^S), (N, C, H, W).
        teacher_feat: F^T, (N, C, H, W); no gradient flows to it.
        weight: A, (N, 1, H, W).

    Returns:
        Scalar.
    """
    difference = at_least_float32(student_feat) - at_least_float32(teacher_feat.detach())  # (N, C, H, W)
    return (weight * difference.abs()).mean()


def lsfd_loss(
    state: DistillState,
    lambda_: float = 1.0,
    layer_weights: Sequence[float] = (1.0, 1.0, 1.0),
    img_range: float = 255.0,
) -> dict[str, Tensor]:
    """Teacher supervision and mean A |r(F^S) - F^T| of all taps. Arguments as in :class:`LSFDLoss`.

    Returns:
        ``l_sr`` and ``l_lsfd`` (weighted by lambda).

    Raises:
        UserError: not one weight per tap.
    """
    check_weights(layer_weights, state)
    taps = zip(layer_weights, state.student_feats, state.teacher_feats)
    l_lsfd = sum_of(
        w_j * attended_l1(student_feat, teacher_feat, attention(state.student, state.teacher, teacher_feat.shape[2:]))
        for w_j, student_feat, teacher_feat in taps
    )
    return {'l_sr': img_range * supervision(state), 'l_lsfd': lambda_ * l_lsfd}


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

    Args:
        lambda_, layer_weights, img_range, regressor: as in LFDLoss.

    Raises:
        UserError: an option is not one of the values accepted.
    """

    def forward(self, state: DistillState) -> dict[str, Tensor]:
        return lsfd_loss(state, self.lambda_, self.layer_weights, self.img_range)
