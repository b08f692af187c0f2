"""What training logged, and pictures of it."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator, ScalarEvent

POINTS = 100  # of a curve that are kept; more are averaged
BINS = 20  # points that are drawn of the share of rejected patches
ALPHA, VALIDATION = 'alpha', 'metrics/'

Curve = list[list[float]]  # [iteration, value], ...


def read_curves(tb_folder: Path) -> tuple[dict[str, Curve], float | None]:
    """The scalars that a training wrote for TensorBoard.

    Args:
        tb_folder: ``tb_logger/NAME``.

    Returns:
        Every scalar's curve, of at most ``POINTS`` points, and the median seconds of an iteration, from the times of
        neighbouring log lines; None where there are too few.
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
    """A resumed training repeats what came after its state."""
    by_step = {event.step: event for event in events}
    return [by_step[step] for step in sorted(by_step)]


def _thinned(events: Sequence[ScalarEvent]) -> Curve:
    groups = np.array_split(np.array([[event.step, event.value] for event in events]), min(POINTS, len(events)))
    return [[float(group[-1, 0]), round(float(group[:, 1].mean()), 5)] for group in groups]


def draw_curves(records: Mapping[str, Sequence[Mapping[str, Any]]], title: str) -> Figure:
    """Validation PSNR-Y by iterations and by training time, and the share of rejected patches (Fig. 2).

    A line is the mean over seeds, the band around it their range.

    Args:
        records: the records of every method, one for each seed.
        title: above the picture.
    """
    tags = [tag for runs in records.values() for run in runs for tag in run['curves']]
    validation = next((tag for tag in tags if tag.startswith(VALIDATION) and tag.endswith('/psnr_y')), None)
    panels = []
    if validation is not None:
        name = validation.split('/')[1]
        panels.append((validation, f'PSNR-Y on {name}, dB', 'iterations', lambda run: 1.0))
        if all(run['seconds_per_iter'] for runs in records.values() for run in runs):
            minutes = ('minutes of training', lambda run: run['seconds_per_iter'] / 60)
            panels.append((validation, f'PSNR-Y on {name}, dB', *minutes))
    if ALPHA in tags:
        panels.append((ALPHA, 'share of rejected patches', 'iterations', lambda run: 1.0))
    figure = Figure(figsize=(6 * max(1, len(panels)), 4.5), layout='constrained')
    figure.suptitle(title)
    for axes, (tag, label, x_label, unit) in zip(np.atleast_1d(figure.subplots(1, max(1, len(panels)))), panels):
        for method, runs in records.items():
            drawn = [run for run in runs if tag in run['curves']]
            if not drawn or (tag == ALPHA and all(value == 1 for run in drawn for _, value in run['curves'][tag])):
                continue
            steps, y = _common(drawn, tag)
            x = steps * np.mean([unit(run) for run in drawn])
            if tag == ALPHA:  # of single batches: a share of few samples, so neighbours are averaged
                x, y = (_averaged(values, BINS) for values in (x, 1 - y))
            (line,) = axes.plot(x, y.mean(0), label=method)
            axes.fill_between(x, y.min(0), y.max(0), color=line.get_color(), alpha=0.15)
        axes.set(xlabel=x_label, ylabel=label)
        axes.legend(fontsize='small')
    return figure


def _common(runs: Sequence[Mapping[str, Any]], tag: str) -> tuple[np.ndarray, np.ndarray]:
    """The iterations at which all runs have a value, and the values, (seeds, points).

    A training that was killed loses the last lines that TensorBoard had not written yet.
    """
    by_step = [{step: value for step, value in run['curves'][tag] if value is not None} for run in runs]
    steps = sorted(set.intersection(*(set(points) for points in by_step)))
    return np.array(steps), np.array([[points[step] for step in steps] for points in by_step])


def _averaged(values: np.ndarray, bins: int) -> np.ndarray:
    """Means of neighbours along the last axis, so that at most ``bins`` are left."""
    parts = np.array_split(values, min(bins, values.shape[-1]), axis=-1)
    return np.stack([part.mean(-1) for part in parts], axis=-1)
