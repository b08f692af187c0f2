"""DUKD: the teacher labels crops of the ground truth, which the student sees augmented."""

import copy
from dataclasses import dataclass

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor

from facd_basicsr.errors import UserError
from facd_basicsr.losses.base import DistillLoss, DistillState, View, option
from facd_basicsr.losses.pairwise import at_least_float32, sample_l1
from facd_basicsr.losses.views import augmented, downscaled, drawn_augmentations, generators, undone


def zoom_in(state: DistillState, crops: int) -> Tensor:
    """``crops`` of the s^2 aligned LQ-sized crops of each ground truth, none twice: (N * crops, C, h, w).

    Raises:
        UserError: there are fewer.
    """
    height, width = state.lq.shape[2:]
    rows, columns = state.gt.shape[2] // height, state.gt.shape[3] // width
    if crops > rows * columns:
        raise UserError(f'train.distill_opt.crops: {crops}; accepted: {rows * columns} or less, scale times scale')
    # (N, C, H, W) -> (N, s * s, C, h, w)
    tiles = state.gt.unflatten(3, (columns, width)).unflatten(2, (rows, height)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    drawn = [torch.randperm(rows * columns, generator=own)[:crops].tolist() for own in generators(state, 'zoom_in')]
    return torch.stack([own[index] for own, indices in zip(tiles, drawn) for index in indices])


@LOSS_REGISTRY.register()
@dataclass(eq=False)
class DUKDLoss(DistillLoss):
    """Data upcycling knowledge distillation, DUKD (Zhang et al., arXiv 2309.14162).

    From the paper: |S(x) - GT| + |S(x) - T(x)| + |F^-1(S(F(z))) - T(z)|, where z are LQ-sized crops of the ground truth
    ("zoom in") and F inverts colors, flips and transposes, each at random ("label consistency"); zooming out, S on LQ
    downscaled once more, to LQ and to T of it. From released code (yun224/DUKD, models/dukd_model.py): L1 for all
    terms, probability 0.3 where its ``noisy`` block has none, and ``two_steps``. Its option files differ by network in
    weights, crops, zooming out and F; docs/losses.md lists them, options/train/DUKD_*.yml follow them. The defaults
    are theirs for RCAN, but with F. Inferred: bicubic downscaling is torch's with antialiasing, where that code has
    BasicSR's ``imresize``.

    Three things differ from that code. It undoes F in the order in which it is applied, so that what is transposed and
    flipped once is not undone; here the order is reversed. It draws one set of crops for the whole batch; here each
    sample has its own. It leaves the teacher in training mode; here it is in eval. ``two_steps`` keeps that code's two
    optimizer steps an iteration: the first by ``l_sr`` and ``l_logits``, the second, by a student that has taken the
    first, by the other terms, on top of the first's gradients, which are not cleared in between.

    ``targets: gt`` is not the paper's: it is the control without a teacher. A crop of the ground truth has no ground
    truth of its own, so F is applied to LQ, and ``l_consistency`` = |F^-1(S(F(x))) - GT| is in the place of
    ``l_zoom_in``.
    """

    reads_features = False

    img_range: float = option(1.0, 'factor on the images', above=0)
    pixel_weight: float = option(1.0, 'weight of the terms of ground truth, `l_sr` and `l_zoom_out_sr`', least=0)
    targets: str = option(
        'teacher',
        "what views are compared with. `teacher`: its outputs. `gt`: a control of ours, which reads no teacher: LQ's "
        'augmentation with GT, instead of crops',
        choices=('teacher', 'gt'),
    )
    crops: int = option(1, 'n, the crops of each ground truth, `scale` times `scale` at most', least=1)
    probability: float = option(
        0.3,
        'of each of inversion, horizontal and vertical flip and transposition. 0: F is the identity',
        least=0,
        most=1,
    )
    zoom_out: bool = option(False, 'whether LQ downscaled once more counts, to LQ and to the teacher')
    two_steps: bool = option(False, 'two optimizer steps an iteration, as in the released code; `false`: one')

    def __post_init__(self) -> None:
        super().__post_init__()
        self.is_taught = self.targets == 'teacher'
        self.on_lq = self.on_views = True  # of two steps each has one

    @property
    def reads(self) -> tuple[str, ...]:
        return (('student', 'teacher') if self.is_taught else ('student',)) if self.on_lq else ()

    @property
    def views(self) -> dict[str, View]:
        found = {'augmented': View(('student',), lambda state: augmented(self._plain(state), self._drawn(state)))}
        if self.is_taught:
            found['zoom_in'] = View(('teacher',), self._plain)
        if self.zoom_out:
            both = ('student', 'teacher') if self.is_taught else ('student',)
            found['zoom_out'] = View(both, lambda state: downscaled(state.lq, state.gt.shape[2] // state.lq.shape[2]))
        return found if self.on_views else {}

    def _plain(self, state: DistillState) -> Tensor:
        return zoom_in(state, self.crops) if self.is_taught else state.lq

    def _drawn(self, state: DistillState) -> Tensor:
        return drawn_augmentations(state, 'augmented', self.probability, self.crops if self.is_taught else 1)

    def steps(self) -> tuple[DistillLoss, ...]:
        """Itself, or with ``two_steps`` the terms on LQ and those on views."""
        if not self.two_steps:
            return (self,)
        first, second = copy.copy(self), copy.copy(self)
        first.on_views = second.on_lq = False
        return first, second

    def forward(self, state: DistillState) -> dict[str, Tensor]:
        """L1 on LQ, on crops of the ground truth and, with ``zoom_out``, on LQ downscaled.

        Returns:
            ``l_sr``, ``l_logits``, ``l_zoom_in``, ``l_zoom_out_sr`` and ``l_zoom_out_logits``; with ``targets: gt``
            ``l_sr``, ``l_consistency`` and ``l_zoom_out_sr``. ``l_sr`` and ``l_zoom_out_sr`` weighted.
        """
        compared: dict[str, tuple[Tensor, Tensor]] = {}
        if self.on_lq:
            compared['l_sr'] = state.student, state.gt
        if self.on_lq and self.is_taught:
            compared['l_logits'] = state.student, state.teacher
        if self.on_views:
            undone_student = undone(at_least_float32(state.views['augmented']['student']), self._drawn(state))
            if self.is_taught:
                compared['l_zoom_in'] = undone_student, state.views['zoom_in']['teacher']
            else:
                compared['l_consistency'] = undone_student, state.gt
        if self.on_views and self.zoom_out:
            out = state.views['zoom_out']
            height, width = out['student'].shape[2:]  # LQ's, or less by a remainder
            compared['l_zoom_out_sr'] = out['student'], state.lq[..., :height, :width]
            if self.is_taught:
                compared['l_zoom_out_logits'] = out['student'], out['teacher']
        weights = {'l_sr': self.pixel_weight, 'l_zoom_out_sr': self.pixel_weight}
        return {
            name: weights.get(name, 1) * self.img_range * sample_l1(a, b.detach()).mean()
            for name, (a, b) in compared.items()
        }
