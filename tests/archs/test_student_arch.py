"""Both students: they differ from BasicSR's networks in their defaults only."""

import copy
import inspect
import pickle
from dataclasses import replace

import pytest
import torch
from basicsr.archs.edsr_arch import EDSR
from basicsr.archs.rcan_arch import RCAN
from basicsr.utils.registry import ARCH_REGISTRY

from facd_basicsr.archs import CONVOLUTIONAL, EDSRStudent, RCANStudent
from facd_basicsr.options.schema import network_keys

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


@pytest.mark.parametrize(('student', 'stock'), [(EDSRStudent, EDSR), (RCANStudent, RCAN)])
def test_a_students_keys_are_the_stock_networks_but_for_the_defaults(student, stock):
    ours, theirs = network_keys(student), network_keys(stock)
    assert ours.keys() == theirs.keys()
    for key, own in ours.items():
        assert replace(own, required=theirs[key].required) == theirs[key] and own.meaning == theirs[key].meaning != ''
        assert not own.required
    assert ours['num_in_ch'].default == ours['num_out_ch'].default == 3
    assert ours['rgb_mean'].default == [0.4488, 0.4371, 0.404]
    assert ours['num_block'].default == {EDSRStudent: 16, RCANStudent: 6}[student]


@pytest.mark.parametrize('student', [EDSRStudent, RCANStudent])
def test_a_student_is_copied_and_pickled_as_what_it_is(student):
    net = student(upscale=2, **SMALL[student])
    x = torch.rand(1, 3, 5, 7)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert type(other) is student and type(other) in CONVOLUTIONAL and type(other).__name__ == student.__name__
        assert torch.equal(other(x), net(x))
