"""Post-training quantization of a student's ONNX graph to int8, by onnxruntime.

QDQ form: int8 weights, symmetric, one scale an output channel; uint8 activations, affine, one scale a tensor. What is
before the first convolution and after the last, the mean shift and ``img_range``, stays in float, so that a file takes
and gives the same images.
"""

import contextlib
import io
import math
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from facd_basicsr.archs import input_channels, network_sizes
from facd_basicsr.deploy.runtimes import OnnxNetwork
from facd_basicsr.deploy.student import Student
from facd_basicsr.errors import UserError, one_line, reraise
from facd_basicsr.evaluation.test_sets import ImagePair
from facd_basicsr.files.images import images_below, read_bgr
from facd_basicsr.progress import ProgressBar
from facd_basicsr.runtime.metrics import as_input, photograph_input, scores, upscale
from facd_basicsr.runtime.size_requirements import Padded, SizeRequirements

METHODS = ('MinMax', 'Percentile', 'Entropy')  # of onnxruntime's CalibrationMethod
CALIBRATED, CROP = 32, 128  # images of a folder, and the most pixels of their height and width
# What a convolutional network consists of; others, as Softmax, stay in float. A removable activation, as Relu, is part
# of the node before it.
WEIGHTED = ('Conv', 'ConvTranspose', 'Gemm', 'MatMul')
QUANTIZED = (*WEIGHTED, 'Add', 'Concat', 'DepthToSpace', 'Relu', 'LeakyRelu')
ACTIVATIONS = ('Relu', 'LeakyRelu')


@dataclass(frozen=True)
class Quantized:
    """An int8 graph and what it cost.

    Attributes:
        content: of the ONNX file, with the metadata of the float graph.
        method: of calibration: of :data:`METHODS` the one whose output is nearest to float's; empty with the ranges of
            training, for which there are no errors and costs either.
        errors: {method: root mean square difference to the float output on the calibration images, 8-bit steps}.
        sensitivity: {node: the same of a graph in which it alone is int8}, the costliest first.
        kept: the nodes that stay in float.
        psnr: {set: PSNR-Y in dB of (float, int8)}; empty without sets.
    """

    content: bytes
    method: str
    errors: dict[str, float]
    sensitivity: dict[str, float]
    kept: list[str]
    psnr: dict[str, tuple[float, float]]

    @property
    def loss(self) -> float:
        """The mean PSNR-Y that int8 costs, in dB, over the sets."""
        return sum(before - after for before, after in self.psnr.values()) / len(self.psnr)


