"""ONNX files as networks of torch: one class a runtime."""

import importlib.util
import sys
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from facd_basicsr.errors import UserError, one_line

INSTALL = "`pip install 'facd_basicsr[onnx]'`"
# Not all that onnxruntime has: TensorRT builds an engine, for minutes, for each size of image. TF32, CUDA's default,
# rounds more than what facd export takes for rounding.
PROVIDERS = {'CUDAExecutionProvider': {'use_tf32': '0'}, 'CPUExecutionProvider': {}}


class RuntimeNetwork(nn.Module):
    """Runs an ONNX file. Several threads may.

    Input (N, C, h, w) in [0, 1], any float type; output (N, C, h * scale, w * scale), float32, not clamped.

    Args:
        model: the file, or its content.
        where: see :class:`UserError`.

    Attributes:
        metadata: {name: text}, the file's own.
        fixed: {axis: size} of what its input has one size of: channels, and as facd export was told batch and image.

    Raises:
        UserError: the runtime is not installed, or does not read the file.
    """

    package: ClassVar[str]
    install: ClassVar[str]
    fixed: dict[int, int]

    def __init__(self, model: Path | bytes, where: str) -> None:
        super().__init__()
        name = model if isinstance(model, Path) else 'the network'
        if importlib.util.find_spec(self.package) is None:
            raise UserError(f'{where}: {name} needs {self.package}, which is not installed; accepted: {self.install}')
        self._model = model
        try:
            inputs, outputs = self.open()
        except Exception as error:  # the exceptions of runtimes have no public class in common
            reason = one_line(error, 300)
            raise UserError(
                f'{where}: {name} cannot be read as ONNX ({reason}); accepted: a file by facd export'
            ) from error
        if len(inputs) != 1 or len(outputs) != 1:
            found = ' and outputs '.join(map(', '.join, (inputs, outputs)))
            raise UserError(f'{where}: {name} has inputs {found}; accepted: one of each')
        self.metadata = self._metadata()

    @abstractmethod
    def open(self, jobs: int = 1, frugal: bool = False) -> tuple[list[str], list[str]]:
        """Opens the file, again if it is open.

        Args:
            jobs: threads that run it at a time; they share as many of the runtime's as torch has.
            frugal: give memory back after each run, which takes time.

        Returns:
            The names of its inputs and outputs.
        """

    @abstractmethod
    def _metadata(self) -> dict[str, str]: ...

    @abstractmethod
    def _run(self, lq: Tensor) -> np.ndarray: ...

    def forward(self, lq: Tensor) -> Tensor:
        """
        Raises:
            RuntimeError: it does not run on images of this size, as of torch's networks.
            MemoryError: it needs more memory than is available.
        """
        static = [self.fixed.get(axis) for axis in (2, 3)]
        if None not in static and [*lq.shape[2:]] != static:
            raise RuntimeError(f'it was exported with --static {static[1]}x{static[0]}')
        try:
            output = self._run(lq.cpu())
        except MemoryError:
            raise
        except Exception as error:  # as above
            raise RuntimeError(str(error)) from error
        return torch.from_numpy(output).float()

    def extra_repr(self) -> str:
        return str(self._model) if isinstance(self._model, Path) else ''  # what tells two of them apart

    def footprint(self, height: int, width: int) -> int:
        """Bytes of all live tensors at the peak of one run on (1, C, height, width), without the weights, counted.

        Raises:
            UserError: the graph does not tell the shape of every tensor, or onnx is not installed.
        """
        try:
            import onnx
        except ImportError as error:
            raise UserError('--memory: needs onnx; accepted: pip install onnx, or --tile and --jobs') from error

        model = onnx.load(self._model) if isinstance(self._model, Path) else onnx.load_from_string(self._model)
        for axis, size in ((0, 1), (2, height), (3, width)):
            model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = self.fixed.get(axis, size)
        for output in model.graph.output:  # its shape follows, and what the file says of it may be names
            output.type.tensor_type.ClearField('shape')
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        sizes = {
            value.name: _bytes(value.type.tensor_type) for value in (*graph.input, *graph.output, *graph.value_info)
        }
        left = Counter(name for node in graph.node for name in node.input)
        left.update(value.name for value in graph.output)
        weights = {weight.name for weight in graph.initializer}
        now = peak = sizes[graph.input[0].name] or 0
        for node in graph.node:
            for name in filter(None, node.output):
                if sizes.get(name) is None:
                    raise UserError(
                        f'--memory: the graph does not tell the shape of {name}; accepted: --tile and --jobs'
                    )
                now += sizes[name] or 0
            peak = max(peak, now)
            for name in node.input:
                left[name] -= 1
                if not left[name] and name not in weights:
                    now -= sizes.get(name) or 0
        return peak


