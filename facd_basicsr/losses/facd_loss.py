"""FACD: equations (1) to (4) of the paper. One function per equation, then a thin module."""

from collections.abc import Sequence

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor

from facd_basicsr.errors import UserError
from facd_basicsr.losses.cross_rank import all_samples, ranks, total
from facd_basicsr.losses.distill_loss import DistillLoss
from facd_basicsr.losses.distill_state import DistillState
from facd_basicsr.losses.pairwise import pairwise_l1, sample_l1

NEGATIVES = ('upper', 'all', 'per_anchor')
REGRESSOR = ('always', 'auto', 'never')


def teacher_is_right(student: Tensor, teacher: Tensor, gt: Tensor) -> Tensor:
    """Equation (1): alpha_i = 0 where the student is already closer to GT than the teacher, else 1.

    The sums run over unclamped outputs, carry no gradient, and a tie gives 1, as the paper's "else" says.

    Args:
        student, teacher, gt: SR^S, SR^T and GT, (N, C, H, W).

    Returns:
        (N,) of 0. and 1.
    """
    with torch.no_grad():
        student_error, teacher_error = sample_l1(student, gt), sample_l1(teacher, gt)  # (N,), (N,)
        return (student_error >= teacher_error).to(student_error.dtype)


def image_loss(student: Tensor, teacher: Tensor, gt: Tensor, alpha: Tensor) -> Tensor:
    """Equation (2): L_SR = 1/2N sum_i (2 - alpha_i) |SR_i^S - GT_i| + alpha_i |SR_i^S - SR_i^T|.

    The sum covers both terms, and the norms are means over pixels and channels: with sums L_SR would be about
    10^4 times L_FACD, and lambda = 4 would mean nothing.

    Args:
        student, teacher, gt: (N, C, H, W).
        alpha: (N,).

    Returns:
        Scalar, in the images' units.
    """
    to_gt, to_teacher = sample_l1(student, gt), sample_l1(student, teacher)  # (N,), (N,)
    return ((2 - alpha) * to_gt + alpha * to_teacher).mean() / 2


def contrastive_loss(
    student_feat: Tensor,
    teacher_feat: Tensor,
    alpha: Tensor,
    negatives: str = 'upper',
    stop_gradient: bool = False,
    eps: float = 1e-8,
) -> tuple[Tensor, Tensor]:
    """Equation (3) for one tap: sum_i alpha_i d_ii / sum_k d_k, with d the L1 distance between two samples.

    d_ii is the distance of the student's sample i to the teacher's sample i, d_ik (i != k) to another sample of
    the teacher's, taken over the batches of all ranks. In sum form the loss is (N / K) * r when every alpha is 1.

    Args:
        student_feat: DR(F^S), (N, C, H, W).
        teacher_feat: F^T, (N, C, H, W); no gradient flows to it.
        alpha: (N,), gates the positives only: a rejected sample still serves as a negative.
        negatives: ``upper`` (the paper's K = (N^2 - N) / 2 pairs, i < k), ``all`` (N^2 - N pairs) or
            ``per_anchor`` (each sample over its own N - 1 negatives, as in InfoNCE).
        stop_gradient: keep the gradient out of the denominator.
        eps: guards the division where all samples are equal.

    Returns:
        The loss, a scalar, and r = mean positive distance / mean negative distance, without gradient.
    """
    teachers, first = all_samples(teacher_feat)  # (N', C, H, W), N' = samples on all ranks
    d = pairwise_l1(student_feat, teachers)  # (N, C, H, W) x (N', C, H, W) -> (N, N')
    n, n_all = d.shape
    own = torch.arange(first, first + n, device=d.device)[:, None]  # (N, 1): the column of each row's positive
    other = torch.arange(n_all, device=d.device)[None]  # (1, N')
    is_negative = other > own if negatives == 'upper' else other != own  # (N, N')

    d_pos = d.gather(1, own)[:, 0]  # (N,)
    d_neg = (d.detach() if stop_gradient else d) * is_negative  # (N, N')
    sum_pos, sum_neg = total(torch.stack([d_pos.sum(), d_neg.sum()]))
    denominator = d_neg.sum(1) if negatives == 'per_anchor' else sum_neg  # (N,) or scalar
    loss = total((alpha * d_pos / (denominator + eps)).sum())

    pairs = n_all * (n_all - 1) // (2 if negatives == 'upper' else 1)
    r = (sum_pos / n_all) / (sum_neg / pairs + eps)
    return loss, r.detach()


def facd_loss(
    state: DistillState,
    lambda_: float = 4.0,
    layer_weights: Sequence[float] = (0.5, 0.3, 0.2),
    img_range: float = 255.0,
    adaptive: bool = True,
    negatives: str = 'upper',
    stop_gradient: bool = False,
    eps: float = 1e-8,
) -> dict[str, Tensor]:
    """Equation (4), L_SR + lambda * L_FACD, as its two weighted terms. Arguments as in :class:`FACDLoss`.

    Returns:
        ``l_sr`` and ``l_facd`` (weighted by lambda), with gradient; ``alpha``, the share of the batch that is
        distilled, and ``r_1``, ``r_2``, ... (d+ / d- at each tap), without.

    Raises:
        UserError: fewer than two samples, or not one weight per tap.
    """
    n = len(state.gt) * ranks()
    if n < 2:
        raise UserError(
            f'datasets.train.batch_size_per_gpu: FACDLoss got a batch of {n}; accepted: 2 or more over all ranks, '
            'since its negatives are the other samples'
        )
    if not len(layer_weights) == len(state.student_feats) == len(state.teacher_feats):
        raise UserError(
            f'train.distill_opt.layer_weights: {len(layer_weights)} weights for {len(state.student_feats)} taps; '
            'accepted: one weight per tap'
        )

    student, teacher, gt = state.student, state.teacher.detach(), state.gt
    alpha = teacher_is_right(student, teacher, gt)  # (N,)
    if not adaptive:
        alpha = torch.ones_like(alpha)
    logs = {'alpha': alpha.mean()}
    l_facd = alpha.new_zeros(())
    taps = zip(layer_weights, state.student_feats, state.teacher_feats)
    for j, (w_j, student_feat, teacher_feat) in enumerate(taps, start=1):
        l_j, logs[f'r_{j}'] = contrastive_loss(student_feat, teacher_feat, alpha, negatives, stop_gradient, eps)
        l_facd = l_facd + w_j * l_j
    l_sr = img_range * image_loss(student, teacher, gt, alpha)
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
        regressor: str = 'always',
        eps: float = 1e-8,
    ) -> None:
        super().__init__()
        for key, value, accepted in (('negatives', negatives, NEGATIVES), ('regressor', regressor, REGRESSOR)):
            if value not in accepted:
                raise UserError(f'train.distill_opt.{key}: {value!r}; accepted: {", ".join(accepted)}')
        for key, value in (('lambda', lambda_), ('layer_weights', min(layer_weights, default=0)), ('eps', eps)):
            if value < 0:
                raise UserError(f'train.distill_opt.{key}: {value}; accepted: 0 or more')
        if img_range <= 0:
            raise UserError(f'train.distill_opt.img_range: {img_range}; accepted: more than 0')
        self.lambda_ = lambda_
        self.layer_weights = tuple(layer_weights)
        self.img_range = img_range
        self.adaptive = adaptive
        self.negatives = negatives
        self.stop_gradient = stop_gradient
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
            self.eps,
        )
