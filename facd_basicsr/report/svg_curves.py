"""Learning curves as inline SVG, in the page's colors."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jinja2 import Environment, PackageLoader
from matplotlib.ticker import LogLocator, MaxNLocator

from facd_basicsr.evaluation.tables import column_spans

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 8, 38  # around the axes
COLORS = 4  # of the page's style
DRAWN_POINTS = 240  # of a line that are drawn as they are; of more, the least and largest of each of half as many parts
MARKED = 40  # a line of fewer points, that are exact, has a mark at each
SMOOTHED = 24  # a line with as many points is drawn with its moving average
WINDOWS = 20  # the average is over this part of the points
DECADE = 10  # a positive curve that spans more is drawn on a logarithmic axis


@dataclass(frozen=True)
class Panel:
    """One picture.

    Attributes:
        title, note: above it; what the curves are, and in a few words what they mean.
        unit: along the vertical axis.
        lines: by label, values by iteration; what is not finite is not drawn.
        noisy: whether lines are of single batches, so that a moving average is drawn too.
        limits: of the vertical axis; None: those of the values.
        borders: iterations at which a stage ends and another begins, as vertical lines.
    """

    title: str
    note: str
    unit: str
    lines: Mapping[str, Mapping[int, float]]
    noisy: bool = False
    limits: tuple[float, float] | None = None
    borders: Sequence[int] = ()


@dataclass(frozen=True)
class Axis:
    """Values to pixels: ``low`` is drawn at ``start``, ``high`` at ``end``."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log10(v) if self.is_log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        locator = LogLocator(subs=(1.0, 2.0, 5.0)) if self.is_log else MaxNLocator(5, steps=[1, 2, 2.5, 5, 10])
        values = [float(value) for value in locator.tick_values(self.low, self.high)]
        inside = [value for value in values if self.low <= value <= self.high]
        powers = [value for value in inside if math.log10(value).is_integer()] if self.is_log else []
        return powers if len(powers) > 2 else inside


def moving_average(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of the ``window`` values around each; at the ends of those that are there: (N,) -> (N,)."""
    ones = np.ones(window)
    return np.convolve(values, ones, 'same') / np.convolve(np.ones(len(values)), ones, 'same')


def thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most ``DRAWN_POINTS`` points of a curve, (N,) each: the least and the largest value of every part of it."""
    if len(steps) <= DRAWN_POINTS:
        return steps, values
    kept = []
    for part in np.array_split(np.arange(len(steps)), DRAWN_POINTS // 2):
        kept += sorted({part[values[part].argmin()], part[values[part].argmax()]})
    return steps[kept], values[kept]


def number(value: float) -> str:
    """A tick's label: ``0.25``, ``2e-4``, ``12k``, ``1.5M``."""
    if value != 0 and abs(value) < 1e-2:
        mantissa, exponent = f'{value:.2e}'.split('e')
        return f'{float(mantissa):g}e{int(exponent)}'
    for size, letter in ((1e6, 'M'), (1e4, 'k')):
        if abs(value) >= size:
            return f'{value / (1e3 if letter == "k" else size):g}{letter}'
    return f'{value:g}'


TEMPLATES = Environment(loader=PackageLoader(__package__, ''), autoescape=True, trim_blocks=True, lstrip_blocks=True)
TEMPLATES.filters |= {'number': number, 'pixel': '{:.1f}'.format, 'column_spans': column_spans}


def svg(panel: Panel) -> str:
    """The picture of a panel as an ``svg`` element, of the classes that the page's style knows.

    Its data attributes hold the axes, by which the page's script finds the values under the pointer.
    """
    lines = {label: _finite(line) for label, line in panel.lines.items()}
    x, y = _axes([line for line in lines.values() if len(line[0])], panel)
    drawn = []  # label, classes, points, whether each has a mark
    for index, (label, (steps, values)) in enumerate(lines.items()):
        color = f'c{index % COLORS}'
        averaged = panel.noisy and len(steps) >= SMOOTHED
        has_marks = not panel.noisy and len(steps) <= MARKED
        points = list(zip(*thinned(steps, values)))
        drawn.append((label, f'{color} raw' if averaged else color, points, has_marks))
        if averaged:
            smooth = moving_average(values, max(3, len(values) // WINDOWS))
            drawn.append((label, f'{color} mean', list(zip(*thinned(steps, smooth))), False))
    return TEMPLATES.get_template('curves.svg').render(
        panel=panel, described=described(panel), x=x, y=y, lines=drawn, width=WIDTH, height=HEIGHT
    )


def described(panel: Panel) -> str:
    """Each line's last value, of a noisy one the last average, in words."""
    found = []
    for label, line in panel.lines.items():
        steps, values = _finite(line)
        if not len(steps):
            found.append(f'{label} has no finite value')
            continue
        averaged = panel.noisy and len(steps) >= SMOOTHED
        last = values[-max(3, len(values) // WINDOWS) :].mean() if averaged else values[-1]
        found.append(f'{label.partition(":")[0] + " " if len(panel.lines) > 1 else ""}{last:.4g}')
    last_step = max((max(line) for line in panel.lines.values() if line), default=0)
    return f'{", ".join(found)} at {last_step:,}'


def _finite(line: Mapping[int, float]) -> tuple[np.ndarray, np.ndarray]:
    points = np.array([(step, line[step]) for step in sorted(line) if math.isfinite(line[step])]).reshape(-1, 2)
    return points[:, 0], points[:, 1]


def _axes(lines: Sequence[tuple[np.ndarray, np.ndarray]], panel: Panel) -> tuple[Axis, Axis]:
    steps = np.concatenate([steps for steps, _ in lines]) if lines else np.array([0.0, 1.0])
    values = np.concatenate([values for _, values in lines]) if lines else np.array([0.0, 1.0])
    low, high = (values.min(), values.max()) if panel.limits is None else panel.limits
    is_log = panel.limits is None and panel.noisy and low > 0 and high / low > DECADE
    if is_log:
        low, high = low / 1.1, high * 1.1
    elif panel.limits is None:
        margin = 0.06 * (high - low) or abs(high) * 0.05 or 1.0
        low, high = low - margin, high + margin
    x = Axis(min(0.0, float(steps.min())), float(steps.max()) or 1.0, LEFT, WIDTH - RIGHT)
    return x, Axis(float(low), float(high), HEIGHT - BOTTOM, TOP, is_log)
