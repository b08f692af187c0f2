"""LFD: local feature distillation, features compared position by position."""

from collections.abc import Sequence
from dataclasses import dataclass

from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor

from facd_basicsr.losses.base import REGRESSOR, DistillLoss, DistillState, option, sum_of, weighted_taps
from facd_basicsr.losses.fitnet_loss import hint_loss
from facd_basicsr.losses.teacher_supervision_loss import supervision


@LOSS_REGISTRY.register()
@dataclass(eq=False)
class LFDLoss(DistillLoss):
    """Local feature distillation, LSFD (Park and Kwak, arXiv 2111.10988) without its attention: rows LFD of Table 2.

    No code of its authors is known. Their abstract says that FitNet-based distillation "suffers in the SISR task" and
    that they "modify the existing FD algorithm to focus on local feature information"; the FACD paper says that its
    distance is L1 (Sections 1 and 2.2), at the three matching points of FAKD (3.2).

    Inferred is the rest. Local: a position of the student's feature answers for the same position of the teacher's
    and no other, so regressors are 1x1 convolutions, and there is none where widths agree. The image loss is teacher
    supervision, as FAKD's; lambda and all weights are 1.
    """

    lambda_: float = option(1.0, 'as in FitNetLoss', least=0)
    layer_weights: Sequence[float] = option((1.0, 1.0, 1.0), 'as in FitNetLoss', least=0)
    img_range: float = option(255.0, 'factor on the images, as in FACDLoss', above=0)
    regressor: str = option('auto', 'as in FitNetLoss', choices=REGRESSOR)

    def forward(self, state: DistillState) -> dict[str, Tensor]:
        """``l_sr``, teacher supervision, and ``l_lfd``, mean |r(F^S) - F^T| of all taps, weighted by lambda."""
        l_lfd = sum_of(w_j * hint_loss(s, t) for w_j, s, t in weighted_taps(self.layer_weights, state))
        return {'l_sr': self.img_range * supervision(state), 'l_lfd': self.lambda_ * l_lfd}
