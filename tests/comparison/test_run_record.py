import math
from datetime import datetime, timedelta, timezone

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


def lines(*stages: list[float]) -> list[dict]:
    """A line after every 5 iterations of a run whose stages have these seconds between them, 12 each."""
    found, time = [], datetime(2026, 1, 1, tzinfo=timezone.utc)
    for seconds in (value for stage in stages for value in stage):
        time += timedelta(seconds=seconds)
        found.append({'iter': 5 * (len(found) + 1), 'timestamp': time.isoformat()})
    return found


def test_a_step_takes_the_median_without_the_first_third():
    first, rest = [9.0, 3.0, 1.0, 0.5], [0.2, 0.2, 0.1, 0.3, 0.2, 0.2, 0.2, 7.0]
    assert step_seconds(lines(first + rest), [600]) == pytest.approx(0.04)


def test_stages_count_by_their_iterations():
    slow, fast = [9.0] * 4 + [0.4] * 8, [9.0] * 4 + [0.1] * 8
    # 100 iterations of 80 ms and 300 of 20 ms
    assert step_seconds(lines(slow, fast), [100, 300]) == pytest.approx((100 * 0.08 + 300 * 0.02) / 400)
