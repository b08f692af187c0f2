"""One regressor per tap, from the student's width to the teacher's."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from basicsr.archs import build_network
from torch import Tensor, nn

from facd_basicsr.archs import DeepRegressor
from facd_basicsr.distill.taps import hint
from facd_basicsr.errors import UserError
from facd_basicsr.losses.base import needs_regressor, tap_place
from facd_basicsr.losses.pairwise import at_least_float32
from facd_basicsr.runtime.processes import ranks, total

REGRESSOR_ACCEPTED = 'accepted: DeepRegressor, or another that maps channels and keeps height and width'

INITS = ('auto', 'first_batch', 'random')
OTHER_UNITS = 30  # times: EDSR's and RCAN's, of images in [0, 255], differ by less, from those of [0, 1] by 100 or more

WANTED = {'always': 'at every tap', 'auto': 'where widths differ', 'never': 'at no tap'}


class TapRegressors(nn.ModuleList):
    """Applies regressor j to the student's feature j; ``nn.Identity`` where a tap needs none."""

    def forward(self, feats: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(regressor(feat) for regressor, feat in zip(self, feats))


def build_regressors(
    network_opt: dict[str, Any] | None,
    mode: str,
    student_feats: Sequence[Tensor],
    teacher_feats: Sequence[Tensor],
    teachers: int = 1,
) -> TapRegressors | None:
    """Builds the regressors that a loss asks for.

    Args:
        network_opt: the option file's ``network_r`` block, without channel counts: they are read off the features.
        mode: the loss's ``regressor``: ``always``, ``auto`` (only where the widths differ) or ``never``; of
            several losses the most that one asks for.
        student_feats, teacher_feats: features of a probe, (N, C_j, H_j, W_j) each; of several ``teachers`` one's after
            the other's, each time with the student's.

    Returns:
        The regressors, or None where no tap needs one.

    Raises:
        UserError: a tap's sizes differ, or ``network_r`` is missing or unused.
    """
    regressors = TapRegressors()
    places = [tap_place(index, len(teacher_feats), teachers) for index in range(len(teacher_feats))]
    for place, student, teacher in zip(places, student_feats, teacher_feats):
        if student.shape[2:] != teacher.shape[2:]:
            raise UserError(
                f"{place}: the student's feature is {tuple(student.shape[2:])} and the teacher's "
                f'{tuple(teacher.shape[2:])} high and wide; accepted: taps of equal size{hint("student")}'
            )
        num_in_ch, num_out_ch = student.shape[1], teacher.shape[1]
        if needs_regressor(mode, student, teacher):
            if network_opt is None:
                raise UserError('network_r: missing; accepted: {type: DeepRegressor}, for the loss asks for regressors')
            regressors.append(build_network({**network_opt, 'num_in_ch': num_in_ch, 'num_out_ch': num_out_ch}))
        else:
            regressors.append(nn.Identity())
    if network_opt is None:
        return None
    if not any(True for _ in regressors.parameters()):
        raise UserError(
            f'network_r: no tap needs it, for the loss asks for regressors {WANTED[mode]}; accepted: no network_r'
        )
    try:
        with torch.no_grad():
            regressed = regressors.to(student_feats[0].device)(student_feats)
    except RuntimeError as error:
        raise UserError(
            f'network_r.type: {network_opt["type"]} does not run on features ({error}); {REGRESSOR_ACCEPTED}'
        ) from error
    for place, feat, teacher in zip(places, regressed, teacher_feats):
        if feat.shape != teacher.shape:
            raise UserError(
                f'network_r.type: {network_opt["type"]} gives {tuple(feat.shape)} at {place}, where the teacher has '
                f'{tuple(teacher.shape)}; {REGRESSOR_ACCEPTED}'
            )
    return regressors


@torch.no_grad()
def rms(student_feats: Sequence[Tensor], teacher_feats: Sequence[Tensor]) -> Tensor:
    """Root mean square of each tap's features over all ranks: (J, 2), the student's and the teacher's."""
    squares = [
        torch.stack([at_least_float32(feat).square().mean() for feat in pair])
        for pair in zip(student_feats, teacher_feats)
    ]
    return (total(torch.stack(squares)) / ranks()).sqrt()


def in_other_units(student: float, teacher: float) -> bool:
    """Whether the RMS of a tap's features differ by more than :data:`OTHER_UNITS` times."""
    return max(student, teacher) > OTHER_UNITS * min(student, teacher)


@torch.no_grad()
def start_regressors(
    regressors: TapRegressors,
    init: str,
    student_feats: Sequence[Tensor],
    teacher_feats: Sequence[Tensor],
    teachers: int = 1,
) -> list[str]:
    """Lets new regressors take the student's features in the teacher's units, whatever the student's are.

    The weights of a regressor's first layer are multiplied by RMS(F^T) / RMS(F^S). Nothing else changes: as with
    networks of equal units, its output then begins a few times smaller than F^T. From an output with the teacher's mean
    and deviation FACD learns nothing: a student that has just begun soon multiplies its features, the regressed ones
    are then far from every teacher's, and a ratio of distances that are all large is 1 and has no gradient.

    Args:
        init: ``first_batch``: all; ``auto``: those of taps where F^S is more than :data:`OTHER_UNITS` times smaller.
            Features that are larger are learnt without.
        student_feats, teacher_feats: of the first batch, (N, C_j, H_j, W_j) each; the student's before the regressors.

    Returns:
        A line for each regressor that was started. The same on all ranks, as are the weights.
    """
    found = rms(student_feats, teacher_feats).tolist()
    lines = []
    for index, (regressor, (student, teacher)) in enumerate(zip(regressors, found)):
        scale = teacher / student if student > 0 else 0.0
        wanted = init == 'first_batch' or scale > OTHER_UNITS
        if not (isinstance(regressor, DeepRegressor) and wanted and 0 < scale < math.inf):
            continue
        first = next(layer for layer in regressor.modules() if isinstance(layer, nn.Conv2d))
        first.weight.mul_(scale)
        lines.append(
            f'{tap_place(index, len(found), teachers)}: RMS of features {student:.3g} in the student, {teacher:.3g} in '
            f'the teacher; the regressor starts with a first layer multiplied by {scale:.3g} (train.init_r: {init}).'
        )
    return lines
