"""FACD: equation (4) of the paper, of equations (1) and (2) in image.py and (3) in contrastive.py."""

from collections.abc import Sequence

from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor

from facd_basicsr.errors import UserError
from facd_basicsr.losses.base import (
    REGRESSOR,
    DistillLoss,
    DistillState,
    check_batch,
    check_choice,
    check_not_negative,
    check_positive,
    check_weights,
)
from facd_basicsr.losses.contrastive import NEGATIVES, contrastive_loss
from facd_basicsr.losses.image import image_loss, indicator


def facd_loss(
    state: DistillState,
    lambda_: float = 4.0,
    layer_weights: Sequence[float] = (0.5, 0.3, 0.2),
    img_range: float = 255.0,
    adaptive: bool = True,
    negatives: str = 'upper',
    stop_gradient: bool = False,
    l1_gt: bool = True,
    l1_t: bool = True,
    eps: float = 1e-8,
) -> dict[str, Tensor]:
    """Equation (4), L_SR + lambda * L_FACD, as its two weighted terms. Arguments as in :class:`FACDLoss`.

    Returns:
        ``l_sr`` and ``l_facd`` (weighted by lambda), with gradient; ``alpha``, the share of the batch that is
        distilled, and ``r_1``, ``r_2``, ... (d+ / d- at each tap), without.

    Raises:
        UserError: fewer than two samples, or not one weight per tap.
    """
    check_batch(state, 'FACDLoss')
    check_weights(layer_weights, state)
    student, teacher, gt = state.student, state.teacher.detach(), state.gt
    alpha = indicator(student, teacher, gt, adaptive)  # (N,)
    logs = {'alpha': alpha.mean()}
    l_facd = alpha.new_zeros(())
    taps = zip(layer_weights, state.student_feats, state.teacher_feats)
    for j, (w_j, student_feat, teacher_feat) in enumerate(taps, start=1):
        l_j, logs[f'r_{j}'] = contrastive_loss(student_feat, teacher_feat, alpha, negatives, stop_gradient, eps)
        l_facd = l_facd + w_j * l_j
    l_sr = img_range * image_loss(student, teacher, gt, alpha, l1_gt, l1_t)
    return {'l_sr': l_sr, 'l_facd': lambda_ * l_facd, **logs}


@LOSS_REGISTRY.register()
class FACDLoss(DistillLoss):
    """Feature-based Adaptive Contrastive Distillation, equations (1) to (4), as a module. Has no parameters.

    In an option file ``lambda_`` is written ``lambda``. Every reading of the paper is an option whose default is
    the paper's value, or the reading under which its numbers make sense.

    Args:
        lambda_: weight of L_FACD in equation (4). 4 in Section 4.1.
        layer_weights: w_j of equation (3), one per tap, the shallowest first. [0.5, 0.3, 0.2] in Section 4.1:
            Table 9 (FAU) finds attention on the upper, that is earlier, taps best.
        img_range: factor on the images of equation (2). lambda = 4 belongs to images in [0, 255], the range of the
            lineage the paper compares with (FAKD, EDSR-PyTorch); BasicSR's are in [0, 1]. L_FACD is a ratio and
            does not change with the range, so with 1 it would be about 14 times L_SR instead of about 5 %.
        adaptive: alpha of equation (1). Off, alpha is 1 for every sample and this is the paper's FCD (Table 8).
        negatives: the pairs in equation (3)'s denominator. ``upper``: the K = (N^2 - N) / 2 that Section 3.2
            counts, read as i < k. ``all``: all N^2 - N. ``per_anchor``: for each sample its own N - 1.
        stop_gradient: keep the gradient out of the denominator. Off: the paper says that minimising L_FACD makes
            "the distance of the negative pair farther away", which needs that gradient.
        l1_gt: whether equation (2)'s distance to GT counts (Table 7).
        l1_t: whether its distance to the teacher counts.
        regressor: which taps' student features the model passes through a regressor before this loss sees them.
            ``always``: every one, as equation (3) writes DR(F^S). ``auto``: only where student and teacher
            differ in width. ``never``: none; refused where widths differ.
        eps: guards the denominator where all samples are equal.

    Raises:
        UserError: an option is not one of the values accepted.
    """

    min_batch = 2

    def __init__(
        self,
        lambda_: float = 4.0,
        layer_weights: Sequence[float] = (0.5, 0.3, 0.2),
        img_range: float = 255.0,
        adaptive: bool = True,
        negatives: str = 'upper',
        stop_gradient: bool = False,
        l1_gt: bool = True,
        l1_t: bool = True,
        regressor: str = 'always',
        eps: float = 1e-8,
    ) -> None:
        super().__init__()
        check_choice('negatives', negatives, NEGATIVES)
        check_choice('regressor', regressor, REGRESSOR)
        check_not_negative(lambda_=lambda_, layer_weights=min(layer_weights, default=0), eps=eps)
        check_positive(img_range=img_range)
        if not (l1_gt or l1_t):
            raise UserError('train.distill_opt.l1_gt: false, and l1_t too; accepted: at least one of them true')
        self.lambda_ = lambda_
        self.layer_weights = tuple(layer_weights)
        self.img_range = img_range
        self.adaptive = adaptive
        self.negatives = negatives
        self.stop_gradient = stop_gradient
        self.l1_gt = l1_gt
        self.l1_t = l1_t
        self.regressor = regressor
        self.eps = eps

    def forward(self, state: DistillState) -> dict[str, Tensor]:
        return facd_loss(
            state,
            self.lambda_,
            self.layer_weights,
            self.img_range,
            self.adaptive,
            self.negatives,
            self.stop_gradient,
            self.l1_gt,
            self.l1_t,
            self.eps,
        )
