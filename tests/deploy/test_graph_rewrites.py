"""Rewrites of ONNX graphs beside what is worked out by hand, onnxruntime, and its lists of delegates' operators."""

import io
import re
from collections import Counter
from itertools import product

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from basicsr.archs import build_network
from conftest import REPOSITORY
from networks import NETWORKS
from onnx import ModelProto, numpy_helper
from onnxruntime.tools.mobile_helpers import usability_checker
from torch import Tensor, nn

from facd_basicsr.archs.reparameterization import reparameterized
from facd_basicsr.deploy.export_formats import OPSETS, ROUNDING, GraphOptions, onnx_bytes
from facd_basicsr.deploy.graph_rewrites import fold_shapes, for_mobile
from facd_basicsr.deploy.runtimes import OnnxNetwork
from facd_basicsr.deploy.student import Student, describe_network
from facd_basicsr.runtime.metrics import photograph_input

pytestmark = pytest.mark.filterwarnings('ignore')  # of torch's exporter
SIZE = (24, 40)  # height and width
FOR_PHONES = ('EDSRStudent', 'RCANStudent', 'SRVGGNetCompact', 'ECBSR', 'SPAN')  # what delegates take whole
OTHERS = ('EDSR', 'RCAN', 'SwinIR', 'RRDBNet x2', 'RRDBNet x4')
STUDENTS = {row.name: row for row in NETWORKS if row.name in {*FOR_PHONES, *OTHERS}}


def graph_of(net: nn.Module, lq: Tensor, *, any_size: bool = False) -> ModelProto:
    """As torch writes it."""
    buffer = io.BytesIO()
    axes = {'lq': {2: 'h', 3: 'w'}} if any_size else None
    torch.onnx.export(net.eval(), (lq,), buffer, input_names=['lq'], dynamic_axes=axes, opset_version=17, dynamo=False)
    return onnx.load_from_string(buffer.getvalue())


def output(model: ModelProto, lq: Tensor) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    (found,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {'lq': lq.numpy()})
    return found


