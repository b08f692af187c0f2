import math

from basicsr.archs.ecbsr_arch import ECBSR

from facd_basicsr.comparison.run_record import KEPT_POINTS, _size, curves
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
