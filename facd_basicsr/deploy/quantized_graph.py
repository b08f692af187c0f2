"""The int8 ONNX file of a student that was trained with ``train.quantize``: its own ranges, without calibration."""

import copy
import dataclasses
from collections import Counter
from typing import Any

import numpy as np

from facd_basicsr.deploy.export_formats import onnx_bytes, silence
from facd_basicsr.deploy.student import Student
from facd_basicsr.errors import UserError
from facd_basicsr.runtime.fake_quantization import FakeQuantization

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
    _Constants(model.graph).store_integers()
    model.doc_string += ' Weights are int8, features between operators uint8.'
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


class _Constants:
    """A graph's constants by name, and its nodes by what they make and read."""

    def __init__(self, graph: Any) -> None:
        from onnx import numpy_helper

        self._graph = graph
        self._values = {own.name: numpy_helper.to_array(own) for own in graph.initializer}
        for node in [node for node in graph.node if node.op_type == 'Constant']:
            if node.attribute[0].name == 'value':
                self._values[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        self._makers = {name: node for node in graph.node for name in node.output}
        self._reads = Counter(name for node in graph.node for name in node.input)

    def store_integers(self) -> None:
        """Weights and biases as the integers that QDQ makes of them, and factors of a feature as part of its scale."""
        for node in [*self._graph.node]:
            if node.op_type in ('Conv', 'ConvTranspose', 'Gemm') and len(node.input) == 3:
                self._store_bias(node)
        for node in [node for node in self._graph.node if node.op_type == 'QuantizeLinear']:
            if node.input[0] in self._values:
                self._store_weight(node)
            else:
                self._fold_factor(node)
        self._remove_unread()

    def _store_bias(self, node: Any) -> None:
        """``b`` as int32 in steps of the feature's scale times the weight's, in which an integer operator sums."""
        from onnx import helper

        feature, weight = (self._makers.get(name) for name in node.input[:2])
        if feature is None or weight is None or node.input[2] not in self._values:
            return
        if feature.op_type != 'DequantizeLinear' or weight.op_type != 'DequantizeLinear':
            return
        bias, scale = self._values[node.input[2]].astype(np.float64), self._values[feature.input[1]]
        scales = self._values[weight.input[1]]
        # of a channel whose weights are next to nothing: coarser steps of them, or its bias would not fit
        scales = np.maximum(scales, (np.abs(bias) / BIAS_LEVELS / scale * 1.001).astype(np.float32))
        self._values[weight.input[1]] = scales
        steps = scale * scales
        name = node.input[2]
        self._add(f'{name}_quantized', np.round(bias / steps).clip(-BIAS_LEVELS, BIAS_LEVELS).astype(np.int32))
        self._add(f'{name}_scale', steps)
        read = helper.make_node(
            'DequantizeLinear', [f'{name}_quantized', f'{name}_scale'], [f'{name}_read'], axis=0, name=f'{name}_read'
        )
        self._graph.node.insert([*self._graph.node].index(node), read)
        node.input[2] = f'{name}_read'

    def _store_weight(self, node: Any) -> None:
        """The weight's integers in the place of its QuantizeLinear."""
        axis = next((own.i for own in node.attribute if own.name == 'axis'), 1)
        weight, scales = self._values[node.input[0]], self._values[node.input[1]]
        shape = [-1 if other == axis else 1 for other in range(weight.ndim)]
        integers = np.round(weight / scales.reshape(shape)).clip(-128, 127).astype(np.int8)
        self._add(f'{node.input[1]}_stored', scales)  # those of _store_bias
        self._add(f'{node.input[0]}_quantized', integers)
        for reader in self._graph.node:
            if reader.op_type == 'DequantizeLinear' and reader.input[0] == node.output[0]:
                reader.input[0], reader.input[1] = f'{node.input[0]}_quantized', f'{node.input[1]}_stored'
        self._graph.node.remove(node)

    def _fold_factor(self, node: Any) -> None:
        """Of a convolution's output times a constant, such as ``res_scale``, the steps that it has before: so an
        integer operator ends where it is quantized."""
        times = self._makers.get(node.input[0])
        if times is None or times.op_type != 'Mul' or self._reads[node.input[0]] > 1:
            return
        factors = [name for name in times.input if name in self._values and self._values[name].size == 1]
        features = [name for name in times.input if name not in factors]
        if len(factors) != 1 or len(features) != 1 or self._values[factors[0]].item() <= 0:
            return
        scale = self._values[node.input[1]] / self._values[factors[0]].reshape(())
        self._add(f'{node.output[0]}_scale', scale.astype(np.float32))
        node.input[0], node.input[1] = features[0], f'{node.output[0]}_scale'

    def _add(self, name: str, values: np.ndarray) -> None:
        from onnx import numpy_helper

        self._graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))

    def _remove_unread(self) -> None:
        while True:
            read = {name for node in self._graph.node for name in node.input} | {own.name for own in self._graph.output}
            unread = [node for node in self._graph.node if not read.intersection(node.output)]
            if not unread:
                break
            for node in unread:
                self._graph.node.remove(node)
        for own in [own for own in self._graph.initializer if own.name not in read]:
            self._graph.initializer.remove(own)
