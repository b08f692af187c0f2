"""LFD: local feature distillation, features compared position by position."""

from collections.abc import Sequence

from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor

from facd_basicsr.losses.base import (
    REGRESSOR,
    DistillLoss,
    DistillState,
    check_choice,
    check_not_negative,
    check_positive,
    check_weights,
    sum_of,
)
from facd_basicsr.losses.fitnet_loss import hint_loss
from facd_basicsr.losses.teacher_supervision_loss import supervision


def lfd_loss(
    state: DistillState,
    lambda_: float = 1.0,
    layer_weights: Sequence[float] = (1.0, 1.0, 1.0),
    img_range: float = 255.0,
) -> dict[str, Tensor]:
    """Teacher supervision and mean |r(F^S) - F^T| of all taps. Arguments as in :class:`LFDLoss`.

    Returns:
        ``l_sr`` and ``l_lfd`` (weighted by lambda).

    Raises:
        UserError: not one weight per tap.
    """
    check_weights(layer_weights, state)
    taps = zip(layer_weights, state.student_feats, state.teacher_feats)
    l_lfd = sum_of(w_j * hint_loss(student_feat, teacher_feat) for w_j, student_feat, teacher_feat in taps)
    return {'l_sr': img_range * supervision(state), 'l_lfd': lambda_ * l_lfd}


@LOSS_REGISTRY.register()
class LFDLoss(DistillLoss):
    """Local feature distillation, LSFD (Park and Kwak, arXiv 2111.10988) without its attention: rows LFD of Table 2.

    No code of its authors is known. Their abstract says that FitNet-based distillation "suffers in the SISR task" and
    that they "modify the existing FD algorithm to focus on local feature information"; the FACD paper says that its
    distance is L1 (Sections 1 and 2.2), at the three matching points of FAKD (3.2).

    Inferred is the rest. Local: a position of the student's feature answers for the same position of the teacher's
    and no other, so regressors are 1x1 convolutions, and there is none where widths agree. The image loss is teacher
    supervision, as FAKD's; lambda and all weights are 1.

    Args:
        lambda_: weight of the distances, ``lambda`` in an option file. Features are compared in the networks' own
            units: EDSR's and RCAN's are those of images in [0, 255].
        layer_weights: one per tap, the shallowest first.
        img_range: factor on the images, as in FACDLoss.
        regressor: which taps have a regressor: ``always``, ``auto`` (where widths differ) or ``never``.

    Raises:
        UserError: an option is not one of the values accepted.
    """

    def __init__(
        self,
        lambda_: float = 1.0,
        layer_weights: Sequence[float] = (1.0, 1.0, 1.0),
        img_range: float = 255.0,
        regressor: str = 'auto',
    ) -> None:
        super().__init__()
        check_choice('regressor', regressor, REGRESSOR)
        check_not_negative(lambda_=lambda_, layer_weights=min(layer_weights, default=0))
        check_positive(img_range=img_range)
        self.lambda_ = lambda_
        self.layer_weights = tuple(layer_weights)
        self.img_range = img_range
        self.regressor = regressor

    def forward(self, state: DistillState) -> dict[str, Tensor]:
        return lfd_loss(state, self.lambda_, self.layer_weights, self.img_range)
