"""Rewrites of ONNX graphs for runtimes with few operators: others compute the same numbers."""

import copy
from collections.abc import Callable, Iterable

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

PIXELS_TO_CHANNELS = [0, 1, 3, 5, 2, 4]  # of (N, C, h, r, w, r): BasicSR's pixel_unshuffle


def fold_shapes(model: ModelProto) -> None:
    """Computes in place what depends on constants and constant shapes alone, as the shape that a Reshape takes.

    Only scalars and vectors: larger constants, as the masks of windows, would be as large in the file.
    """
    graph, found = Graph(model), True
    while found:  # a shape that is known now may make others known
        shapes, found = graph.shapes(), False
        for node in [*graph.nodes]:
            if node.op_type == 'DequantizeLinear':
                continue  # int8 of weights and biases
            inputs = {name: graph.values.get(name) for name in node.input if name}
            if node.op_type == 'Shape' and -1 not in shapes.get(node.input[0], [-1]):
                inputs = {node.input[0]: np.broadcast_to(np.float32(0), shapes[node.input[0]])}
            is_small = len(shapes.get(node.output[0], (0, 0))) < 2
            if inputs and is_small and all(value is not None for value in inputs.values()):
                function = helper.make_function('', 'node', [*inputs], node.output, [node], model.opset_import)
                (value,) = ReferenceEvaluator(function).run(None, inputs, {})
                graph.values[node.output[0]] = np.asarray(value)
                graph.nodes.remove(node)
                found = True
    graph.write()


def fix_sizes(model: ModelProto, batch: int | None, static: tuple[int, int] | None, scale: int) -> None:
    """Makes the number of a graph's images and their (height, width) constant in place; None: stays as it is."""
    sizes = {0: batch, **dict(enumerate(static or (), 2))}
    for value, factor in ((model.graph.input[0], 1), (model.graph.output[0], scale)):
        for axis, size in sizes.items():
            if size is not None:
                value.type.tensor_type.shape.dim[axis].dim_value = size * (factor if axis else 1)
    del model.graph.value_info[:]  # of any size
    fold_shapes(model)


def for_mobile(model: ModelProto) -> None:
    """Replaces in place what delegates of LiteRT, NNAPI and Core ML lack.

    - ``DepthToSpace`` of mode CRD, as torch writes PixelShuffle, becomes mode DCR, the one that they have. What is
      before it gives its channels in that order: a convolution by the order of its weights, ECBSR's repeated image
      (``Tile``) by ``Concat``, and anything else by a 1x1 convolution.
    - ``PRelu`` becomes ``Relu``, ``Sub``, ``Mul`` and ``Add``.
    - The six dimensions of BasicSR's pixel_unshuffle become a strided convolution, if the size is constant.

    Every number stays what it was, but for the order in which a runtime adds up.
    """
    graph = Graph(model)
    shapes = graph.shapes()
    graph.replace('PRelu', _without_prelu)
    graph.replace('Transpose', lambda node: _without_six_dimensions(graph, node))
    graph.replace('DepthToSpace', lambda node: _in_mode_dcr(graph, node, shapes))
    graph.write()


