"""IACD: FACD's contrast in the image domain (Table 5)."""

from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor

from facd_basicsr.losses.base import (
    DistillLoss,
    DistillState,
    check_batch,
    check_choice,
    check_not_negative,
    check_positive,
)
from facd_basicsr.losses.contrastive import NEGATIVES, contrastive_loss
from facd_basicsr.losses.image import image_loss, indicator


def iacd_loss(
    state: DistillState,
    lambda_: float = 4.0,
    img_range: float = 255.0,
    adaptive: bool = True,
    negatives: str = 'upper',
    stop_gradient: bool = False,
    eps: float = 1e-8,
) -> dict[str, Tensor]:
    """Equation (4) with SR^S and SR^T in the place of features. Arguments as in :class:`IACDLoss`.

    Returns:
        ``l_sr`` and ``l_iacd`` (weighted by lambda); ``alpha`` and ``r`` (d+ / d-), without gradient.

    Raises:
        UserError: fewer than two samples.
    """
    check_batch(state, 'IACDLoss')
    student, teacher, gt = state.student, state.teacher.detach(), state.gt
    alpha = indicator(student, teacher, gt, adaptive)  # (N,)
    l_iacd, r = contrastive_loss(student, teacher, alpha, negatives, stop_gradient, eps)
    l_sr = img_range * image_loss(student, teacher, gt, alpha)
    return {'l_sr': l_sr, 'l_iacd': lambda_ * l_iacd, 'alpha': alpha.mean(), 'r': r}


@LOSS_REGISTRY.register()
class IACDLoss(DistillLoss):
    """Image-based adaptive contrastive distillation, Table 5's rival of FACD.

    "The composition of contrastive loss such as the formation of the equation and the decision mechanism of positive
    and negative pairs is the same except for the applied domain": a sample's positive is the teacher's output for it,
    its negatives the teacher's outputs for others. No regressor, and one term in the place of three taps', whose
    weights sum to one as FACD's do. Inferred: lambda is the same.

    Args:
        lambda_, img_range, adaptive, negatives, stop_gradient, eps: as in FACDLoss.

    Raises:
        UserError: an option is not one of the values accepted.
    """

    min_batch = 2
    reads_features = False

    def __init__(
        self,
        lambda_: float = 4.0,
        img_range: float = 255.0,
        adaptive: bool = True,
        negatives: str = 'upper',
        stop_gradient: bool = False,
        eps: float = 1e-8,
    ) -> None:
        super().__init__()
        check_choice('negatives', negatives, NEGATIVES)
        check_not_negative(lambda_=lambda_, eps=eps)
        check_positive(img_range=img_range)
        self.lambda_ = lambda_
        self.img_range = img_range
        self.adaptive = adaptive
        self.negatives = negatives
        self.stop_gradient = stop_gradient
        self.eps = eps

    def forward(self, state: DistillState) -> dict[str, Tensor]:
        return iacd_loss(
            state, self.lambda_, self.img_range, self.adaptive, self.negatives, self.stop_gradient, self.eps
        )
