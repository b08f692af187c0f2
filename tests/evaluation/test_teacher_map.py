import math

import numpy as np
import pytest
import torch
from torch import Tensor

from facd_basicsr.evaluation.figures import teacher_map
from facd_basicsr.evaluation.test_sets import ImagePair


class Flat:
    """A method that gives GT (black, 8x12) plus a constant in each 4x4 patch, row by row."""

    def __init__(self, *errors: float) -> None:
        self.errors, self.scale = torch.tensor(errors), 2

    def output(self, lq: np.ndarray) -> Tensor:
        return self.errors.view(1, 1, 2, 3).expand(1, 3, 2, 3).repeat_interleave(4, 2).repeat_interleave(4, 3)


BLACK = ImagePair('S', 'a', np.zeros((4, 6, 3), np.uint8), np.zeros((8, 12, 3), np.uint8))


def test_the_teacher_loses_where_its_error_is_larger_and_a_tie_is_no_loss():
    student, teacher = Flat(0.1, 0.2, 0.3, 0.4, 0.5, 2.0), Flat(0.1, 0.3, 0.2, 0.4, -0.7, 3.0)
    found = teacher_map(student, teacher, BLACK, patch=2)
    assert found.boxes[:4] == [(0, 0, 4, 4), (4, 0, 8, 4), (8, 0, 12, 4), (0, 4, 4, 8)]
    assert found.loses.tolist() == [False, True, False, False, True, True]  # 3 against 2: not clamped
    assert found.share == 0.5
    assert found.lost() == [(4, 0, 8, 4), (4, 4, 8, 8), (8, 4, 12, 8)]
    assert found.worst() == 5
    assert found.teacher_error[4] == pytest.approx(0.7 * 255)


def test_what_is_left_beside_whole_patches_is_not_counted():
    found = teacher_map(Flat(*[0.1] * 6), Flat(*[0.2] * 6), BLACK, patch=3)
    assert found.boxes == [(0, 0, 6, 6), (6, 0, 12, 6)]


def test_an_image_smaller_than_a_patch_has_no_share():
    found = teacher_map(Flat(*[0.1] * 6), Flat(*[0.2] * 6), BLACK, patch=5)
    assert found.boxes == [] and math.isnan(found.share)
