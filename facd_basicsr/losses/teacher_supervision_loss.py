"""The teacher's output as a second ground truth, and nothing else."""

from dataclasses import dataclass

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor

from facd_basicsr.losses.base import DistillLoss, DistillState, option
from facd_basicsr.losses.image import image_loss


def supervision(state: DistillState) -> Tensor:
    """1/2 |SR^S - GT| + 1/2 |SR^S - SR^T|: equation (2) with alpha = 1, and FAKD's DS and TS (alpha 0.5 there).

    Returns:
        Scalar, in the images' units. No gradient reaches the teacher.
    """
    teacher = state.teacher.detach()
    return image_loss(state.student, teacher, state.gt, torch.ones(len(state.gt), device=state.gt.device))


@LOSS_REGISTRY.register()
@dataclass(eq=False)
class TeacherSupervisionLoss(DistillLoss):
    """Teacher supervision alone: what the methods on features add to (second row of Table 7)."""

    reads_features = False

    img_range: float = option(255.0, 'factor on the images, as in FACDLoss', above=0)

    def forward(self, state: DistillState) -> dict[str, Tensor]:
        """``l_sr``."""
        return {'l_sr': self.img_range * supervision(state)}
