"""The int8 ONNX file of a student that was trained with ``train.quantize``: its own ranges, without calibration."""

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from facd_basicsr.deploy.export_formats import onnx_bytes, silence
from facd_basicsr.deploy.student import Student
from facd_basicsr.errors import UserError
from facd_basicsr.runtime.fake_quantization import FakeQuantization

if TYPE_CHECKING:
    from facd_basicsr.deploy.graph_rewrites import Graph

BIAS_LEVELS = 2**31 - 1  # of int32


def qat_onnx_bytes(student: Student, **graph: Any) -> bytes:
    """An ONNX file's content, as of :func:`facd_basicsr.deploy.export_formats.onnx_bytes`: the fake-quantized student
    as QuantizeLinear and DequantizeLinear (QDQ) around float operators, for which runtimes have integer ones.

    Weights are int8, symmetric, by output channel, biases int32, features uint8; what is in neither, the mean shift and
    the last layer's output, stays float.

    Args:
        student: as trained, on the CPU.
        graph: for ``onnx_bytes``.

    Raises:
        UserError: the student was not trained with ``train.quantize``, or ONNX does not support it.
    """
    import onnx

    from facd_basicsr.deploy.graph_rewrites import Graph  # needs onnx

    if student.quantization is None:
        raise UserError(
            f'CHECKPOINT: {student.description.architecture} has no ranges of its features; accepted: a checkpoint of '
            'a run with train.quantize'
        )
    quantization, net = FakeQuantization.of_entry(student.quantization, 'CHECKPOINT'), copy.deepcopy(student.net)
    quantization.exports = True
    quantization.attach(net)
    with silence():
        model = onnx.load_from_string(onnx_bytes(dataclasses.replace(student, net=net), half=False, **graph))
    _store_integers(Graph(model))
    model.doc_string += ' Weights are int8, features between operators uint8.'
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _store_integers(graph: 'Graph') -> None:
    """Weights and biases as the integers that QDQ makes of them, and factors of a feature as part of its scale."""
    for node in [*graph.nodes]:
        if node.op_type in ('Conv', 'ConvTranspose', 'Gemm') and len(node.input) == 3:
            _store_bias(graph, node)
    for node in [node for node in graph.nodes if node.op_type == 'QuantizeLinear']:
        if node.input[0] in graph.values:
            _store_weight(graph, node)
        else:
            _fold_factor(graph, node)
    graph.write()


def _store_bias(graph: 'Graph', node: Any) -> None:
    """``b`` as int32 in steps of the feature's scale times the weight's, in which an integer operator sums."""
    from onnx import helper

    feature, weight = map(graph.source, node.input[:2])
    name = node.input[2]
    if name not in graph.values or not feature.op_type == weight.op_type == 'DequantizeLinear':
        return
    bias, scale = graph.values[name].astype(np.float64), graph.values[feature.input[1]]
    scales = graph.values[weight.input[1]]
    # of a channel whose weights are next to nothing: coarser steps of them, or its bias would not fit
    scales = np.maximum(scales, (np.abs(bias) / BIAS_LEVELS / scale * 1.001).astype(np.float32))
    graph.values[weight.input[1]] = scales
    steps = scale * scales
    own = name if f'{name}_scale' not in graph.values else f'{node.output[0]}_bias'  # two nodes may have one bias
    names = [f'{own}_quantized', f'{own}_scale']
    integers = np.round(bias / steps).clip(-BIAS_LEVELS, BIAS_LEVELS).astype(np.int32)
    graph.values.update(zip(names, (integers, steps)))
    read = helper.make_node('DequantizeLinear', names, [f'{own}_read'], axis=0, name=f'{own}_read')
    graph.nodes.insert(graph.nodes.index(node), read)
    node.input[2] = f'{own}_read'


def _store_weight(graph: 'Graph', node: Any) -> None:
    """The weight's integers in the place of its QuantizeLinear."""
    axis = next((own.i for own in node.attribute if own.name == 'axis'), 1)
    weight, scales = (graph.values[name] for name in node.input[:2])  # scales: those of _store_bias
    shape = [-1 if other == axis else 1 for other in range(weight.ndim)]
    name = f'{node.input[0]}_quantized'
    graph.values[name] = np.round(weight / scales.reshape(shape)).clip(-128, 127).astype(np.int8)
    for reader in graph.readers(node.output[0]):
        reader.input[0] = name


def _fold_factor(graph: 'Graph', node: Any) -> None:
    """Of a convolution's output times a constant, such as ``res_scale``, the steps that it has before: so an integer
    operator ends where it is quantized."""
    times = graph.source(node.input[0])
    if times.op_type != 'Mul' or len(graph.readers(node.input[0])) > 1:
        return
    factors = [name for name in times.input if name in graph.values and graph.values[name].size == 1]
    features = [name for name in times.input if name not in factors]
    if len(factors) != 1 or len(features) != 1 or graph.values[factors[0]].item() <= 0:
        return
    name = f'{node.output[0]}_scale'
    graph.values[name] = (graph.values[node.input[1]] / graph.values[factors[0]].reshape(())).astype(np.float32)
    node.input[0], node.input[1] = features[0], name
