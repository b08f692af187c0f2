"""What a distillation loss sees."""

import keyword
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, TypeVar, cast

from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn

from facd_basicsr.errors import UserError
from facd_basicsr.losses.schedule import value_at
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
        teacher_feats: F^T at each tap, same shapes, without gradient. Of several teachers one's after the other's,
            for :class:`.loss_sum.LossSum`, by which each loss sees one teacher's at a time.
        regressed_feats: the student's through the regressors, likewise: a loss sees the student's features as it asks
            for them; () without regressors.
        iteration: of training, counted from the start of the stage; 0 before the first.
        seeds: of each sample, from the run's seed, the epoch and the sample: what a view draws does not depend on
            workers or ranks.
        taught_by: of several teachers the one whose output ``teacher`` is, for each sample, (N,); None: their mean, or
            there is one.
        views: of each :class:`View` of the loss its ``input`` and the outputs of its networks on it, by their names.
        percep_gt: as ``gt``, what a perceptual loss compares with; None: ``gt``.
    """

    student: Tensor
    teacher: Tensor
    gt: Tensor
    lq: Tensor
    student_feats: tuple[Tensor, ...]
    teacher_feats: tuple[Tensor, ...]
    regressed_feats: tuple[Tensor, ...] = ()
    iteration: int = 0
    seeds: tuple[int, ...] = ()
    views: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    taught_by: Tensor | None = None
    percep_gt: Tensor | None = None


NETWORKS = ('student', 'teacher', 'average')


@dataclass(frozen=True)
class View:
    """An input derived from the batch, and the networks whose outputs on it a loss reads.

    Attributes:
        networks: of :data:`NETWORKS`. The teacher and the average run without gradient.
        derive: the input, (M, C, h, w), from a state with ``lq``, ``gt``, ``iteration`` and ``seeds``; for the student
            alone with ``teacher`` too. It draws from ``seeds`` only (views.py), and is called without gradient.

    Raises:
        UserError: a network is none of these.
    """

    networks: tuple[str, ...]
    derive: Callable[[DistillState], Tensor]

    def __post_init__(self) -> None:
        if isinstance(self.networks, str) or not {*self.networks} <= {*NETWORKS}:
            raise UserError(f'View: networks {self.networks!r}; accepted: a tuple of {", ".join(NETWORKS)}')


@dataclass(frozen=True)
class Average:
    """An average of the student: ``decay * average + (1 - decay) * student`` in every ``every``-th iteration, where
    the student is its own moving average if ``train.ema_decay`` keeps one. It begins as the student.
    """

    decay: float
    every: int


REGRESSOR = ('always', 'auto', 'never')  # from most to least
REQUIRED: Any = MISSING  # in the place of an option's default: there is none
Option = TypeVar('Option')


def option(
    default: Option,
    meaning: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    choices: tuple[str, ...] = (),
) -> Option:
    """An option of a loss, with its default: a field of its dataclass, whose annotation is the option's type.

    Args:
        default: the value that leaving it out stands for, or ``REQUIRED``.
        meaning: what it does, in Markdown, for docs/options.md. ``as in FACDLoss`` shows that loss's words there.
        least, above, most: bounds of a number, or of a list's items: ``least`` and ``most`` themselves are accepted.
        choices: the values there are; empty: any.
    """
    bounds = {'least': least, 'above': above, 'most': most}
    return field(default=default, metadata={'meaning': meaning, **bounds, 'choices': choices})


class DistillLoss(nn.Module, ABC):
    """A function of a :class:`DistillState`, and what it needs the model to provide.

    A loss is a ``@dataclass(eq=False)`` whose fields are its options, each an :func:`option`. The keys of an option
    file, what they accept and docs/options.md follow from them. ``eq=False``: a module is equal to itself alone, and
    can be hashed.

    Attributes:
        min_batch: the smallest batch, over all ranks, that it is defined for.
        reads_features: whether it needs taps; a loss of images takes none.
        compares_channels: whether student and teacher features must have the same width when it sees them.
        regressor: which taps' student features the model passes through a regressor before the loss sees them:
            ``always``, ``auto`` (only where student and teacher differ in width) or ``never``.
        average: what the views of ``average`` are run on, if there are any.

    Raises:
        UserError: an option is not one of the values accepted.
    """

    min_batch: ClassVar[int] = 1
    reads_features: ClassVar[bool] = True
    compares_channels: ClassVar[bool] = True
    regressor: str = 'never'
    average: Average | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        """The networks whose output on LQ it reads: a network that no loss asks for is not run."""
        return ('student', 'teacher')

    @property
    def views(self) -> dict[str, View]:
        """What else it needs the networks' outputs on, by names of its own."""
        return {}

    @property
    def weighs_features(self) -> bool:
        """Whether a term of features has a weight in this iteration: regressors are not run where no loss has one."""
        return self.reads_features

    def steps(self) -> tuple['DistillLoss', ...]:
        """Itself, or what is minimized by an optimizer's step each, one after another in an iteration."""
        return (self,)

    def __post_init__(self) -> None:
        """Makes a module of it once its options are set, and checks them."""
        super().__init__()
        for own in fields(self):  # type: ignore[arg-type]  # a subclass is a dataclass
            value = getattr(self, own.name)
            if isinstance(own.default, tuple):
                value = tuple(value)  # a list in an option file
                setattr(self, own.name, value)
            check_option(own.name.rstrip('_'), value, own.metadata)

    def prepare(self) -> 'DistillLoss':
        """Loads what it needs beyond its options; the model calls it once, before ``to()`` and the first forward.

        Not part of construction, which must stay cheap: it is how an option file is checked (options/build.py).
        """
        return self

    @abstractmethod
    def forward(self, state: DistillState) -> dict[str, Tensor]:
        """Named scalars. Those called ``l_*`` are weighted terms, and their sum is minimized; others are monitored."""


