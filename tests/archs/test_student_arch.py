"""Both students: they differ from BasicSR's networks in their defaults only."""

import inspect

import pytest
import torch
from basicsr.archs.edsr_arch import EDSR
from basicsr.archs.rcan_arch import RCAN
from basicsr.utils.registry import ARCH_REGISTRY

from facd_basicsr.archs import EDSRStudent, RCANStudent

SMALL = {EDSRStudent: {'num_feat': 4, 'num_block': 2}, RCANStudent: {'num_feat': 16, 'num_group': 2, 'num_block': 1}}


@pytest.mark.parametrize('student', [EDSRStudent, RCANStudent])
def test_student_is_registered(student):
    assert ARCH_REGISTRY.get(student.__name__) is student


@pytest.mark.parametrize(
    ('build', 'parameters'),
    [
        # Section 4, Table 1: 43 M and 1.5 M, 15.59 M and 5.17 M, at x4
        (lambda: EDSR(3, 3, num_feat=256, num_block=32, res_scale=0.1), 43_089_923),
        (EDSRStudent, 1_517_571),
        (lambda: RCAN(3, 3, num_block=20), 15_592_355),
        (RCANStudent, 5_171_315),
    ],
)
def test_sizes_are_those_of_table_1(build, parameters):
    with torch.device('meta'):
        net = build()
    assert sum(p.numel() for p in net.parameters()) == parameters


@pytest.mark.parametrize('scale', [2, 3, 4])
@pytest.mark.parametrize(('student', 'stock'), [(EDSRStudent, EDSR), (RCANStudent, RCAN)])
def test_a_students_weights_load_strictly_in_the_stock_network_and_give_the_same_output(student, stock, scale):
    ours = student(upscale=scale, **SMALL[student])
    theirs = stock(3, 3, upscale=scale, **SMALL[student])
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.rand(2, 3, 5, 7)
    assert torch.equal(ours(x), theirs(x))
    assert ours(x).shape == (2, 3, 5 * scale, 7 * scale)


@pytest.mark.parametrize(('student', 'stock'), [(EDSRStudent, EDSR), (RCANStudent, RCAN)])
def test_a_student_takes_the_stock_networks_arguments_in_their_order(student, stock):
    assert list(inspect.signature(student).parameters) == list(inspect.signature(stock).parameters)
