"""Image-domain supervision by ground truth and teacher: equations (1) and (2) of the paper."""

from collections.abc import Callable

import torch
from torch import Tensor

from facd_basicsr.losses.pairwise import sample_l1


def indicator(student: Tensor, teacher: Tensor, gt: Tensor, adaptive: bool = True) -> Tensor:
    """Equation (1): alpha_i = 0 where the student is already closer to GT than the teacher, else 1.

    The sums run over unclamped outputs, carry no gradient, and a tie gives 1, as the paper's "else" says.

    Args:
        student, teacher, gt: SR^S, SR^T and GT, (N, C, H, W).
        adaptive: off, alpha is 1 for every sample (FCD).

    Returns:
        (N,) of 0. and 1., without gradient.
    """
    if not adaptive:
        return student.new_ones(len(student), dtype=torch.promote_types(student.dtype, torch.float32))
    with torch.no_grad():
        student_error, teacher_error = sample_l1(student, gt), sample_l1(teacher, gt)  # (N,), (N,)
        return (student_error >= teacher_error).to(student_error.dtype)


TEACHER_TARGETS = ('mean', 'nearest')  # of several teachers


def nearest(teachers: Tensor, gt: Tensor) -> Tensor:
    """Which of several teachers is nearest to GT by equation (1)'s distance, for each sample; the first of equals.

    Args:
        teachers: their outputs, (T, N, C, H, W).
        gt: (N, C, H, W).

    Returns:
        (N,) of indices, without gradient.
    """
    with torch.no_grad():
        return torch.stack([sample_l1(teacher, gt) for teacher in teachers]).argmin(0)  # (T, N) -> (N,)


def chosen(teachers: Tensor, index: Tensor) -> Tensor:
    """Of several teachers' images the one that is chosen for each sample.

    Args:
        teachers: (T, M, C, H, W), where a sample's images, M / N of them, follow one another.
        index: (N,).

    Returns:
        (M, C, H, W).
    """
    of_images = index.repeat_interleave(teachers.shape[1] // len(index))  # (N,) -> (M,)
    return teachers[of_images, torch.arange(len(of_images), device=index.device)]


def image_loss(
    student: Tensor,
    teacher: Tensor,
    gt: Tensor,
    alpha: Tensor,
    l1_gt: bool = True,
    l1_t: bool = True,
    distance: Callable[[Tensor, Tensor], Tensor] = sample_l1,
) -> Tensor:
    """Equation (2): L_SR = 1/2N sum_i (2 - alpha_i) |SR_i^S - GT_i| + alpha_i |SR_i^S - SR_i^T|.

    The sum covers both terms, and the norms are means over pixels and channels: with sums L_SR would be about
    10^4 times L_FACD, and lambda = 4 would mean nothing. With alpha = 1 it is FAKD's image loss too.

    Table 7 switches either distance off and does not say what weight the other then has. Read here so that the
    weights of a sample still sum to one: GT alone has 1, the teacher alone alpha_i.

    Args:
        student, teacher, gt: (N, C, H, W).
        alpha: (N,).
        l1_gt, l1_t: whether the distance to GT and the distance to the teacher count.
        distance: of each sample of two batches of images, (N, C, H, W) x (N, C, H, W) -> (N,).

    Returns:
        Scalar, in the images' units.
    """
    if not l1_t:
        return distance(student, gt).mean()
    to_teacher = distance(student, teacher)  # (N,)
    if not l1_gt:
        return (alpha * to_teacher).mean()
    return ((2 - alpha) * distance(student, gt) + alpha * to_teacher).mean() / 2
