"""What a distillation loss sees."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class DistillState:
    """One batch as seen by a distillation loss: images and features, never networks or options.

    Attributes:
        student: SR^S, the student's output (N, C, H, W), about [0, 1], not clamped, with gradient.
        teacher: SR^T, the teacher's output, same shape and range, without gradient.
        gt: ground truth, same shape, [0, 1].
        lq: the input of both networks, (N, C, H / scale, W / scale), [0, 1].
        student_feats: F^S at each tap, shallowest first, already through the regressors where the loss asks for
            them; each (N, C_j, H_j, W_j), with gradient.
        teacher_feats: F^T at each tap, same shapes, without gradient.
    """

    student: Tensor
    teacher: Tensor
    gt: Tensor
    lq: Tensor
    student_feats: tuple[Tensor, ...]
    teacher_feats: tuple[Tensor, ...]
