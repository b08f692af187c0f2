"""FACD: equation (4) of the paper, of equations (1) and (2) in image.py and (3) in contrastive.py."""

from collections.abc import Sequence
from dataclasses import dataclass

from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor

from facd_basicsr.errors import UserError
from facd_basicsr.losses.base import REGRESSOR, DistillLoss, DistillState, check_batch, option, weighted_taps
from facd_basicsr.losses.contrastive import NEGATIVES, NEGATIVES_FROM, contrastive_loss
from facd_basicsr.losses.image import image_loss, indicator


@LOSS_REGISTRY.register()
@dataclass(eq=False)
class FACDLoss(DistillLoss):
    """Feature-based Adaptive Contrastive Distillation, equations (1) to (4), as a module. Has no parameters.

    In an option file ``lambda_`` is written ``lambda``; while it is 0 features are not compared. Every reading of the
    paper is an option whose default is the paper's value, or the reading under which its numbers make sense.
    """

    min_batch = 2

    lambda_: float = option(4.0, 'weight of L_FACD in equation (4). 4 in Section 4.1', least=0)
    layer_weights: Sequence[float] = option(
        (0.5, 0.3, 0.2),
        'w_j of equation (3), one per tap, the shallowest first. [0.5, 0.3, 0.2] in Section 4.1: Table 9 (FAU) finds '
        'attention on the upper, that is earlier, taps best',
        least=0,
    )
    img_range: float = option(
        255.0,
        'factor on the images of equation (2). lambda = 4 belongs to images in [0, 255], the range of the lineage the '
        "paper compares with (FAKD, EDSR-PyTorch); BasicSR's are in [0, 1]. L_FACD is a ratio and does not change "
        'with the range, so with 1 it would be about 14 times L_SR instead of about 5 %',
        above=0,
    )
    adaptive: bool = option(
        True, "alpha of equation (1). Off, alpha is 1 for every sample and this is the paper's FCD (Table 8)"
    )
    negatives: str = option(
        'upper',
        "the pairs in equation (3)'s denominator. `upper`: the K = (N^2 - N) / 2 that Section 3.2 counts, read as "
        'i < k. `all`: all N^2 - N. `per_anchor`: for each sample its own N - 1',
        choices=NEGATIVES,
    )
    stop_gradient: bool = option(
        False,
        'keep the gradient out of the denominator. Off: the paper says that minimizing L_FACD makes "the distance of '
        'the negative pair farther away", which needs that gradient',
    )
    l1_gt: bool = option(True, "whether equation (2)'s distance to GT counts (Table 7)")
    l1_t: bool = option(True, 'whether its distance to the teacher counts')
    regressor: str = option(
        'always',
        "which taps' student features the model passes through a regressor before this loss sees them. `always`: every "
        'one, as equation (3) writes DR(F^S). `auto`: only where student and teacher differ in width. `never`: none; '
        'refused where widths differ',
        choices=REGRESSOR,
    )
    eps: float = option(1e-8, 'guards the denominator where all samples are equal', least=0)
    negatives_from: str = option(
        'teacher',
        'whose feature of another sample F^Neg in equation (3) is, which the text does not say. `teacher`: whose the '
        'positive is. `student`: the only reading in which (N^2 - N) / 2 counts every pair, for (i, k) and (k, i) are '
        'then the same; the gradient flows to both samples',
        choices=NEGATIVES_FROM,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.l1_gt or self.l1_t):
            raise UserError('train.distill_opt.l1_gt: false, and l1_t too; accepted: at least one of them true')

    @property
    def weighs_features(self) -> bool:
        return self.lambda_ > 0

    def forward(self, state: DistillState) -> dict[str, Tensor]:
        """Equation (4), L_SR + lambda * L_FACD, as its two weighted terms.

        Returns:
            ``l_sr`` and ``l_facd`` (weighted by lambda), with gradient; ``alpha``, the share of the batch that is
            distilled, and, unless lambda is 0, ``r_1``, ``r_2``, ... (d+ / d- at each tap), without.

        Raises:
            UserError: fewer than two samples, or not one weight per tap.
        """
        check_batch(state, 'FACDLoss')
        taps = weighted_taps(self.layer_weights, state)
        student, teacher, gt = state.student, state.teacher.detach(), state.gt
        alpha = indicator(student, teacher, gt, self.adaptive)  # (N,)
        logs = {'alpha': alpha.mean()}
        l_sr = self.img_range * image_loss(student, teacher, gt, alpha, self.l1_gt, self.l1_t)
        if not self.weighs_features:
            return {'l_sr': l_sr, 'l_facd': 0 * l_sr, **logs}
        l_facd = alpha.new_zeros(())
        for j, (w_j, student_feat, teacher_feat) in enumerate(taps, start=1):
            l_j, logs[f'r_{j}'] = contrastive_loss(
                student_feat, teacher_feat, alpha, self.negatives, self.stop_gradient, self.eps, self.negatives_from
            )
            l_facd = l_facd + w_j * l_j
        return {'l_sr': l_sr, 'l_facd': self.lambda_ * l_facd, **logs}
