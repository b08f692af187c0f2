"""The teacher's output as a second ground truth, and nothing else."""

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor

from facd_basicsr.losses.base import DistillLoss, DistillState, check_positive
from facd_basicsr.losses.image import image_loss


def supervision(state: DistillState) -> Tensor:
    """1/2 |SR^S - GT| + 1/2 |SR^S - SR^T|: equation (2) with alpha = 1, and FAKD's DS and TS (alpha 0.5 there).

    Returns:
        Scalar, in the images' units. No gradient reaches the teacher.
    """
    teacher = state.teacher.detach()
    return image_loss(state.student, teacher, state.gt, torch.ones(len(state.gt), device=state.gt.device))


@LOSS_REGISTRY.register()
class TeacherSupervisionLoss(DistillLoss):
    """Teacher supervision alone: what the methods on features add to (second row of Table 7).

    Gives ``l_sr``.

    Args:
        img_range: factor on the images, as in FACDLoss.

    Raises:
        UserError: an option is not one of the values accepted.
    """

    reads_features = False

    def __init__(self, img_range: float = 255.0) -> None:
        super().__init__()
        check_positive(img_range=img_range)
        self.img_range = img_range

    def forward(self, state: DistillState) -> dict[str, Tensor]:
        return {'l_sr': self.img_range * supervision(state)}
