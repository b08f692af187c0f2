"""Schedules of weights."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facd_basicsr.losses.schedule import SHAPES, Schedule, is_scheduled, value_at

WEIGHT = st.floats(0, 1e6)


@pytest.mark.parametrize(
    ('shape', 'values'),
    [
        ('linear', [4.0, 3.0, 2.0, 1.0, 0.0, 0.0]),
        ('cosine', [4.0, 2 + 2**0.5, 2.0, 2 - 2**0.5, 0.0, 0.0]),  # 2 + 2 cos(pi / 4)
        ('step', [4.0, 4.0, 4.0, 4.0, 0.0, 0.0]),
    ],
)
def test_a_schedule_from_4_to_0_over_200_equals_values_worked_by_hand(shape, values):
    schedule = Schedule(4, 0, 200, shape)
    assert [schedule.at(iteration) for iteration in (0, 50, 100, 150, 200, 500)] == pytest.approx(values, abs=1e-12)


@given(WEIGHT, WEIGHT, st.integers(1, 1000), st.sampled_from(sorted(SHAPES)), st.integers(0, 2000))
def test_a_schedule_stays_between_its_ends_and_has_them_exactly(start, end, over, shape, iteration):
    schedule = Schedule(start, end, over, shape)
    assert schedule.at(0) == start and schedule.at(over) == schedule.at(over + iteration) == end
    assert min(start, end) <= schedule.at(iteration) * (1 + 1e-12) and schedule.at(iteration) <= max(start, end) * (
        1 + 1e-12
    )


def test_the_items_of_a_list_may_be_schedules():
    fading = {'start': 1.0, 'end': 0.0, 'over': 4}
    assert value_at([0.5, fading], 1) == [0.5, 0.75]
    assert [is_scheduled(value) for value in (fading, [0.5, fading], [0.5], 4, 'upper')] == [
        True,
        True,
        False,
        False,
        False,
    ]