def sum_of(terms: Iterable[Tensor]) -> Tensor:
    """The sum of one term or more, which is a tensor: the built-in's type is ``Tensor | int``, as it begins with 0."""
    return cast(Tensor, sum(terms))


def check_option(key: str, value: Any, accepted: Mapping[str, Any]) -> None:
    """Refuses a value of ``train.distill_opt.KEY``, a list by its least or largest item. ``accepted`` is an option's
    metadata."""
    choices, least, above, most = (accepted.get(name) for name in ('choices', 'least', 'above', 'most'))
    number = min(value, default=math.inf) if isinstance(value, tuple) else value
    largest = max(value, default=-math.inf) if isinstance(value, tuple) else value
    if choices and value not in choices:
        raise UserError(f'train.distill_opt.{key}: {value!r}; accepted: {", ".join(choices)}')
    if least is not None and number < least:
        raise UserError(f'train.distill_opt.{key}: {number}; accepted: {least} or more')
    if above is not None and number <= above:
        raise UserError(f'train.distill_opt.{key}: {number}; accepted: more than {above}')
    if most is not None and largest > most:
        raise UserError(f'train.distill_opt.{key}: {largest}; accepted: {most} or less')


def weighted_taps(layer_weights: Sequence[float], state: DistillState) -> list[tuple[float, Tensor, Tensor]]:
    """(w_j, F_j^S, F_j^T) of each tap; features are (N, C_j, H_j, W_j).

    Raises:
        UserError: not one weight per tap.
    """
    if not len(layer_weights) == len(state.student_feats) == len(state.teacher_feats):
        raise UserError(
            f'train.distill_opt.layer_weights: {len(layer_weights)} weights for {len(state.student_feats)} taps; '
            'accepted: one weight per tap'
        )
    return list(zip(layer_weights, state.student_feats, state.teacher_feats))


def check_batch(state: DistillState, loss: str) -> None:
    """Refuses a batch, over all ranks, in which a sample has no others to be compared with."""
    n = len(state.gt) * ranks()
    if n < 2:
        raise UserError(
            f'datasets.train.batch_size_per_gpu: {loss} got a batch of {n}; accepted: 2 or more over all ranks, since '
            'its negatives are the other samples'
        )


def needs_regressor(mode: str, student_feat: Tensor, teacher_feat: Tensor) -> bool:
    """Whether a loss whose ``regressor`` is ``mode`` sees a tap's student feature through a regressor, (N, C, H, W)."""
    return mode == 'always' or (mode == 'auto' and student_feat.shape[1] != teacher_feat.shape[1])


def tap_place(pair: int, pairs: int, teachers: int = 1) -> str:
    """The tap of a pair of features in messages: those of several teachers are one's after the other's."""
    teacher, tap = divmod(pair, max(1, pairs // teachers))
    return f'taps[{tap}]' + f' of teacher[{teacher}]' * (teachers > 1)


def loss_blocks(loss_opt: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """The losses of ``train.distill_opt`` or ``train.pixel_opt``: one under the name '', or several by their names."""
    if loss_opt is None:
        return {}
    are_blocks = [isinstance(own, (dict, type(None))) for own in loss_opt.values()]
    if 'type' in loss_opt or not loss_opt or not all(are_blocks):
        return {'': loss_opt}
    return {name: own for name, own in loss_opt.items() if own is not None}


def argument_of(key: str) -> str:
    """The argument that an option key stands for: that of ``lambda``, a word of Python's, is ``lambda_``."""
    return key + '_' * keyword.iskeyword(key)


def build_loss(loss_opt: Mapping[str, Any]) -> nn.Module:
    """Builds a registered loss as BasicSR's ``build_loss``, with the first value of schedules."""
    kwargs = {argument_of(key): value_at(value, 0) for key, value in loss_opt.items() if key != 'type'}
    return LOSS_REGISTRY.get(loss_opt['type'])(**kwargs)
