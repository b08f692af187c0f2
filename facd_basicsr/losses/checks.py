"""What losses refuse, in the words of the option file."""

from collections.abc import Collection, Sequence

from facd_basicsr.errors import UserError
from facd_basicsr.losses.cross_rank import ranks
from facd_basicsr.losses.distill_state import DistillState


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