class Graph:
    """A model's graph, without ``Constant`` and ``Identity``.

    Attributes:
        nodes: in the order in which they run.
        values: {name: array} of the initializers.
    """

    def __init__(self, model: ModelProto) -> None:
        self._model = model
        self.values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self.nodes: list[NodeProto] = []
        outputs, names = {value.name for value in model.graph.output}, dict[str, str]()
        for node in map(copy.deepcopy, model.graph.node):
            node.input[:] = [names.get(name, name) for name in node.input]
            if node.op_type == 'Constant' and node.attribute[0].name == 'value':
                self.values[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
            elif node.op_type == 'Identity' and node.output[0] not in outputs:
                names[node.output[0]] = node.input[0]
            else:
                self.nodes.append(node)

    def write(self) -> None:
        """Writes what is used into the model."""
        graph = self._model.graph
        used, nodes = {value.name for value in graph.output}, list[NodeProto]()
        for node in reversed(self.nodes):
            if not used.isdisjoint(node.output):
                used.update(node.input)
                node.name = node.name or node.output[0]  # by which onnxruntime's quantizer finds it
                nodes.insert(0, node)
        del graph.node[:], graph.initializer[:]
        graph.node.extend(nodes)
        graph.initializer.extend(
            numpy_helper.from_array(self.values[name], name) for name in self.values if name in used
        )

    def shapes(self) -> dict[str, list[int]]:
        """{name: its shape} where the number of dimensions is known; -1: of any size."""
        self.write()
        graph = onnx.shape_inference.infer_shapes(self._model, data_prop=True).graph
        return {
            value.name: [dim.dim_value if dim.HasField('dim_value') else -1 for dim in value.type.tensor_type.shape.dim]
            for value in (*graph.input, *graph.value_info, *graph.output)
            if value.type.tensor_type.HasField('shape')
        }

    def replace(self, operator: str, others: Callable[[NodeProto], Iterable[NodeProto]]) -> None:
        """Puts other nodes in the place of each of an operator."""
        self.nodes = [new for node in [*self.nodes] for new in (others(node) if node.op_type == operator else [node])]

    def source(self, name: str) -> NodeProto:
        """The node that gives a value; an empty one for inputs and constants."""
        return next((node for node in self.nodes if name in node.output), NodeProto())

    def readers(self, name: str) -> list[NodeProto]:
        """The nodes that read a value, each as often as it does."""
        return [node for node in self.nodes for given in node.input if given == name]

    def constant(self, node: NodeProto, index: int, attribute: str = '') -> list[int]:
        """A constant input, or the attribute that it is in other opsets; empty: neither."""
        given = [*node.input[index : index + 1]]
        found = [[*own.ints] for own in node.attribute if own.name == attribute]
        found += [self.values[name].tolist() for name in given if name in self.values]
        return found[0] if found else []

    def add_kernel(self, name: str, matrix: np.ndarray, side: int) -> str:
        """The weight of a convolution without overlap, from a matrix of (channels out, channels in * side * side)."""
        like = next(value for value in self.values.values() if value.ndim == 4)  # another convolution's
        self.values[name] = matrix.astype(like.dtype).reshape(len(matrix), -1, side, side)
        return name


def _without_prelu(node: NodeProto) -> list[NodeProto]:
    """The slope times what Relu takes away."""
    (given, slope), (result,) = node.input, node.output
    positive, negative, scaled = (f'{result}_{part}' for part in ('positive', 'negative', 'scaled'))
    return [
        helper.make_node('Relu', [given], [positive]),
        helper.make_node('Sub', [given, positive], [negative]),
        helper.make_node('Mul', [negative, slope], [scaled]),
        helper.make_node('Add', [positive, scaled], [result]),
    ]


def _without_six_dimensions(graph: Graph, node: NodeProto) -> list[NodeProto]:
    before, after = graph.source(node.input[0]), graph.readers(node.output[0])
    shape = graph.constant(before, 1) if before.op_type == 'Reshape' else []
    if graph.constant(node, 1, 'perm') != PIXELS_TO_CHANNELS or len(shape) != 6 or len(after) != 1:
        return [node]
    n, channels, height, side, width, other_side = shape
    if side != other_side or graph.constant(after[0], 1) != [n, channels * side**2, height, width]:
        return [node]
    result = after[0].output[0]
    kernel = graph.add_kernel(f'{result}_kernel', np.eye(channels * side**2), side)
    after[0].output[0] = f'{result}_unused'
    return [helper.make_node('Conv', [before.input[0], kernel], [result], strides=[side, side])]


def _in_mode_dcr(graph: Graph, node: NodeProto, shapes: dict[str, list[int]]) -> list[NodeProto]:
    """CRD takes the channels of a block, ``side ** 2`` of them, from beside each other, DCR from ``channels`` apart."""
    if helper.get_node_attr_value(node, 'mode') != b'CRD':
        return [node]
    (given,), side = node.input, helper.get_node_attr_value(node, 'blocksize')
    sources = _sources(graph, given, side**2)
    channels = {len(graph.values[source.input[1]]) for source in sources if source.op_type == 'Conv'}
    if len(channels) != 1:
        sources, channels = [], {shapes.get(given, [-1, -1])[1]}
    if channels == {-1}:
        return [node]
    order = np.arange(*channels).reshape(-1, side**2).T.ravel()
    for source in sources:
        if source.op_type == 'Conv':
            for index, name in enumerate(source.input[1:], 1):
                source.input[index] = f'{source.output[0]}_dcr_{index}'
                graph.values[source.input[index]] = graph.values[name][order]
        else:
            image = graph.source(graph.source(source.input[0]).input[0]).input[0]
            source.CopyFrom(helper.make_node('Concat', [image] * side**2, source.output, axis=1))
    before = []
    if not sources:
        kernel = graph.add_kernel(f'{given}_kernel', np.eye(len(order))[order], 1)
        before = [helper.make_node('Conv', [given, kernel], [f'{given}_dcr'])]
        given = f'{given}_dcr'
    return [*before, helper.make_node('DepthToSpace', [given], node.output, blocksize=side, mode='DCR')]


def _sources(graph: Graph, name: str, blocks: int) -> list[NodeProto]:
    """What gives the channels of a value and can give them in another order: convolutions and repetitions of an image,
    whose sum it is. Empty: something else gives them, or reads them too."""
    node = graph.source(name)
    if len(graph.readers(name)) > 1:
        return []
    if node.op_type == 'Add':
        parts = [_sources(graph, part, blocks) for part in node.input]
        return [source for part in parts for source in part] if all(parts) else []
    if node.op_type == 'Conv' and helper.get_node_attr_value(node, 'group') == 1:
        return [node] if all(given in graph.values for given in node.input[1:]) else []
    if node.op_type == 'Reshape':  # of what repeat_interleave makes of (N, C, h, w): (N, C, blocks, h, w)
        tile = graph.source(node.input[0])
        if tile.op_type == 'Tile' and graph.constant(tile, 1) == [1, 1, blocks, 1, 1]:
            image = graph.source(tile.input[0])
            return [node] if image.op_type == 'Unsqueeze' and graph.constant(image, 1, 'axes') == [2] else []
    return []
