"""FitNet: hints, features compared one to one through a regressor."""

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
from facd_basicsr.losses.pairwise import at_least_float32
from facd_basicsr.losses.teacher_supervision_loss import supervision

DISTANCES = ('l1', 'l2')


def hint_loss(student_feat: Tensor, teacher_feat: Tensor, distance: str = 'l1') -> Tensor:
    """mean |r(F^S) - F^T| (``l1``), or half its square (``l2``, FitNets' own).

    Args:
        student_feat: r(F^S), (N, C, H, W).
        teacher_feat: F^T, (N, C, H, W); no gradient flows to it.
        distance: ``l1`` or ``l2``.

    Returns:
        Scalar.
    """
    difference = at_least_float32(student_feat) - at_least_float32(teacher_feat.detach())
    return difference.abs().mean() if distance == 'l1' else difference.square().mean() / 2


def fitnet_loss(
    state: DistillState,
    lambda_: float = 1.0,
    layer_weights: Sequence[float] = (1.0, 1.0, 1.0),
    img_range: float = 255.0,
    distance: str = 'l1',
) -> dict[str, Tensor]:
    """Teacher supervision and the hints of all taps. Arguments as in :class:`FitNetLoss`.

    Returns:
        ``l_sr`` and ``l_fitnet`` (weighted by lambda).

    Raises:
        UserError: not one weight per tap.
    """
    check_weights(layer_weights, state)
    taps = zip(layer_weights, state.student_feats, state.teacher_feats)
    hints = sum_of(w_j * hint_loss(student_feat, teacher_feat, distance) for w_j, student_feat, teacher_feat in taps)
    return {'l_sr': img_range * supervision(state), 'l_fitnet': lambda_ * hints}


@LOSS_REGISTRY.register()
class FitNetLoss(DistillLoss):
    """FitNet (Romero et al., ICLR 2015) for super-resolution: hints through a 1x1 regressor, and teacher supervision.

    What the FACD paper says of it (Section 2.2): distillation in both image and feature domains, through "a simple
    regressor which is composed of 1x1 convolution layers", by L1. Inferred: the hints are given together with the
    image loss, not in a stage before it, at FAKD's three matching points, all weights 1. ``network_r`` is
    ``{type: DeepRegressor, num_layer: 1}``: one 1x1 convolution.

    Args:
        lambda_: weight of the hints, ``lambda`` in an option file. Features are compared in the networks' own units:
            EDSR's and RCAN's are those of images in [0, 255].
        layer_weights: one per tap, the shallowest first.
        img_range: factor on the images, as in FACDLoss.
        distance: ``l1``, as the papers on super-resolution have it, or ``l2``, the original's.
        regressor: which taps have a regressor: ``always``, ``auto`` (where widths differ) or ``never``.

    Raises:
        UserError: an option is not one of the values accepted.
    """

    def __init__(
        self,
        lambda_: float = 1.0,
        layer_weights: Sequence[float] = (1.0, 1.0, 1.0),
        img_range: float = 255.0,
        distance: str = 'l1',
        regressor: str = 'always',
    ) -> None:
        super().__init__()
        check_choice('distance', distance, DISTANCES)
        check_choice('regressor', regressor, REGRESSOR)
        check_not_negative(lambda_=lambda_, layer_weights=min(layer_weights, default=0))
        check_positive(img_range=img_range)
        self.lambda_ = lambda_
        self.layer_weights = tuple(layer_weights)
        self.img_range = img_range
        self.distance = distance
        self.regressor = regressor

    def forward(self, state: DistillState) -> dict[str, Tensor]:
        return fitnet_loss(state, self.lambda_, self.layer_weights, self.img_range, self.distance)
