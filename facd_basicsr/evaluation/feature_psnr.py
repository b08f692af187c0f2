"""Feature PSNR between student and teacher: Table 4 of the paper."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from facd_basicsr.distill.regressors import build_regressors
from facd_basicsr.distill.taps import Taps, paths_of_teachers
from facd_basicsr.distill.teacher import teacher_blocks
from facd_basicsr.errors import UserError
from facd_basicsr.evaluation.methods import PROBE_SIZE, Method
from facd_basicsr.files.state_dicts import load_exactly, load_state_dict
from facd_basicsr.losses.loss_sum import LossSum

PEAK = 255.0


def feature_psnr(student: Tensor, teacher: Tensor) -> float:
    """PSNR between two features of one image, in dB: 10 log10(255^2 / MSE), infinite where they are equal.

    The MSE is over all elements, channels and border included. The peak is 255 because features of networks with
    ``img_range: 255.`` are on that scale; they are not rescaled, so a network that works on [0, 1] gives values
    that cannot be compared with these. The paper (Table 4) says "the average PSNR between features of teachers and
    students at these three matching points" and no more.

    Args:
        student, teacher: (1, C, H, W) each; the student's after its regressor.
    """
    mse = (student - teacher).square().mean(dtype=torch.float64).item()
    return math.inf if mse == 0 else 10 * math.log10(PEAK**2 / mse)


def _to_smaller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both, (N, C, H, W) each, cropped to the smaller height and width."""
    h, w = map(min, a.shape[2:], b.shape[2:])
    return a[..., :h, :w], b[..., :h, :w]


def feature_scores(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> dict[str, float]:
    """``feature_psnr_1``, ``_2``, ... at each matching point, the shallowest first, and their mean ``feature_psnr``."""
    # A network that pads its input pads its features, at the bottom and right.
    values = [feature_psnr(*_to_smaller(*feats)) for feats in zip(student, teacher)]
    return {f'feature_psnr_{j}': value for j, value in enumerate(values, start=1)} | {
        'feature_psnr': float(np.mean(values))
    }


def tap_features(train_opt: dict[str, Any], teachers: Sequence[Method], students: Sequence[Method]) -> list[str]:
    """Gives teachers and students the train file's taps, and students their regressors, those to each teacher.

    A student's regressors are ``net_r_*.pth`` next to its ``net_g_*.pth``. Without that file its features are compared
    as they are, which needs the teacher's widths. A student that cannot be compared is left without taps.

    Args:
        train_opt: the train file's options, with ``taps``, ``network_r`` and ``train.distill_opt``.

    Returns:
        A line for each student that is not compared, or compared without regressors where the loss asks for them.

    Raises:
        UserError: a teacher's taps do not fit it.
    """
    taps = train_opt['taps']
    if not taps:  # a loss of images
        return []
    mode = LossSum(train_opt['train']['distill_opt']).regressor
    probe = np.full((PROBE_SIZE, PROBE_SIZE, 3), 128, np.uint8)
    teacher_feats: tuple[Tensor, ...] = ()
    for teacher, place, paths in zip(
        teachers, teacher_blocks(train_opt.get('teacher')), paths_of_teachers(taps, len(teachers))
    ):
        teacher.taps = Taps(teacher.bare, paths, place)
        teacher_feats += teacher.upscale_with_features(probe)[1]
    notes = []
    for student in students:
        try:
            student.taps = Taps(student.bare, [tap['student'] for tap in taps], 'student')
            student_feats = student.upscale_with_features(probe)[1] * len(teachers)
            checkpoint = Path(student.checkpoint)
            path = checkpoint.with_name('net_r_' + checkpoint.name.removeprefix('net_g_'))
            lacks = f'no {path.name} beside {checkpoint}'
            if path.is_file():
                network_opt = train_opt.get('network_r')
                regressors = build_regressors(network_opt, mode, student_feats, teacher_feats, len(teachers))
                if regressors is not None:
                    state_dict = load_state_dict(path, 'regressors', [regressors.state_dict().keys()])
                    load_exactly(regressors, state_dict, f'regressors: {path}')
                    student.regressors = regressors.eval().requires_grad_(False).to(teacher_feats[0].device)
            elif any(s.shape != t.shape for s, t in zip(student_feats, teacher_feats)):
                raise UserError(f"{lacks}, and its features have other shapes than the teacher's")
            elif mode == 'always':
                notes.append(f'{student.name}: {lacks}: features compared as they are')
        except UserError as error:
            student.taps = student.regressors = None
            notes.append(f'{student.name}: no feature PSNR: {error}')
    return notes
