"""CSD: the contrast between images as a VGG sees them."""

from dataclasses import dataclass

from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from facd_basicsr.losses.base import DistillState, check_batch, option
from facd_basicsr.losses.pairwise import at_least_float32, pairwise_l1, sample_l1
from facd_basicsr.losses.vgg import VGGContrastLoss
from facd_basicsr.runtime.processes import all_gather_samples


@LOSS_REGISTRY.register()
@dataclass(eq=False)
class CSDLoss(VGGContrastLoss):
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

    lambda_: float = option(200.0, 'weight of the contrast', least=0)
    img_range: float = option(255.0, 'factor on the images, those that the VGG sees too', above=0)
    num_negatives: int = option(10, 'K, the negatives of a batch, or as many as it has samples', above=0)

    def forward(self, state: DistillState) -> dict[str, Tensor]:
        """L1 to GT and lambda times the contrast over the layers of the VGG.

        Returns:
            ``l_sr`` and ``l_csd`` (weighted by lambda); ``r_1``, ``r_2``, ... (d+ / d- at each layer), without.

        Raises:
            UserError: fewer than two samples, or the images are none for the VGG.
        """
        check_batch(state, 'CSDLoss')
        lq = at_least_float32(all_gather_samples(state.lq)[0][: self.num_negatives])  # (K, C, h, w)
        negatives = F.interpolate(lq, size=state.student.shape[2:], mode='bicubic')  # (K, C, H, W), not clamped
        l_csd, logs = self.contrast(state.student, state.teacher, negatives, pairwise_l1)
        return {'l_sr': self.img_range * sample_l1(state.student, state.gt).mean(), 'l_csd': l_csd, **logs}
