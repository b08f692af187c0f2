"""Differences between methods, seed by seed, and whether they are more than seeds differ."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Spread(NamedTuple):
    """Mean and standard deviation (n - 1 in the denominator) of values; without a deviation where there is one."""

    mean: float
    sd: float | None
    n: int


class Difference(NamedTuple):
    """A method minus the baseline over the seeds that both have.

    Attributes:
        mean: of the differences.
        sd: of the differences, n - 1 in the denominator; None where there is one.
        n: how many seeds.
        p: of Student's paired t-test, two-sided; None where there is one seed or a value is not finite. 0 where all
            differences are equal.
    """

    mean: float
    sd: float | None
    n: int
    p: float | None


def spread(values: Sequence[float]) -> Spread:
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(float(np.mean(values)), sd, len(values))


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """Of {seed: value} of a method and of the baseline; None where they have no seed in common."""
    differences = [values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())]
    if not differences:
        return None
    mean, sd, n = spread(differences)
    if sd is None or not math.isfinite(mean):
        p = None
    elif sd == 0:
        p = 1.0 if mean == 0 else 0.0
    else:
        p = float(2 * stats.t.sf(abs(mean) / (sd / math.sqrt(n)), n - 1))
    return Difference(mean, sd, n, p)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's correction for several tests at once; None stays None.

    The chance that any of the differences called significant at a level is none stays below that level.
    """
    order = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[index] = largest
    return adjusted
