"""A weight that changes over the iterations of training."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

SHAPES: dict[str, Callable[[float], float]] = {
    'linear': lambda done: done,
    'cosine': lambda done: (1 - math.cos(math.pi * done)) / 2,
    'step': math.floor,
}


@dataclass(frozen=True)
class Schedule:
    """From ``start`` to ``end`` over the first ``over`` iterations, and ``end`` from then on.

    Attributes:
        start, end: values.
        over: iterations, 1 or more.
        shape: ``linear``; ``cosine``, half a wave, flat at both ends; ``step``, ``start`` until ``over`` is reached.
    """

    start: float
    end: float
    over: int
    shape: str = 'linear'

    def at(self, iteration: int) -> float:
        """The value in an iteration; exactly ``start`` in 0, exactly ``end`` in ``over``."""
        done = SHAPES[self.shape](min(iteration / self.over, 1.0))
        return (1 - done) * self.start + done * self.end


def value_at(value: Any, iteration: int) -> Any:
    """A value of an option file in an iteration: a schedule's own, of a list each item's, any other as it is."""
    if isinstance(value, dict):
        return Schedule(**value).at(iteration)
    return [value_at(item, iteration) for item in value] if isinstance(value, (list, tuple)) else value


def items_of(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    """(place, value) of an option, or of each item of a list."""
    if not isinstance(value, list):
        yield place, value
        return
    for index, item in enumerate(value):
        yield f'{place}[{index}]', item


def is_scheduled(value: Any) -> bool:
    """Whether a value of an option file is a schedule, or a list with one."""
    return isinstance(value, dict) or (isinstance(value, (list, tuple)) and any(map(is_scheduled, value)))
