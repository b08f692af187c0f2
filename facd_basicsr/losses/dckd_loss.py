"""DCKD: the contrast between images, with what the student gave earlier as negatives."""

from dataclasses import dataclass

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor

from facd_basicsr.errors import UserError
from facd_basicsr.losses.base import Average, DistillState, View, option
from facd_basicsr.losses.pairwise import at_least_float32, sample_l1
from facd_basicsr.losses.vgg import VGG19_WEIGHTS, VGGContrastLoss
from facd_basicsr.losses.views import augmented, drawn_augmentations, generators, like, undone
from facd_basicsr.losses.vqgan import load_vqgan

SIGMA = (1 / 255, 30 / 255)


def with_noised(state: DistillState, count: int) -> Tensor:
    """Each LQ and ``count`` copies of it with Gaussian noise, in [0, 1]: (N * (1 + count), C, h, w), sample by sample.

    Of each copy sigma is uniform between 1 and 30 of 255; with probability 0.5 all channels have the same noise.
    """
    channels, height, width = state.lq.shape[1:]
    noise = []
    for own in generators(state, 'noise'):
        drawn = torch.rand(count, 2, 1, 1, generator=own)
        sigma, is_gray = SIGMA[0] + (SIGMA[1] - SIGMA[0]) * drawn[:, :1], drawn[:, 1:] < 0.5  # (count, 1, 1, 1)
        normal = torch.randn(count, channels, height, width, generator=own)
        noise.append(sigma * torch.where(is_gray, normal[:, :1], normal))
    lq = state.lq[:, None]  # (N, 1, C, h, w)
    noised = (lq + like(lq, torch.stack(noise))).clamp(0, 1)  # (N, count, C, h, w)
    return torch.cat([lq, noised], dim=1).flatten(0, 1)


def l1_to_own(feat: Tensor, negative_feat: Tensor) -> Tensor:
    """Mean absolute differences of each sample to its own negatives: (N, ...) x (N * K, ...) -> (N, K)."""
    own = negative_feat.unflatten(0, (len(feat), -1)).unbind(1)  # K x (N, ...)
    return torch.stack([sample_l1(feat, negative) for negative in own], dim=1)


@LOSS_REGISTRY.register()
@dataclass(eq=False)
class DCKDLoss(VGGContrastLoss):
    """Dynamic contrastive knowledge distillation, DCKD (AAAI 2025), in the features of VGG-19.

    From the released code (super-SSS/DCKD, basicsr/models/dckd_model.py, ContrasLoss of basicsr/losses/basic_loss.py
    and options/train/SwinIR): |S(x) - GT| + |S(x) - T(x)| + |S(x) - F^-1(T(F(x)))|, where
    F inverts colors, flips and transposes, each with probability 0.5, plus 0.1 times the sum over layers of
    weight * mean |S - T| / (mean sum_k |S - Neg_k| + 1e-7). The negatives of a sample are what a history model gives
    on x and on four copies of x with noise. It begins as the student and becomes, every 1000 iterations,
    0.1 history + 0.9 student, the student being its moving average of ``train.ema_decay: 0.999``.

    Inferred: the same settings for RCAN and EDSR, whose option files are not released.

    Otherwise than there: the features are CSD's, torchvision's VGG-19 on the images as they are, unless
    ``vqgan_weights`` gives those of the code, the encoder of taming-transformers' VQGAN, whose weights are not
    published with it. The cross-entropy on that VQGAN's codes (weight 0.001) is left out. ``every`` is one number; in
    the code it grows to 2000 after the first 100,000 iterations and to 3000 after the second. Means run over the batch
    of all ranks, there over each rank's.
    """

    lambda_: float = option(0.1, 'weight of the contrast', least=0)
    num_negatives: int = option(4, 'noised copies of LQ; with LQ itself a sample has K = 1 + `num_negatives`', least=0)
    decay: float = option(0.1, "share of the history model that stays when the student's is added", least=0, most=1)
    every: int = option(1000, "iterations between the history model's updates", least=1)
    probability: float = option(
        0.5,
        'of each of inversion, horizontal and vertical flip and transposition. 0: F is the identity',
        least=0,
        most=1,
    )
    vqgan_weights: str | None = option(
        None,
        "path or address of taming-transformers' f16 VQGAN (`last.ckpt`, or its state dict as a `.pth`), whose encoder "
        "takes the VGG's place, as in the released code",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vqgan_weights is not None and self.vgg_weights != VGG19_WEIGHTS:
            raise UserError(
                f'train.distill_opt.vgg_weights: {self.vgg_weights}; accepted: nothing beside '
                'train.distill_opt.vqgan_weights, which takes its place'
            )
        self.average = Average(self.decay, self.every)

    def prepare(self) -> 'DCKDLoss':
        """Loads the VQGAN's encoder if there is one, else the VGG.

        Raises:
            UserError: it cannot be downloaded, or its file is another network's.
        """
        if self.vqgan_weights is None:
            return super().prepare()
        self.features = load_vqgan(self.vqgan_weights, len(self.layer_weights))
        return self

    @property
    def views(self) -> dict[str, View]:
        return {
            'augmented': View(('teacher',), lambda state: augmented(state.lq, self._drawn(state))),
            'noised': View(('average',), lambda state: with_noised(state, self.num_negatives)),
        }

    def _drawn(self, state: DistillState) -> Tensor:
        return drawn_augmentations(state, 'augmented', self.probability)

    def forward(self, state: DistillState) -> dict[str, Tensor]:
        """L1 to GT, to the teacher and to the teacher on F(x), and lambda times the contrast.

        Returns:
            ``l_sr``, ``l_logits``, ``l_consistency`` and ``l_contrast`` (weighted by lambda); ``r_1``, ``r_2``, ... (d+
            / d- at each layer), without.

        Raises:
            UserError: the images are none for the features' network.
        """
        teacher = state.teacher.detach()
        consistent = undone(at_least_float32(state.views['augmented']['teacher']), self._drawn(state)).detach()
        targets = {'l_sr': state.gt, 'l_logits': teacher, 'l_consistency': consistent}
        images = {name: self.img_range * sample_l1(state.student, own).mean() for name, own in targets.items()}
        l_contrast, logs = self.contrast(state.student, teacher, state.views['noised']['average'], l1_to_own)
        return {**images, 'l_contrast': l_contrast, **logs}
