"""The sanity gate: the teacher must reach its expected PSNR."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from basicsr.utils import tensor2img
from torch import Tensor

from facd_basicsr.distill.teacher import Teacher
from facd_basicsr.errors import UserError
from facd_basicsr.runtime.execution import reraise_refused_input, tf32_of
from facd_basicsr.runtime.metrics import psnr_y

COLOUR_MARGIN = 0.005  # dB
COLOUR_IMAGES = 5  # as many as Set5 has: fewer may be better in the wrong order by chance


def teacher_psnr_y(
    teacher: Teacher, loader: Iterable[dict[str, Any]], scale: int, device: torch.device, bgr: bool = False
) -> np.ndarray:
    """PSNR-Y in dB of the teacher on every image, measured as published: 8 bits, ``scale`` pixels cropped.

    Args:
        loader: of a validation set; batches of one with ``lq`` and ``gt``, RGB in [0, 1].
        bgr: whether input and output are BGR.
    """
    flipped = [1] if bgr else []  # dimensions: the channels
    # A loader draws from torch's generator, and training is not to depend on this.
    with torch.random.fork_rng(devices=[]), tf32_of(teacher.execution.precision):
        images = (
            (tensor2img(_output(teacher, batch['lq'].to(device).flip(flipped)).flip(flipped)), tensor2img(batch['gt']))
            for batch in loader
        )
        return np.array([psnr_y(sr, gt, scale) for sr, gt in images])


def _output(teacher: Teacher, lq: Tensor) -> Tensor:
    with reraise_refused_input(teacher.place, teacher.net, lq):
        return teacher(lq)


def check_teacher(
    teacher: Teacher, expect: dict[str, Any], loader: Iterable[dict[str, Any]], scale: int, device: torch.device
) -> str:
    """Compares the teacher with the option ``teacher.expect``.

    A wrong ``res_scale``, value range or checkpoint loads without an error, since its shapes fit: only the output
    shows it. A network trained on BGR is recognized by its higher PSNR on BGR:
    the difference may be below any tolerance, 0.016 dB on Set5 for DAT-light x2.

    Args:
        expect: ``dataset`` (for messages), ``psnr_y`` in dB and ``tolerance`` in dB, to either side.

    Returns:
        One line with both numbers.

    Raises:
        UserError: the mean differs by more than the tolerance, or the teacher is better on BGR.
    """
    by_image = teacher_psnr_y(teacher, loader, scale, device)
    found = float(by_image.mean())
    expected = f'{expect["psnr_y"]} +- {expect["tolerance"]}'
    numbers = f'{found:.3f} dB PSNR-Y on datasets.{expect["dataset"]}, expected {expected}'
    if not abs(found - expect['psnr_y']) <= expect['tolerance']:  # also refuses nan
        raise UserError(
            f'{teacher.place}.expect: the teacher has {numbers}; check {teacher.place}.weights, res_scale and '
            'img_range, and whether that value is of the same files (docs/teachers.md)'
        )
    on_bgr = teacher_psnr_y(teacher, loader, scale, device, bgr=True)
    if _is_better(on_bgr, by_image):
        raise UserError(
            f'{teacher.place}.expect: the teacher has {found:.3f} dB PSNR-Y on datasets.{expect["dataset"]}, but '
            f'{on_bgr.mean():.3f} dB with red and blue swapped; accepted: a network of RGB images'
        )
    return f'{teacher.place.capitalize()}: {numbers}.'


def _is_better(psnr: np.ndarray, other: np.ndarray) -> bool:
    """Whether ``psnr`` is higher by more than chance over images: by the margin and twice the standard error."""
    gain = psnr - other
    if len(gain) < COLOUR_IMAGES or not np.isfinite(gain).all():
        return False
    return bool(gain.mean() > max(COLOUR_MARGIN, 2 * gain.std(ddof=1) / len(gain) ** 0.5))
