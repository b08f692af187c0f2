"""IACD: FACD's contrast in the image domain (Table 5)."""

from dataclasses import dataclass

from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor

from facd_basicsr.losses.base import DistillLoss, DistillState, check_batch, option
from facd_basicsr.losses.contrastive import NEGATIVES, NEGATIVES_FROM, contrastive_loss
from facd_basicsr.losses.image import image_loss, indicator


@LOSS_REGISTRY.register()
@dataclass(eq=False)
class IACDLoss(DistillLoss):
    """Image-based adaptive contrastive distillation, the baseline of Table 5.

    "The composition of contrastive loss such as the formation of the equation and the decision mechanism of positive
    and negative pairs is the same except for the applied domain": a sample's positive is the teacher's output for it,
    its negatives the teacher's outputs for others. No regressor, and one term in the place of three taps', whose
    weights sum to one as FACD's do. Inferred: lambda is the same.
    """

    min_batch = 2
    reads_features = False

    lambda_: float = option(4.0, 'as in FACDLoss', least=0)
    img_range: float = option(255.0, 'as in FACDLoss', above=0)
    adaptive: bool = option(True, 'as in FACDLoss')
    negatives: str = option('upper', 'as in FACDLoss', choices=NEGATIVES)
    stop_gradient: bool = option(False, 'as in FACDLoss')
    eps: float = option(1e-8, 'as in FACDLoss', least=0)
    negatives_from: str = option('teacher', 'as in FACDLoss', choices=NEGATIVES_FROM)

    def forward(self, state: DistillState) -> dict[str, Tensor]:
        """Equation (4) with SR^S and SR^T in the place of features.

        Returns:
            ``l_sr`` and ``l_iacd`` (weighted by lambda); ``alpha`` and ``r`` (d+ / d-), without gradient.

        Raises:
            UserError: fewer than two samples.
        """
        check_batch(state, 'IACDLoss')
        student, teacher, gt = state.student, state.teacher.detach(), state.gt
        alpha = indicator(student, teacher, gt, self.adaptive)  # (N,)
        l_iacd, r = contrastive_loss(
            student, teacher, alpha, self.negatives, self.stop_gradient, self.eps, self.negatives_from
        )
        l_sr = self.img_range * image_loss(student, teacher, gt, alpha)
        return {'l_sr': l_sr, 'l_iacd': self.lambda_ * l_iacd, 'alpha': alpha.mean(), 'r': r}
