"""One regressor per tap, from the student's width to the teacher's."""

from collections.abc import Sequence
from typing import Any

import torch
from basicsr.archs import build_network
from torch import Tensor, nn

from facd_basicsr.distill.taps import hint
from facd_basicsr.errors import UserError

REGRESSOR_ACCEPTED = 'accepted: DeepRegressor, or another that maps channels and keeps height and width'

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
    compares_channels: bool = True,
) -> TapRegressors | None:
    """Builds the regressors that a loss asks for.

    Args:
        network_opt: the option file's ``network_r`` block, without channel counts: they are read off the features.
        mode: the loss's ``regressor``: ``always``, ``auto`` (only where the widths differ) or ``never``.
        student_feats, teacher_feats: features of a probe, (N, C_j, H_j, W_j) each.
        compares_channels: the loss's: whether widths must agree where there is no regressor.

    Returns:
        The regressors, or None where no tap needs one.

    Raises:
        UserError: a tap's sizes differ, widths differ under ``never``, or ``network_r`` is missing or unused.
    """
    regressors = TapRegressors()
    for index, (student, teacher) in enumerate(zip(student_feats, teacher_feats)):
        if student.shape[2:] != teacher.shape[2:]:
            raise UserError(
                f"taps[{index}]: the student's feature is {tuple(student.shape[2:])} and the teacher's "
                f'{tuple(teacher.shape[2:])} high and wide; accepted: taps of equal size{hint("student")}'
            )
        num_in_ch, num_out_ch = student.shape[1], teacher.shape[1]
        if mode == 'never' and compares_channels and num_in_ch != num_out_ch:
            raise UserError(
                f'train.distill_opt.regressor: never, but taps[{index}] has {num_in_ch} channels in the student and '
                f'{num_out_ch} in the teacher; accepted: always or auto'
            )
        if mode == 'always' or (mode == 'auto' and num_in_ch != num_out_ch):
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
    for index, (feat, teacher) in enumerate(zip(regressed, teacher_feats)):
        if feat.shape != teacher.shape:
            raise UserError(
                f'network_r.type: {network_opt["type"]} gives {tuple(feat.shape)} at taps[{index}], where the teacher '
                f'has {tuple(teacher.shape)}; {REGRESSOR_ACCEPTED}'
            )
    return regressors
