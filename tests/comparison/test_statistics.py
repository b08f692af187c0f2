import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from facd_basicsr.comparison.summary import holm, paired_difference, spread


def test_the_standard_deviation_has_one_degree_less_than_values():
    assert spread([1.0, 3.0]) == (2.0, pytest.approx(math.sqrt(2)))
    assert spread([5.0]) == (5.0, None)


def test_a_difference_is_taken_seed_by_seed_over_the_seeds_that_both_have():
    found = paired_difference({0: 36.2, 1: 36.5, 3: 99.0}, {0: 36.0, 1: 36.4, 2: 0.0})
    assert found.mean == pytest.approx(0.15)
    # t = 0.15 / (0.0707 / sqrt 2) = 3 with one degree of freedom: p = 1 - 2 atan(3) / pi
    assert found.p == pytest.approx(1 - 2 * math.atan(3) / math.pi)


def test_one_seed_has_no_significance():
    assert paired_difference({0: 1.0}, {0: 0.5}) == (0.5, None)
    assert paired_difference({0: 1.0}, {1: 0.5}) is None


def test_equal_differences_are_certain_and_none_at_all_is_nothing():
    assert paired_difference({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0}).p == 0.0
    assert paired_difference({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}).p == 1.0


@given(st.lists(st.floats(30, 40), min_size=3, max_size=8, unique=True))
def test_the_p_value_is_scipys(values):
    baseline = {seed: 35.0 + seed / 7 for seed in range(len(values))}
    found = paired_difference(dict(enumerate(values)), baseline)
    assert found.p == pytest.approx(stats.ttest_rel(values, list(baseline.values())).pvalue)


def test_a_value_that_is_not_finite_has_no_significance_and_leaves_the_others_alone():
    assert paired_difference({0: math.nan, 1: 1.0}, {0: 1.0, 1: 2.0}).p is None


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.04: times 3, 2, 1, and never less than the one before
    assert holm([0.04, 0.01, None, 0.02]) == [pytest.approx(0.04), pytest.approx(0.03), None, pytest.approx(0.04)]
    assert holm([0.6, 0.7]) == [1.0, 1.0]
