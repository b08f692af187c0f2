"""The scalars that a run wrote for TensorBoard."""

import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator, ScalarEvent

KEPT_POINTS = 100  # of a curve that are kept; more are averaged

ScalarCurve = list[list[float]]  # [iteration, value], ...


def read_curves(tb_folder: Path) -> tuple[dict[str, ScalarCurve], float | None]:
    """The scalars that a run wrote for TensorBoard.

    Args:
        tb_folder: ``tb_logger/NAME``.

    Returns:
        Every scalar's curve, of at most ``KEPT_POINTS`` points, and the median seconds of an iteration, from the times
        of neighboring log lines; None where there are too few.
    """
    events = EventAccumulator(str(tb_folder), size_guidance={'scalars': 0})
    events.Reload()
    scalars = {tag: _last_of_each_step(events.Scalars(tag)) for tag in events.Tags()['scalars']}
    logged = next((points for tag, points in scalars.items() if tag.startswith('losses/')), [])
    rates = [
        (later.wall_time - earlier.wall_time) / (later.step - earlier.step)
        for earlier, later in itertools.pairwise(logged)
    ]
    return {tag: _thinned(points) for tag, points in scalars.items()}, statistics.median(rates) if rates else None


def _last_of_each_step(events: Sequence[ScalarEvent]) -> list[ScalarEvent]:
    """A resumed run repeats what came after its state."""
    by_step = {event.step: event for event in events}
    return [by_step[step] for step in sorted(by_step)]


def _thinned(events: Sequence[ScalarEvent]) -> ScalarCurve:
    groups = np.array_split(np.array([[event.step, event.value] for event in events]), min(KEPT_POINTS, len(events)))
    return [[float(group[-1, 0]), round(float(group[:, 1].mean()), 5)] for group in groups]