def calibration_images(folder: Path, student: Student) -> list[Tensor]:
    """The middle of at most :data:`CALIBRATED` images of a folder of LQ and its subfolders, (1, 3, h, w) in [0, 1].

    Raises:
        UserError: there is none, one is damaged or too small, or the student is not of color images.
    """
    channels = input_channels(student.description.network)
    if channels != 3:
        raise UserError(f'--int8: network_g of {channels} channels; accepted: a network of color images, 3')
    if not folder.is_dir():
        raise UserError(f'--calibrate: no such folder: {folder}; accepted: a folder of LQ images')
    paths = images_below(folder)
    if not paths:
        raise UserError(f'--calibrate: {folder}: no images; accepted: a folder of LQ images')
    sizes = _sizes(student)
    crop, multiple = sizes.aligned(max(CROP, sizes.minimum)), sizes.multiple_of
    found = []
    for path in paths[:: math.ceil(len(paths) / CALIBRATED)]:
        lq = as_input(read_bgr(path))
        height, width = (min(crop, side // multiple * multiple) for side in lq.shape[2:])
        if min(height, width) < sizes.minimum:
            raise UserError(
                f'--calibrate: {path}: {lq.shape[3]}x{lq.shape[2]} pixels; accepted: {sizes.minimum}x{sizes.minimum} '
                'or more'
            )
        top, left = ((side - size) // 2 for side, size in zip(lq.shape[2:], (height, width)))
        found.append(lq[:, :, top : top + height, left : left + width].contiguous())
    return found


def quantize(
    graph: bytes,
    student: Student,
    images: Sequence[Tensor],
    pairs: Sequence[ImagePair] = (),
    keep: int = 0,
    max_loss: float | None = None,
) -> Quantized:
    """Quantizes a graph of :func:`facd_basicsr.deploy.export_formats.onnx_bytes`.

    Nodes are kept in float in the order of their cost, each measured alone on the calibration images.

    Args:
        images: of :func:`calibration_images`.
        pairs: of the sets that PSNR-Y is measured on.
        keep: how many nodes stay in float.
        max_loss: dB of PSNR-Y, the mean over the sets: as many nodes stay in float as are needed; overrules ``keep``.

    Raises:
        UserError: onnxruntime does not quantize it, there are no nodes, or ``max_loss`` is not reached.
    """
    with TemporaryDirectory() as folder, _reraise(student.description.architecture):
        path = Path(folder, 'float.onnx')
        path.write_bytes(graph)
        quantizer = _Quantizer(path, images)
        if keep >= len(quantizer.nodes):
            raise UserError(f'--keep: {keep}; accepted: less than the {len(quantizer.nodes)} nodes that can be int8')
        psnr_by_set = partial(_psnr_by_set, pairs, student.description.scale, _sizes(student))
        before = psnr_by_set(graph, 'float')
        costs = quantizer.sensitivity()

        def kept(count: int) -> Quantized:
            chosen = [*costs][:count]
            content = quantizer.quantized(chosen)
            after = psnr_by_set(content, f'int8, {count} nodes in float')
            psnr = {name: (before[name], after[name]) for name in before}
            return Quantized(content, quantizer.method, quantizer.errors, costs, chosen, psnr)

        found = kept(keep)
        if max_loss is not None and found.loss > max_loss:
            found = _fewest(kept, len(costs) - 1, max_loss)
    return found


def of_trained_ranges(graph: bytes, int8: bytes, student: Student, pairs: Sequence[ImagePair]) -> Quantized:
    """A graph with the ranges of training, of :func:`facd_basicsr.deploy.quantized_graph.qat_onnx_bytes`.

    Args:
        graph: in float.
    """
    psnr_by_set = partial(_psnr_by_set, pairs, student.description.scale, _sizes(student))
    before, after = psnr_by_set(graph, 'float'), psnr_by_set(int8, 'int8')
    return Quantized(int8, '', {}, {}, [], {name: (before[name], after[name]) for name in before})


def quantize_by_min_max(path: Path, channels: int) -> bytes:
    """A graph in int8, with the ranges of a photograph: enough to measure its latency."""
    with _reraise('the network'):
        return _Quantizer(path, [photograph_input('astronaut.png', channels, CROP, CROP)], METHODS[:1]).quantized([])


def _fewest(kept: Callable[[int], Quantized], most: int, max_loss: float) -> Quantized:
    """With the fewest nodes in float, found by bisection: every further node costs less than those before.

    Raises:
        UserError: not even one int8 node is cheap enough.
    """
    best, low = kept(most), 0  # low: too few
    if best.loss > max_loss:
        raise UserError(
            f'--max-loss: {max_loss:g} dB is not reached: with one node in int8, the cheapest, it is {best.loss:.3f} '
            'dB; accepted: more, or train.quantize (docs/training.md)'
        )
    while len(best.kept) - low > 1:
        tried = kept((len(best.kept) + low) // 2)
        if tried.loss > max_loss:
            low = len(tried.kept)
        else:
            best = tried
    return best


def _sizes(student: Student) -> SizeRequirements:
    return network_sizes(student.net, student.description.network, student.description.scale)


def _psnr_by_set(
    pairs: Sequence[ImagePair], scale: int, sizes: SizeRequirements, graph: bytes, what: str
) -> dict[str, float]:
    metrics = {'psnr_y': {'type': 'calculate_psnr', 'crop_border': scale, 'test_y_channel': True}}
    net = Padded(OnnxNetwork(graph, '--int8'), scale, sizes)
    found: dict[str, list[float]] = {}
    for pair in ProgressBar(pairs, desc=f'PSNR-Y of {what}', unit='image', disable=not pairs):
        found.setdefault(pair.set, []).append(scores(upscale(net, pair.lq), pair.gt, metrics)['psnr_y'])
    return {name: sum(values) / len(values) for name, values in found.items()}


class _Quantizer:
    """Calibrates a graph by each of :data:`METHODS`, and quantizes it by the best.

    Attributes:
        nodes: {node that can be int8: the activations that are one with it}.
        method, errors: of :class:`Quantized`.
    """

    def __init__(self, path: Path, images: Sequence[Tensor], methods: Sequence[str] = METHODS) -> None:
        from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

        self._model = load_model_with_shape_infer(path)
        self.nodes = _quantizable(self._model)
        if not self.nodes:
            raise UserError(f'--int8: the graph has no {" or ".join(QUANTIZED)}; accepted: a convolutional network')
        self._images = images
        self._expected = self._run(self._model.SerializeToString())
        self.errors = {}
        ranges = {}
        for method in ProgressBar(methods, desc='calibration', unit='method', disable=len(methods) == 1):
            ranges[method] = self._ranges = self._calibrated(path, method)
            self.errors[method] = self._error(self.quantized([]))
        self.method = min(self.errors, key=self.errors.__getitem__)
        self._ranges = ranges[self.method]

    def _calibrated(self, path: Path, method: str) -> Any:
        from onnxruntime.quantization import CalibrationMethod, create_calibrator

        calibrator = create_calibrator(
            path, [*QUANTIZED], str(path.with_name('augmented.onnx')), CalibrationMethod[method]
        )
        with contextlib.redirect_stdout(io.StringIO()):
            for image in self._images:  # one at a time, since it keeps the features of all that it is given
                feeds = iter([{self._model.graph.input[0].name: image.numpy()}])
                calibrator.collect_data(SimpleNamespace(get_next=partial(next, feeds, None)))
            return calibrator.compute_data()

    def sensitivity(self) -> dict[str, float]:
        """{node: cost of it alone in int8, in 8-bit steps}, the costliest first."""
        costs = {}
        for node in ProgressBar(self.nodes, desc='sensitivity', unit='node'):
            costs[node] = self._error(self.quantized([other for other in self.nodes if other != node]))
        return dict(sorted(costs.items(), key=lambda item: -item[1]))

    def quantized(self, kept: Collection[str]) -> bytes:
        """The graph in int8, but for some nodes."""
        import onnx
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        nodes = [name for node in self.nodes if node not in kept for name in (node, *self.nodes[node])]
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        quantizer = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=self._ranges,
            nodes_to_quantize=nodes,
            nodes_to_exclude=[],
            op_types_to_quantize=[*QUANTIZED],
            extra_options={},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        return quantizer.model.model.SerializeToString()

    def _run(self, content: bytes) -> list[Tensor]:
        net = OnnxNetwork(content, '--int8')
        return [net(image) for image in self._images]

    def _error(self, content: bytes) -> float:
        """Root mean square difference to the float graph, in 8-bit steps."""
        squares = [(sr - expected).square() for sr, expected in zip(self._run(content), self._expected)]
        return 255 * math.sqrt(sum(float(square.sum()) for square in squares) / sum(map(Tensor.numel, squares)))


def _quantizable(model: Any) -> dict[str, list[str]]:
    """{node: the activations that are one with it}, of the nodes that can be int8.

    An addition or concatenation with a constant, as of the mean shift and of ``img_range``, is none.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {node.output[0] for node in model.graph.node if node.op_type == 'Constant'}
    found: dict[str, list[str]] = {}
    made_by: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type in ACTIVATIONS and node.input[0] in made_by:
            found[made_by[node.input[0]]].append(node.name)
        elif node.op_type in QUANTIZED and (node.op_type in WEIGHTED or not constants & {*node.input}):
            found[node.name] = []
            made_by[node.output[0]] = node.name
    return found


def _reraise(architecture: str) -> AbstractContextManager[None]:
    return reraise(
        Exception,  # onnxruntime's quantizer raises errors of any class
        lambda error: (
            None
            if isinstance(error, (UserError, OSError))
            else UserError(
                f'--int8: onnxruntime does not quantize {architecture} ({one_line(error, 200)}); accepted: no --int8'
            )
        ),
    )