def operators(model: ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def student_of(name: str) -> Student:
    row = STUDENTS[name]
    torch.manual_seed(0)
    net = build_network(row.block).eval().requires_grad_(False)
    return Student(reparameterized(net), describe_network(row.block, row.scale))


class Upsampler(nn.Module):
    """A convolution, ``between``, and PixelShuffle."""

    def __init__(self, between: nn.Module, **options: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(4, 12, 3, padding=1, **options), between, nn.PixelShuffle(2))

    def forward(self, lq: Tensor) -> Tensor:
        return self.layers(lq)


class Plus(nn.Module):
    """What it is given plus a function of it."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self.other = other

    def forward(self, features: Tensor) -> Tensor:
        return features + self.other(features)


def test_the_channels_of_a_convolution_are_put_in_the_order_that_is_worked_out_by_hand():
    conv = nn.Conv2d(1, 8, 1)
    with torch.no_grad():
        conv.weight.copy_(torch.arange(8.0).view(8, 1, 1, 1))
        conv.bias.copy_(10 + torch.arange(8.0))
    model = graph_of(nn.Sequential(conv, nn.PixelShuffle(2)), torch.ones(1, 1, 2, 3))
    for_mobile(model)
    weight, bias = (numpy_helper.to_array(tensor).ravel().tolist() for tensor in model.graph.initializer)
    # CRD: the four pixels of channel 0, then of channel 1. DCR: the first pixel of both channels, the second of both...
    assert weight == [0, 4, 1, 5, 2, 6, 3, 7] and bias == [10, 14, 11, 15, 12, 16, 13, 17]
    assert operators(model) == {'Conv': 1, 'DepthToSpace': 1}


@pytest.mark.parametrize(
    ('net', 'convolutions'),
    [
        (Upsampler(nn.Identity()), 1),
        (Upsampler(nn.Identity(), bias=False), 1),
        (Upsampler(Plus(nn.Conv2d(12, 12, 1))), 3),  # the sum is read by a convolution, so a 1x1 convolution orders it
        (Upsampler(nn.PReLU(12)), 2),
        (Upsampler(nn.Identity(), groups=4), 2),
    ],
    ids=['convolution', 'without bias', 'sum', 'PReLU', 'groups'],
)
def test_what_is_before_pixelshuffle_gives_its_channels_in_order_or_a_1x1_convolution_does(net, convolutions):
    lq = torch.rand(2, 4, 5, 7) - 0.5
    model = graph_of(net, lq, any_size=True)
    expected = output(model, lq)
    for_mobile(model)
    found = operators(model)
    assert found['Conv'] == convolutions and found['PRelu'] == found['Identity'] == found['Constant'] == 0
    (node,) = (node for node in model.graph.node if node.op_type == 'DepthToSpace')
    assert onnx.helper.get_node_attr_value(node, 'mode') == b'DCR'
    np.testing.assert_allclose(output(model, lq), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize('slopes', [1, 4])
def test_a_prelu_is_the_same_number_for_number(slopes):
    prelu = nn.PReLU(slopes)
    nn.init.uniform_(prelu.weight, -2, 2)
    lq = torch.randn(1, 4, 6, 6)
    model = graph_of(prelu, lq)
    expected = output(model, lq)
    for_mobile(model)
    assert operators(model) == {'Relu': 1, 'Sub': 1, 'Mul': 1, 'Add': 1}
    assert np.array_equal(output(model, lq), expected)


def test_shapes_that_depend_on_the_input_stay_and_constant_ones_are_folded():
    class Flat(nn.Module):
        def forward(self, lq: Tensor) -> Tensor:
            return lq.repeat_interleave(4, 1)

    lq = torch.rand(1, 3, 4, 6)
    for any_size, shapes in ((True, 1), (False, 0)):
        model = graph_of(Flat(), lq, any_size=any_size)
        fold_shapes(model)
        assert operators(model)['Shape'] == shapes
        assert np.array_equal(output(model, lq), lq.repeat_interleave(4, 1).numpy())


def test_the_students_of_the_option_files_are_those_that_are_tested_here():
    pytest.importorskip('spandrel')
    files = (REPOSITORY / 'options' / 'train').rglob('*.yml')
    types = {
        name for path in files for name in re.findall(r'^network_g:\n  type: (\w+)', path.read_text(), re.MULTILINE)
    }
    assert types <= {row.block['type'] for row in STUDENTS.values()}


# SwinIR is the slowest to write
QUICK = {(is_static, is_static, name) for is_static in (False, True) for name in STUDENTS if name != 'SwinIR'}
QUICK |= {(True, False, 'EDSRStudent'), (False, True, 'EDSRStudent')}


@pytest.mark.parametrize(
    ('is_static', 'mobile', 'name'),
    [
        pytest.param(*graph, marks=[] if graph in QUICK else pytest.mark.slow)
        for graph in product((False, True), (False, True), STUDENTS)
    ],
)
def test_a_students_graph_has_no_control_flow_and_what_the_options_say(is_static, mobile, name, tmp_path):
    student = student_of(name)
    options = GraphOptions(static=SIZE if is_static else None, batch=1 if is_static else None, mobile=mobile)
    content = onnx_bytes(student, half=False, options=options)
    model = onnx.load_from_string(content)
    found = operators(model)
    assert found.keys().isdisjoint({'If', 'Loop', 'Scan'}) and not any(
        attribute.HasField('g') for node in model.graph.node for attribute in node.attribute
    )
    if is_static:
        assert found.keys().isdisjoint({'Shape', 'Constant', 'Identity', 'Range'})
    if mobile and name != 'SwinIR':  # whose attention has operators that no delegate takes
        assert found.keys().isdisjoint({'PRelu', 'Tile', 'Constant', 'Identity'})
        assert not is_static or 'Transpose' not in found
    modes = {
        onnx.helper.get_node_attr_value(node, 'mode') for node in model.graph.node if node.op_type == 'DepthToSpace'
    }
    assert modes <= {b'DCR' if mobile else b'CRD'}
    if name != 'SwinIR' or is_static:  # in windows, which a graph of any size does not pad
        (tmp_path / 'a.onnx').write_bytes(content)
        lq = photograph_input('chelsea.png', 3, *SIZE)
        expected = student.net(lq)
        difference = (OnnxNetwork(tmp_path / 'a.onnx', 'IN')(lq) - expected).abs().max()
        assert difference <= ROUNDING * (expected.max() - expected.min())


@pytest.mark.parametrize('name', FOR_PHONES)
def test_delegates_take_every_operator_of_a_mobile_graph_as_one_piece(name):
    if name not in STUDENTS:
        pytest.skip('spandrel is not installed')
    content = onnx_bytes(student_of(name), False, GraphOptions(static=SIZE, batch=1, mobile=True))
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(content), strict_mode=True)
    resizes = operators(model)['Resize']  # whose empty input `roi` onnxruntime's tool takes for one without a size
    for found in (
        usability_checker.check_nnapi_partitions(model, require_fixed_input_sizes=True),
        usability_checker.check_coreml_partitions(model, True, 'coreml_supported_neuralnetwork_ops.md'),
        usability_checker.check_coreml_partitions(model, True, 'coreml_supported_mlprogram_ops.md'),
    ):
        assert not found.unsupported_ops and not found.ops_with_unsupported_rank
        assert found.num_supported_nodes + resizes == found.num_nodes and found.num_partitions == 1


@pytest.mark.parametrize('opset', OPSETS)
def test_every_opset_is_written_and_runs(opset, tmp_path):
    lq = photograph_input('chelsea.png', 3, *SIZE)
    for name in ('SRVGGNetCompact', 'ECBSR'):
        student, path = student_of(name), tmp_path / f'{name}.onnx'
        path.write_bytes(onnx_bytes(student, False, GraphOptions(opset, mobile=True)))
        assert [own.version for own in onnx.load(path).opset_import if own.domain == ''] == [opset]
        assert (OnnxNetwork(path, 'IN')(lq) - student.net(lq)).abs().max() < 1e-5


def test_float16_stays_float16():
    model = onnx.load_from_string(onnx_bytes(student_of('ECBSR'), True, GraphOptions(static=SIZE, mobile=True)))
    assert {tensor.data_type for tensor in model.graph.initializer} == {onnx.TensorProto.FLOAT16}
