"""ECO: training begins with what the teacher makes of LQ and ends with the ground truth."""

from dataclasses import dataclass

from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor

from facd_basicsr.losses.base import REQUIRED, DistillLoss, DistillState, View, option
from facd_basicsr.losses.pairwise import at_least_float32, sample_l1
from facd_basicsr.losses.views import downscaled


@LOSS_REGISTRY.register()
@dataclass(eq=False)
class ECOLoss(DistillLoss):
    """ECO, noise-free optimization in early training steps (Lee and Heo, arXiv 2312.17526, AAAI 2024), with mixup.

    From the paper: |S(x) - y| between y = alpha GT + (1 - alpha) T(LQ), the teacher's output being an estimate of the
    mean of all ground truths of LQ, and the student on x = alpha LQ + (1 - alpha) T(LQ) downscaled by bicubic
    interpolation, with alpha from 0 to 1. From released code (2minkyulee/Noise-free-Optimization-in-Early-Training-
    Steps-for-Image-Super-Resolution, ECO/trainer/trainer.py and ECO/dataset/syntheticSR_dataset_preprocessed.py):
    alpha is 0 for the first 26 % of the iterations, 1 for the last 26 % and a piece of a sigmoid between, of which a
    comment says that a linear one made no significant difference; L1 of images in [0, 255]. T(LQ) and its downscaled
    image are read from 8-bit files there.

    Inferred: both are made in training, in float, of the batch's patches; x is clamped to [0, 1], in which files are;
    y, as all that a teacher gives here, is not.
    """

    reads_features = False

    alpha: float = option(
        REQUIRED,
        'share of ground truth and LQ, the rest is the teacher; a schedule from 0 to 1 over 75 % of the iterations, '
        'such as `{start: 0, end: 1, over: 75000}` of 100,000',
        least=0,
        most=1,
    )
    keep_lq: bool = option(False, "whether x is LQ itself, not mixed with the teacher's output downscaled")
    img_range: float = option(1.0, 'factor on the images', above=0)

    @property
    def reads(self) -> tuple[str, ...]:
        if self.alpha == 1:  # the teacher has no share any more
            return ('student',)
        return ('student', 'teacher') if self.keep_lq else ('teacher',)

    @property
    def views(self) -> dict[str, View]:
        return {} if 'student' in self.reads else {'mixed': View(('student',), self._mixed)}

    def _mixed(self, state: DistillState) -> Tensor:
        scale = state.gt.shape[2] // state.lq.shape[2]
        return (self.alpha * state.lq + (1 - self.alpha) * downscaled(state.teacher, scale)).clamp(0, 1)

    def forward(self, state: DistillState) -> dict[str, Tensor]:
        """``l_sr``."""
        student = state.student if 'student' in self.reads else state.views['mixed']['student']
        target = at_least_float32(state.gt)
        if 'teacher' in self.reads:
            target = self.alpha * target + (1 - self.alpha) * at_least_float32(state.teacher.detach())
        return {'l_sr': self.img_range * sample_l1(student, target).mean()}