def _bytes(tensor: Any) -> int | None:
    """Of an ONNX type; None if a size is not known."""
    import onnx

    if not tensor.HasField('shape') or not all(dim.HasField('dim_value') for dim in tensor.shape.dim):
        return None
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    itemsize = max(4, dtype.itemsize) if dtype.kind == 'f' else dtype.itemsize  # CPUs compute float16 in float32
    return itemsize * int(np.prod([dim.dim_value for dim in tensor.shape.dim], dtype=np.int64))


class OnnxNetwork(RuntimeNetwork):
    """By onnxruntime, on the CPU, or on a GPU where it has CUDA."""

    package, install = 'onnxruntime', INSTALL
    providers: ClassVar[Mapping[str, Mapping[str, str]]] = PROVIDERS

    def open(self, jobs: int = 1, frugal: bool = False) -> tuple[list[str], list[str]]:
        import onnxruntime

        available = onnxruntime.get_available_providers()
        providers = [(name, options) for name, options in self.providers.items() if name in available]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # fatal: its errors are raised, and need not be printed as well
        # of one session: threads that run it take part themselves, and share the others
        options.intra_op_num_threads = max(1, torch.get_num_threads() - jobs + 1)
        options.enable_cpu_mem_arena = not frugal
        model = str(self._model) if isinstance(self._model, Path) else self._model
        self._session = onnxruntime.InferenceSession(model, sess_options=options, providers=providers)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        self._dtype = torch.float16 if inputs[0].type == 'tensor(float16)' else torch.float32
        self.fixed = {axis: size for axis, size in enumerate(inputs[0].shape) if isinstance(size, int)}
        return [value.name for value in inputs], [value.name for value in outputs]

    def _metadata(self) -> dict[str, str]:
        return dict(self._session.get_modelmeta().custom_metadata_map)

    def _run(self, lq: Tensor) -> np.ndarray:
        feed = {self._session.get_inputs()[0].name: lq.to(self._dtype).contiguous().numpy()}
        return self._session.run(None, feed)[0]


class CpuOnnxNetwork(OnnxNetwork):
    """By onnxruntime on the CPU, also where it has CUDA, whose int8 is another."""

    providers: ClassVar[Mapping[str, Mapping[str, str]]] = {'CPUExecutionProvider': {}}


class OpenVinoNetwork(RuntimeNetwork):
    """By OpenVINO, on the CPU. Heights and widths are dynamic: another size compiles nothing."""

    package, install = 'openvino', "`pip install 'facd_basicsr[openvino]'`"

    def open(self, jobs: int = 1, frugal: bool = False) -> tuple[list[str], list[str]]:
        openvino, core = import_openvino(), openvino_core()
        self._graph = core.read_model(self._model)
        config = {
            'NUM_STREAMS': jobs,
            'INFERENCE_NUM_THREADS': max(jobs, torch.get_num_threads()),  # of all streams
            'INFERENCE_PRECISION_HINT': 'f32',  # its own choice is bfloat16 where the CPU has it
        }
        self._compiled = core.compile_model(self._graph, 'CPU', config)
        self._idle: list[Any] = []  # a request is one thread's at a time, and keeps its memory
        inputs, outputs = self._graph.inputs, self._graph.outputs
        self._dtype = torch.float16 if inputs[0].element_type == openvino.Type.f16 else torch.float32
        shape = enumerate(inputs[0].partial_shape)
        self.fixed = {axis: size.get_length() for axis, size in shape if size.is_static}
        return [value.any_name for value in inputs], [value.any_name for value in outputs]

    def _metadata(self) -> dict[str, str]:
        info = self._graph.rt_info
        return {name: text.astype(str) for name, text in info['framework'].items()} if 'framework' in info else {}

    def _run(self, lq: Tensor) -> np.ndarray:
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        try:
            return request.infer({0: lq.to(self._dtype).contiguous().numpy()}, share_inputs=True)[0]
        finally:
            self._idle.append(request)


def import_openvino() -> Any:
    """The package ``openvino``, which tells Google Analytics that it is imported, unless its telemetry is missing."""
    sys.modules.setdefault('openvino_telemetry', None)  # type: ignore[arg-type]  # so an import of it fails
    import openvino

    return openvino


@cache
def openvino_core() -> Any:
    """OpenVINO's ``Core``, one for the process, which keeps it.

    Each installs a stack for signals, and where AMX is used Python's handlers run on it. The end of one that is not the
    latest leaves freed memory for a stack: the next signal, as Ctrl-C, then is a segmentation fault.
    """
    return import_openvino().Core()


BACKENDS: dict[str, type[RuntimeNetwork]] = {'onnxruntime': OnnxNetwork, 'openvino': OpenVinoNetwork}
