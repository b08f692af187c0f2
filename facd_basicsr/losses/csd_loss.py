"""CSD: the contrast between images as a VGG sees them."""

from collections.abc import Callable, Sequence

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from facd_basicsr.errors import UserError
from facd_basicsr.losses.base import DistillLoss, DistillState, check_batch, check_not_negative, check_positive, sum_of
from facd_basicsr.losses.pairwise import at_least_float32, pairwise_l1, sample_l1
from facd_basicsr.losses.vgg import ENDS, VGG19_WEIGHTS, VGGFeatures, load_vgg
from facd_basicsr.runtime.processes import all_gather_samples, ranks, total

LAYER_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)


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


def csd_loss(
    state: DistillState,
    features: Callable[[Tensor], Sequence[Tensor]],
    lambda_: float = 200.0,
    layer_weights: Sequence[float] = LAYER_WEIGHTS,
    img_range: float = 255.0,
    num_negatives: int = 10,
    eps: float = 1e-7,
) -> dict[str, Tensor]:
    """L1 to GT and lambda times the contrast over the layers of a VGG. Other arguments as in :class:`CSDLoss`.

    Args:
        features: the VGG: images (N, C, H, W) in [0, ``img_range``] to one feature per layer, (N, C_j, H_j, W_j).

    Returns:
        ``l_sr`` and ``l_csd`` (weighted by lambda); ``r_1``, ``r_2``, ... (d+ / d- at each layer), without gradient.

    Raises:
        UserError: fewer than two samples.
    """
    check_batch(state, 'CSDLoss')
    lq = at_least_float32(all_gather_samples(state.lq)[0][:num_negatives])  # (K, C, h, w)
    with torch.no_grad():
        negatives = F.interpolate(lq, size=state.student.shape[2:], mode='bicubic')  # (K, C, H, W), not clamped
        teacher_feats, negative_feats = (
            features(img_range * at_least_float32(images)) for images in (state.teacher, negatives)
        )
    student_feats = features(img_range * at_least_float32(state.student))
    terms: list[Tensor] = []
    logs: dict[str, Tensor] = {}
    layers = zip(layer_weights, student_feats, teacher_feats, negative_feats)
    for j, (w_j, student_feat, teacher_feat, negative_feat) in enumerate(layers, start=1):
        l_j, logs[f'r_{j}'] = perceptual_contrast(student_feat, teacher_feat, negative_feat, eps)
        terms.append(w_j * l_j)
    l_sr = img_range * sample_l1(state.student, state.gt).mean()
    return {'l_sr': l_sr, 'l_csd': lambda_ * sum_of(terms), **logs}


@LOSS_REGISTRY.register()
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

    Args:
        lambda_: weight of the contrast, ``lambda`` in an option file.
        layer_weights: of relu1_1, relu2_1, relu3_1, relu4_1 and relu5_1; fewer leave the deeper ones out.
        img_range: factor on the images.
        num_negatives: K, the negatives of a batch, or as many as it has samples.
        vgg_weights: path or address of torchvision's ``vgg19`` checkpoint (548 MB).
        eps: guards the division where all images are equal.

    Raises:
        UserError: an option is not one of the values accepted; in the forward, the images are not ones for a VGG.
    """

    min_batch = 2
    reads_features = False

    def __init__(
        self,
        lambda_: float = 200.0,
        layer_weights: Sequence[float] = LAYER_WEIGHTS,
        img_range: float = 255.0,
        num_negatives: int = 10,
        vgg_weights: str = VGG19_WEIGHTS,
        eps: float = 1e-7,
    ) -> None:
        super().__init__()
        check_not_negative(lambda_=lambda_, layer_weights=min(layer_weights, default=0), eps=eps)
        check_positive(img_range=img_range, num_negatives=num_negatives)
        if not 1 <= len(layer_weights) <= len(ENDS):
            raise UserError(
                f'train.distill_opt.layer_weights: {len(layer_weights)} weights; accepted: 1 to {len(ENDS)}, one per '
                'layer of the VGG'
            )
        self.lambda_ = lambda_
        self.layer_weights = tuple(layer_weights)
        self.img_range = img_range
        self.num_negatives = num_negatives
        self.vgg_weights = vgg_weights
        self.eps = eps
        self.vgg: VGGFeatures | None = None  # from prepare()

    def prepare(self) -> 'CSDLoss':
        """Loads the VGG, and downloads it when it is asked for first.

        Raises:
            UserError: it can't be had, or its file is another network's.
        """
        self.vgg = load_vgg(self.vgg_weights, len(self.layer_weights))
        return self

    def forward(self, state: DistillState) -> dict[str, Tensor]:
        if self.vgg is None:
            raise RuntimeError('CSDLoss: prepare() loads its VGG, and comes before the first forward')
        _, channels, *size = state.student.shape
        least = 2 ** (len(self.layer_weights) - 1)  # each layer but the first has half the height and width
        if channels != 3:
            raise UserError(f'network_g.num_out_ch: {channels}; accepted: 3, for the VGG of CSDLoss')
        if min(size) < least:
            raise UserError(f'datasets.train.gt_size: {min(size)}; accepted: {least} or more, for the VGG of CSDLoss')
        return csd_loss(state, self.vgg, self.lambda_, self.layer_weights, self.img_range, self.num_negatives, self.eps)
