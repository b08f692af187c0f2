"""Small states that the tests of losses share."""

from dataclasses import replace

import torch

from facd_basicsr.losses import DistillState


def images(*values: float) -> torch.Tensor:
    """One-pixel gray images: (N, 1, 1, 1)."""
    return torch.tensor(values, dtype=torch.float32)[:, None, None, None]


def random_state(
    n: int = 4, taps: int = 3, dtype: torch.dtype = torch.float64, seed: int = 0, channels: tuple[int, int] = (2, 2)
) -> DistillState:
    """x2, images of 4 x 4, features of 3 x 3 with ``channels`` of student and teacher; the student's with gradient."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)

    gt = rand(n, 3, 4, 4)
    return DistillState(
        student=(gt + 0.2 * rand(n, 3, 4, 4) - 0.1).requires_grad_(),
        teacher=gt + 0.2 * rand(n, 3, 4, 4) - 0.1,
        gt=gt,
        lq=rand(n, 3, 2, 2),
        student_feats=tuple(rand(n, channels[0], 3, 3).requires_grad_() for _ in range(taps)),
        teacher_feats=tuple(rand(n, channels[1], 3, 3) for _ in range(taps)),
    )


def with_student(state: DistillState, student: torch.Tensor, *feats: torch.Tensor) -> DistillState:
    """The state with another student's output and features, for gradcheck."""
    return replace(state, student=student, student_feats=feats)
