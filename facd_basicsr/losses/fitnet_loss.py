"""FitNet: hints, features compared one to one through a regressor."""

from collections.abc import Sequence
from dataclasses import dataclass

from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor

from facd_basicsr.losses.base import REGRESSOR, DistillLoss, DistillState, option, sum_of, weighted_taps
from facd_basicsr.losses.pairwise import at_least_float32
from facd_basicsr.losses.teacher_supervision_loss import supervision

DISTANCES = ('l1', 'l2')


def hint_loss(student_feat: Tensor, teacher_feat: Tensor, distance: str = 'l1', weight: Tensor | None = None) -> Tensor:
    """mean |A (r(F^S) - F^T)| (``l1``), or half its square (``l2``, FitNets' own).

    Args:
        student_feat: r(F^S), (N, C, H, W).
        teacher_feat: F^T, (N, C, H, W); no gradient flows to it.
        distance: ``l1`` or ``l2``.
        weight: A, such as LSFD's attention, (N, 1, H, W), not negative; None: 1.

    Returns:
        Scalar.
    """
    difference = at_least_float32(student_feat) - at_least_float32(teacher_feat.detach())
    if weight is not None:
        difference = weight * difference
    return difference.abs().mean() if distance == 'l1' else difference.square().mean() / 2


@LOSS_REGISTRY.register()
@dataclass(eq=False)
class FitNetLoss(DistillLoss):
    """FitNet (Romero et al., ICLR 2015) for super-resolution: hints through a 1x1 regressor, and teacher supervision.

    What the FACD paper says of it (Section 2.2): distillation in both image and feature domains, through "a simple
    regressor which is composed of 1x1 convolution layers", by L1. Inferred: the hints are given together with the
    image loss, not in a stage before it, at FAKD's three matching points, all weights 1. ``network_r`` is
    ``{type: DeepRegressor, num_layer: 1}``: one 1x1 convolution.
    """

    lambda_: float = option(
        1.0,
        "weight of the distances. Features are compared in the networks' own units: EDSR's and RCAN's are those of "
        'images in [0, 255]',
        least=0,
    )
    layer_weights: Sequence[float] = option((1.0, 1.0, 1.0), 'one per tap, the shallowest first', least=0)
    img_range: float = option(255.0, 'factor on the images, as in FACDLoss', above=0)
    distance: str = option(
        'l1', "`l1`, as the papers on super-resolution have it, or `l2`, the original's", choices=DISTANCES
    )
    regressor: str = option(
        'always', 'which taps have a regressor: `always`, `auto` (where widths differ) or `never`', choices=REGRESSOR
    )

    def forward(self, state: DistillState) -> dict[str, Tensor]:
        """``l_sr``, teacher supervision, and ``l_fitnet``, the hints of all taps, weighted by lambda."""
        taps = weighted_taps(self.layer_weights, state)
        hints = sum_of(w_j * hint_loss(s, t, self.distance) for w_j, s, t in taps)
        return {'l_sr': self.img_range * supervision(state), 'l_fitnet': self.lambda_ * hints}
