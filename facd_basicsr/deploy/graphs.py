"""A student's computation as a graph that runs without its class: ONNX, and torch.export's program."""

import copy
import importlib.util
import io
import json
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from facd_basicsr.archs import input_channels
from facd_basicsr.deploy.student import INSTALL, METADATA, Description, Student
from facd_basicsr.errors import UserError, one_line, reraise

OPSET = 17  # read by onnxruntime 1.12 (2022) and everything later
INPUT, OUTPUT = 'lq', 'sr'
TRACED = (2, 32, 48)  # images, height, width of the example; 1 would be taken for a constant


class _Halved(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, lq: Tensor) -> Tensor:
        return self.net(lq.half()).float()


def require_onnx(where: str) -> None:
    """Raises :class:`UserError` unless ONNX files can be written and run."""
    missing = [name for name in ('onnx', 'onnxruntime') if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'{where}: needs {" and ".join(missing)}, not installed; accepted: {INSTALL}, or --no-onnx')


def onnx_bytes(student: Student, half: bool) -> bytes:
    """An ONNX file's content: input ``lq``, output ``sr``, float32 both, of any number, height and width.

    Args:
        student: on the CPU; its description is the file's metadata.
        half: whether weights and operators are float16.

    Raises:
        UserError: ONNX does not support it.
    """
    import onnx

    description = student.description
    graph = halved(student.net) if half else _traceable(student.net)
    axes = {INPUT: {0: 'batch', 2: 'height', 3: 'width'}}
    axes[OUTPUT] = {0: 'batch', **{axis: f'{axes[INPUT][axis]}_x{description.scale}' for axis in (2, 3)}}
    with (
        TemporaryDirectory() as folder,
        warnings.catch_warnings(),
        torch.no_grad(),
        _reraise_export_errors(description, 'ONNX', '--no-fp16' if half else '--no-onnx'),
    ):
        path = str(Path(folder, 'graph.onnx'))
        warnings.simplefilter('ignore')  # that the exporter is the old one, and what else it has to say of its trace
        torch.onnx.export(
            graph,
            (_example(description),),
            path,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes=axes,
            opset_version=OPSET,
            # By TorchScript: the same in torch 2.4 to 2.14. The newer exporter is a draft in 2.4, needs onnxscript, and
            # for EDSR and RCAN writes the same operators in 5 times the time, with a note of this code's path at each.
            # What it freezes silently, such as a branch on the image's size, is found when files are compared.
            dynamo=False,
        )
        model = onnx.load(path)
        model.doc_string = (
            f'{description.architecture} x{description.scale}. {INPUT}: RGB in [0, 1], float32, (batch, channels, '
            f'height, width). {OUTPUT}: the same, {description.scale} times as high and wide, not clamped.'
            f'{" Weights and operators are float16." if half else ""}'
        )
        onnx.helper.set_model_props(model, description.as_metadata())
        onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def program_bytes(student: Student) -> bytes:
    """The content of a ``.pt2``: ``torch.export.load(FILE).module()`` is the network, with any height and width.

    The description is in it as the extra file ``metadata``, JSON of text by name.

    Raises:
        UserError: torch.export does not support it.
    """
    dynamic = {0: torch.export.Dim('batch'), 2: torch.export.Dim('height'), 3: torch.export.Dim('width')}
    description, buffer = student.description, io.BytesIO()
    with torch.no_grad(), _reraise_export_errors(description, "torch.export's program", 'no --torch-export'):
        example = (_example(description),)
        program = torch.export.export(_traceable(student.net), example, dynamic_shapes=(dynamic,), strict=False)
        torch.export.save(program, buffer, extra_files={METADATA: json.dumps(description.as_metadata())})
    return buffer.getvalue()


def halved(net: nn.Module) -> nn.Module:
    """A copy in float16, from and to float32 images (N, C, h, w), so that its interface is float32."""
    return _Halved(_traceable(net).half())


def read_program(path: Path) -> tuple[nn.Module, Description | None]:
    """The network of :func:`program_bytes` and its description."""
    texts = {METADATA: ''}
    program = torch.export.load(path, extra_files=texts)
    return program.module(), Description.of_metadata(json.loads(texts[METADATA]))


def _example(description: Description) -> Tensor:
    images, height, width = TRACED
    channels = input_channels(description.network)
    return torch.rand(images, channels, height, width, generator=torch.Generator().manual_seed(0))


def _traceable(net: nn.Module) -> nn.Module:
    """A copy whose plain tensors, BasicSR's ``mean``, are buffers: torch.export lets forward assign no others, and
    ``half()`` skips them."""
    net = copy.deepcopy(net)
    for module in net.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor):
                delattr(module, name)
                module.register_buffer(name, value, persistent=False)
    return net


def _reraise_export_errors(description: Description, what: str, accepted: str) -> AbstractContextManager[None]:
    return reraise(
        Exception,  # the exporters, and the networks that they run, raise errors of any class
        lambda error: UserError(
            f'network_g: {description.architecture} cannot be written as {what} ({one_line(error, 200)}); accepted: '
            f'{accepted}'
        ),
    )
