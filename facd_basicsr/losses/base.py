"""What a distillation loss sees."""

import keyword
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn

from facd_basicsr.errors import UserError
from facd_basicsr.runtime.processes import ranks


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


REGRESSOR = ('always', 'auto', 'never')


class DistillLoss(nn.Module, ABC):
    """A function of a :class:`DistillState`, and what it needs the model to provide.

    Attributes:
        min_batch: the smallest batch, over all ranks, that it is defined for.
        reads_features: whether it needs taps; a loss of images takes none.
        compares_channels: whether student and teacher features must have the same width when it sees them.
        regressor: which taps' student features the model passes through a regressor before the loss sees them:
            ``always``, ``auto`` (only where student and teacher differ in width) or ``never``.
    """

    min_batch: int = 1
    reads_features: bool = True
    compares_channels: bool = True
    regressor: str = 'never'

    def prepare(self) -> 'DistillLoss':
        """Loads what it needs beyond its options; the model calls it once, before ``to()`` and the first forward.

        Not part of construction, which must stay cheap: it is how an option file is checked (options/build.py).
        """
        return self

    @abstractmethod
    def forward(self, state: DistillState) -> dict[str, Tensor]:
        """Named scalars. Those called ``l_*`` are weighted terms, and their sum is minimised; others are monitored."""


def sum_of(terms: Iterable[Tensor]) -> Tensor:
    """The sum of one term or more, which is a tensor: the built-in's type is ``Tensor | int``, as it begins with 0."""
    return cast(Tensor, sum(terms))


def check_choice(key: str, value: str, accepted: Collection[str]) -> None:
    """Refuses a value of ``train.distill_opt.KEY`` that is not among those accepted."""
    if value not in accepted:
        raise UserError(f'train.distill_opt.{key}: {value!r}; accepted: {", ".join(accepted)}')


def check_not_negative(**values: float) -> None:
    """Refuses a negative value of ``train.distill_opt.KEY``, a list by its least item."""
    for key, value in values.items():
        if value < 0:
            raise UserError(f'train.distill_opt.{key.rstrip("_")}: {value}; accepted: 0 or more')


def check_positive(**values: float) -> None:
    """Refuses a value of ``train.distill_opt.KEY`` that is not above zero."""
    for key, value in values.items():
        if value <= 0:
            raise UserError(f'train.distill_opt.{key.rstrip("_")}: {value}; accepted: more than 0')


def check_weights(layer_weights: Sequence[float], state: DistillState) -> None:
    """Refuses anything but one weight for each tap."""
    if not len(layer_weights) == len(state.student_feats) == len(state.teacher_feats):
        raise UserError(
            f'train.distill_opt.layer_weights: {len(layer_weights)} weights for {len(state.student_feats)} taps; '
            'accepted: one weight per tap'
        )


def check_batch(state: DistillState, loss: str) -> None:
    """Refuses a batch, over all ranks, in which a sample has no others to be compared with."""
    n = len(state.gt) * ranks()
    if n < 2:
        raise UserError(
            f'datasets.train.batch_size_per_gpu: {loss} got a batch of {n}; accepted: 2 or more over all ranks, since '
            'its negatives are the other samples'
        )


def build_loss(loss_opt: dict[str, Any]) -> nn.Module:
    """Builds a registered loss from its option block.

    As BasicSR's ``build_loss``, except that a key which is a Python keyword (``lambda``) is passed with an
    underscore (``lambda_``).
    """
    kwargs = {key + '_' * keyword.iskeyword(key): value for key, value in loss_opt.items() if key != 'type'}
    return LOSS_REGISTRY.get(loss_opt['type'])(**kwargs)
