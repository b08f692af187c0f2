"""The contrast between samples of a batch: equation (3) of the paper."""

import torch
from torch import Tensor

from facd_basicsr.losses.pairwise import pairwise_l1, pairwise_l1_triu, sample_l1
from facd_basicsr.runtime.processes import all_gather_samples, total

NEGATIVES = ('upper', 'all', 'per_anchor')
NEGATIVES_FROM = ('teacher', 'student')


def contrastive_loss(
    student_feat: Tensor,
    teacher_feat: Tensor,
    alpha: Tensor,
    negatives: str = 'upper',
    stop_gradient: bool = False,
    eps: float = 1e-8,
    negatives_from: str = 'teacher',
) -> tuple[Tensor, Tensor]:
    """Equation (3) for one tap: sum_i alpha_i d_ii / sum_k d_k, with d the L1 distance between two samples.

    d_ii is the distance of the student's sample i to the teacher's sample i, d_ik (i != k) to another sample k of
    ``negatives_from``, taken over the batches of all ranks. In sum form the loss is (N / K) * r when every alpha is 1.

    Args:
        student_feat: DR(F^S), (N, C, H, W).
        teacher_feat: F^T, (N, C, H, W); no gradient flows to it.
        alpha: (N,), gates the positives only: a rejected sample still serves as a negative.
        negatives: ``upper`` (the paper's K = (N^2 - N) / 2 pairs, i < k), ``all`` (N^2 - N pairs) or
            ``per_anchor`` (each sample over its own N - 1 negatives, as in InfoNCE).
        stop_gradient: keep the gradient out of the denominator.
        eps: guards the division where all samples are equal.
        negatives_from: whose feature of another sample is F^Neg: the ``teacher``'s, or the ``student``'s, with gradient
            to both samples.

    Returns:
        The loss, a scalar, and r = mean positive distance / mean negative distance, without gradient.
    """
    from_teacher = negatives_from == 'teacher'
    feat = teacher_feat if from_teacher else student_feat
    others, first = all_gather_samples(feat, with_gradient=not from_teacher)  # (N', C, H, W), N' samples on all ranks
    if negatives == 'upper':  # then no other pairs count
        d = pairwise_l1_triu(student_feat, others, first)  # (N, C, H, W) x (N', C, H, W) -> (N, N')
    else:
        d = pairwise_l1(student_feat, others)
    n, n_all = d.shape
    own = torch.arange(first, first + n, device=d.device)[:, None]  # (N, 1): the column of each row's own sample
    other = torch.arange(n_all, device=d.device)[None]  # (1, N')
    is_negative = other > own if negatives == 'upper' else other != own  # (N, N')

    d_pos = d.gather(1, own)[:, 0] if from_teacher else sample_l1(student_feat, teacher_feat.detach())  # (N,)
    d_neg = (d.detach() if stop_gradient else d) * is_negative  # (N, N')
    sum_pos, sum_neg = total(torch.stack([d_pos.sum(), d_neg.sum()]))
    denominator = d_neg.sum(1) if negatives == 'per_anchor' else sum_neg  # (N,) or scalar
    loss = total((alpha * d_pos / (denominator + eps)).sum())

    pairs = n_all * (n_all - 1) // (2 if negatives == 'upper' else 1)
    r = (sum_pos / n_all) / (sum_neg / pairs + eps)
    return loss, r.detach()
