"""FCD by InfoNCE: the contrast of Table 6, by dot products instead of L1 distances."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from facd_basicsr.losses.base import REGRESSOR, DistillLoss, DistillState, check_batch, option, sum_of, weighted_taps
from facd_basicsr.losses.image import image_loss, indicator
from facd_basicsr.losses.pairwise import at_least_float32, full_precision
from facd_basicsr.runtime.processes import all_gather_samples


def infonce(student_feat: Tensor, teacher_feat: Tensor, alpha: Tensor, temperature: float = 0.07) -> Tensor:
    """mean_i -alpha_i log(exp(s_ii) / sum_k exp(s_ik)), s_ik = cos(DR(F_i^S), F_k^T) / temperature, k over all ranks.

    Args:
        student_feat: DR(F^S), (N, C, H, W).
        teacher_feat: F^T, (N, C, H, W); no gradient flows to it.
        alpha: (N,), gates samples as in equation (3); as there, a rejected one still serves as a negative.
        temperature: see :class:`InfoNCELoss`.

    Returns:
        Scalar; log of the number of samples where all similarities are equal. Its mean over ranks is the value of one
        process.
    """
    with full_precision(student_feat):
        teachers, first = all_gather_samples(at_least_float32(teacher_feat))  # (N', C, H, W)
        s = F.normalize(at_least_float32(student_feat).flatten(1), dim=1)  # (N, D)
        t = F.normalize(teachers.flatten(1), dim=1)  # (N', D)
        similarity = s @ t.T / temperature  # (N, D) x (D, N') -> (N, N')
    own = torch.arange(first, first + len(s), device=s.device)  # (N,): the column of each row's positive
    return (alpha * F.cross_entropy(similarity, own, reduction='none')).mean()


@LOSS_REGISTRY.register()
@dataclass(eq=False)
class InfoNCELoss(DistillLoss):
    """FCD with InfoNCE instead of equation (3), the baseline of Table 6.

    The paper says that InfoNCE "uses a dot-product operation as a similarity measure" and no more. Inferred: features
    are flattened and of unit length, as wherever InfoNCE is used (dot products of features in [0, 255] would saturate
    the softmax), taps are weighted as in equation (3), lambda is the same, and the temperature is CRD's 0.07, the
    paper's own example of contrastive distillation.
    """

    min_batch = 2

    lambda_: float = option(4.0, 'as in FACDLoss', least=0)
    layer_weights: Sequence[float] = option((0.5, 0.3, 0.2), 'as in FACDLoss', least=0)
    img_range: float = option(255.0, 'as in FACDLoss', above=0)
    adaptive: bool = option(False, 'alpha of equation (1). Table 6 compares FCD, so it is off')
    temperature: float = option(0.07, 'of the softmax', above=0)
    regressor: str = option('always', 'as in FACDLoss', choices=REGRESSOR)

    def forward(self, state: DistillState) -> dict[str, Tensor]:
        """L_SR and lambda times InfoNCE over the taps.

        Returns:
            ``l_sr`` and ``l_infonce`` (weighted by lambda), and ``alpha`` without gradient.

        Raises:
            UserError: fewer than two samples, or not one weight per tap.
        """
        check_batch(state, 'InfoNCELoss')
        taps = weighted_taps(self.layer_weights, state)
        student, teacher, gt = state.student, state.teacher.detach(), state.gt
        alpha = indicator(student, teacher, gt, self.adaptive)  # (N,)
        l_nce = sum_of(w_j * infonce(s, t, alpha, self.temperature) for w_j, s, t in taps)
        l_sr = self.img_range * image_loss(student, teacher, gt, alpha)
        return {'l_sr': l_sr, 'l_infonce': self.lambda_ * l_nce, 'alpha': alpha.mean()}
