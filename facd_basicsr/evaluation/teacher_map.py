"""Where the teacher loses to the student: Figure 2 and Section 3.1 of the paper."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from facd_basicsr.evaluation.figures import Box
from facd_basicsr.evaluation.methods import Method
from facd_basicsr.evaluation.test_sets import Pair
from facd_basicsr.losses.image import teacher_is_right
from facd_basicsr.losses.pairwise import sample_l1
from facd_basicsr.runtime.metrics import as_input


@dataclass(frozen=True)
class TeacherMap:
    """One image's patches, by equation (1).

    Attributes:
        pair: the image.
        boxes: the patches in pixels of GT, row by row.
        loses: for each patch, whether the teacher's error is larger than the student's (alpha = 0).
        student_error, teacher_error: for each patch the mean absolute error to GT, in 8-bit levels.
    """

    pair: Pair
    boxes: list[Box]
    loses: np.ndarray
    student_error: np.ndarray
    teacher_error: np.ndarray

    @property
    def share(self) -> float:
        """Share of the patches in which the teacher loses, 0 to 1; NaN if the image is smaller than a patch."""
        return float(self.loses.mean()) if self.boxes else float('nan')

    def lost(self) -> list[Box]:
        """The patches in which the teacher loses."""
        return [box for box, loses in zip(self.boxes, self.loses) if loses]

    def worst(self) -> int:
        """Index of the patch in which the teacher is furthest behind the student."""
        return int((self.teacher_error - self.student_error).argmax())


def teacher_map(student: Method, teacher: Method, pair: Pair, patch: int) -> TeacherMap:
    """Equation (1) on every patch of an image, by the loss's own indicator, on outputs that are not clamped.

    Student and teacher upscale the whole image, as a user's would; in training they see each patch alone. Patches
    do not overlap; what is left at the right and bottom is not counted.

    Args:
        student, teacher: the networks.
        pair: the image.
        patch: side of a patch in pixels of LQ.
    """
    gt_size = patch * student.scale
    gt = as_input(pair.gt)
    height, width = (length // gt_size * gt_size for length in gt.shape[2:])
    boxes = [
        (left, top, left + gt_size, top + gt_size)
        for top in range(0, height, gt_size)
        for left in range(0, width, gt_size)
    ]
    if not boxes:
        return TeacherMap(pair, [], np.zeros(0, bool), np.zeros(0), np.zeros(0))
    images = (student.output(pair.lq).cpu(), teacher.output(pair.lq).cpu(), gt)
    sr_s, sr_t, gt_patches = (_patches(image, boxes) for image in images)
    loses = teacher_is_right(sr_s, sr_t, gt_patches) == 0  # (N,)
    student_error, teacher_error = (255 * sample_l1(sr, gt_patches) for sr in (sr_s, sr_t))  # (N,), (N,)
    return TeacherMap(pair, boxes, loses.numpy(), student_error.numpy(), teacher_error.numpy())


def _patches(image: Tensor, boxes: list[Box]) -> Tensor:
    """(1, C, H, W) -> (N, C, gt_size, gt_size)."""
    return torch.cat([image[:, :, top:bottom, left:right] for left, top, right, bottom in boxes])
