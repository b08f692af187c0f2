import itertools
import math

import pytest
from basicsr.archs.ecbsr_arch import ECBSR

from facd_basicsr.comparison.run_record import KEPT_POINTS, _size, curves, step_seconds
from facd_basicsr.evaluation.methods import Method
from facd_basicsr.runs.run_folder import Metrics


def test_curves_have_tensorboards_tags():
    found = curves(Metrics({'l_sr': {10: 3.0}, 'alpha': {10: 0.5}, 'lr': {10: 1e-3}}, {'Set5': {'psnr_y': {20: 30.0}}}))
    assert found == {'losses/l_sr': [[10, 3.0]], 'alpha': [[10, 0.5]], 'metrics/Set5/psnr_y': [[20, 30.0]]}


def test_long_curves_are_averaged_to_a_hundred_points():
    curve = curves(Metrics({'alpha': {step: step % 2 for step in range(1, 4 * KEPT_POINTS + 1)}}))['alpha']
    assert len(curve) == KEPT_POINTS and curve[0] == [4.0, 0.5] and curve[-1] == [400.0, 0.5]


def test_a_point_that_is_not_finite_is_null():
    assert curves(Metrics({'alpha': {1: math.nan, 2: 1.0}}))['alpha'] == [[1.0, None], [2.0, 1.0]]


def test_a_student_that_fuses_is_stated_by_what_is_deployed():
    method = Method('mine', 2, ECBSR(3, 3, num_block=1, num_channel=8, with_idt=False, act_type='relu', scale=2))
    weights = 9 * (3 * 8 + 8 * 8 + 8 * 12)
    assert _size(method) == {'parameters': weights + 8 + 8 + 12, 'flops': 2 * weights * 360 * 640}


def steps(*stages: list[float]) -> list[tuple[int, float]]:
    """Of a run with a line after every 5 iterations, in whose stages an iteration took these seconds."""
    return list(zip(itertools.count(0, 5), (seconds for stage in stages for seconds in stage)))


def test_a_step_takes_the_median_without_the_first_third():
    first, rest = [9.0, 3.0, 1.0, 0.5], [0.04, 0.04, 0.02, 0.06, 0.04, 0.04, 0.04, 7.0]
    assert step_seconds(steps(first + rest), [60], [600], skipped=20) == pytest.approx(0.04)


def test_stages_count_by_their_iterations():
    slow, fast = [9.0] * 4 + [0.08] * 8, [9.0] * 4 + [0.02] * 8
    # 100 iterations of 80 ms and 300 of 20 ms
    found = step_seconds(steps(slow, fast), [60, 60], [100, 300], skipped=20)
    assert found == pytest.approx((100 * 0.08 + 300 * 0.02) / 400)


def test_a_run_in_stages_has_the_time_of_each():
    # 60 iterations of 10 ms and 40 of 50 ms; by the median of all it would be 100 of 10 ms
    assert 100 * step_seconds(steps([0.01] * 12, [0.05] * 8), [60, 40], [60, 40]) == pytest.approx(2.6)


def test_a_stage_without_lines_of_its_own_has_the_median_of_all():
    assert step_seconds(steps([0.02] * 12), [60, 3], [60, 3]) == pytest.approx(0.02)
    assert step_seconds([], [60], [60]) is None
