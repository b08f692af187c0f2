"""CSD: the contrast between images as a VGG sees them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from facd_basicsr.errors import UserError
from facd_basicsr.losses.base import DistillLoss, DistillState, check_batch, option, sum_of
from facd_basicsr.losses.pairwise import at_least_float32, pairwise_l1, sample_l1
from facd_basicsr.losses.vgg import ENDS, VGG19_WEIGHTS, VGGFeatures, load_vgg
from facd_basicsr.runtime.processes import all_gather_samples, ranks, total


def perceptual_contrast(
    student_feat: Tensor, teacher_feat: Tensor, negative_feat: Tensor, eps: float = 1e-7
) -> tuple[Tensor, Tensor]:
    """mean_i d(S_i, T_i) / (mean_i sum_k d(S_i, Neg_k) + eps) of one layer, d the mean absolute difference.

    Means run over the samples of all ranks; every sample has the same negatives.

    Args:
        student_feat, teacher_feat: (N, C, H, W).
        negative_feat: (K, C, H, W), the same on every rank.
        eps: guards the division.

    Returns:
        The ratio, a scalar, and r = mean positive distance / mean negative distance, without gradient.
    """
    d_pos = sample_l1(student_feat, teacher_feat)  # (N,)
    d_neg = pairwise_l1(student_feat, negative_feat)  # (N, C, H, W) x (K, C, H, W) -> (N, K)
    d_pos, d_neg = total(torch.stack([d_pos.sum(), d_neg.sum()])) / (len(d_pos) * ranks())
    return d_pos / (d_neg + eps), (d_pos / (d_neg / len(negative_feat) + eps)).detach()


@LOSS_REGISTRY.register()
@dataclass(eq=False)
class CSDLoss(DistillLoss):
    """Contrastive loss of CSD (Wang et al., IJCAI 2021): student to teacher, away from bicubic images, in VGG-19.

    As its authors' code has it (Booooooooooo/CSD, PyTorch version: loss/contrast_loss.py L1_forward,
    trainer/slim_contrast_trainer.py and README.md: ``--neg_num 10 --contra_lambda 200``), on images in [0, 255] that
    are given to the VGG as they are, without ImageNet's mean and deviation: |S - GT| plus 200 times the sum over
    layers of weight * mean |S - T| / (mean sum_k |S - Neg_k| + 1e-7). The negatives, shared by the whole batch, are
    the first ``num_negatives`` LQ of the batch, over all ranks, upsampled by torch's bicubic interpolation; so a
    sample's own LQ may be among them, as in that code.

    Left out is what is not the loss: there student and teacher are one network of which the student has a share of
    the channels, and the teacher is trained along. Here it is frozen, like every teacher.
    """

    min_batch = 2
    reads_features = False

    lambda_: float = option(200.0, 'weight of the contrast', least=0)
    layer_weights: Sequence[float] = option(
        (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0),
        'of relu1_1, relu2_1, relu3_1, relu4_1 and relu5_1; fewer leave the deeper ones out',
        least=0,
    )
    img_range: float = option(255.0, 'factor on the images', above=0)
    num_negatives: int = option(10, 'K, the negatives of a batch, or as many as it has samples', above=0)
    vgg_weights: str = option(VGG19_WEIGHTS, "path or address of torchvision's `vgg19` checkpoint (548 MB)")
    eps: float = option(1e-7, 'guards the division where all images are equal', least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= len(self.layer_weights) <= len(ENDS):
            raise UserError(
                f'train.distill_opt.layer_weights: {len(self.layer_weights)} weights; accepted: 1 to {len(ENDS)}, one '
                'per layer of the VGG'
            )
        self.vgg: VGGFeatures | None = None  # from prepare()

    def prepare(self) -> 'CSDLoss':
        """Loads the VGG, and downloads it when it is asked for first.

        Raises:
            UserError: it cannot be downloaded, or its file is another network's.
        """
        self.vgg = load_vgg(self.vgg_weights, len(self.layer_weights))
        return self

    def forward(self, state: DistillState) -> dict[str, Tensor]:
        """L1 to GT and lambda times the contrast over the layers of the VGG.

        Returns:
            ``l_sr`` and ``l_csd`` (weighted by lambda); ``r_1``, ``r_2``, ... (d+ / d- at each layer), without.

        Raises:
            UserError: fewer than two samples, or the images are not ones for a VGG.
        """
        if self.vgg is None:
            raise RuntimeError('CSDLoss: prepare() loads its VGG, and comes before the first forward')
        channels, *size = state.student.shape[1:]
        least = 2 ** (len(self.layer_weights) - 1)  # each layer but the first has half the height and width
        if channels != 3:
            raise UserError(f'network_g: gives {channels} channels; accepted: 3, for the VGG of CSDLoss')
        if min(size) < least:
            raise UserError(f'datasets.train.gt_size: {min(size)}; accepted: {least} or more, for the VGG of CSDLoss')
        check_batch(state, 'CSDLoss')
        lq = at_least_float32(all_gather_samples(state.lq)[0][: self.num_negatives])  # (K, C, h, w)
        with torch.no_grad():
            negatives = F.interpolate(lq, size=state.student.shape[2:], mode='bicubic')  # (K, C, H, W), not clamped
            teacher_feats, negative_feats = (
                self.vgg(self.img_range * at_least_float32(images)) for images in (state.teacher, negatives)
            )
        student_feats = self.vgg(self.img_range * at_least_float32(state.student))
        terms: list[Tensor] = []
        logs: dict[str, Tensor] = {}
        layers = zip(self.layer_weights, student_feats, teacher_feats, negative_feats)
        for j, (w_j, student_feat, teacher_feat, negative_feat) in enumerate(layers, start=1):
            l_j, logs[f'r_{j}'] = perceptual_contrast(student_feat, teacher_feat, negative_feat, self.eps)
            terms.append(w_j * l_j)
        l_sr = self.img_range * sample_l1(state.student, state.gt).mean()
        return {'l_sr': l_sr, 'l_csd': self.lambda_ * sum_of(terms), **logs}
