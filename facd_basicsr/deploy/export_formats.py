"""``facd export``: its file formats; each written file is loaded back and compared with the student."""

import copy
import dataclasses
import importlib.util
import io
import json
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import safetensors.torch
import torch
from torch import Tensor, nn

from facd_basicsr.archs import input_channels
from facd_basicsr.deploy.student import INSTALL, METADATA, Description, Student, read_student
from facd_basicsr.errors import UserError, one_line, reraise
from facd_basicsr.files.atomic import atomic_paths
from facd_basicsr.runtime.tiling import receptive_field_radius_or_none

OPSET = 17  # read by onnxruntime 1.12 (2022) and everything later
INPUT, OUTPUT = 'lq', 'sr'
TRACED = (2, 32, 48)  # images, height, width of the example; 1 would be taken for a constant

STEP = 1 / 255  # of 8 bits, in [0, 1]
ROUNDING = 0.01 * STEP  # thirty times the measured difference of float32 graphs
# Float16's. Measured: 0.1 to 0.44, EDSR 256 x 32 and features up to 18,000 included, for it grows with how much of them
# cancels and not with their size. Where the largest is 4, the root mean square is 0.7: 0.05 dB of a PSNR of 32.
HALF_ROUNDING = 4 * STEP


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        suffix: of its name, after the stem.
        content: of the file.
        runner: what runs a written file.
        holds: its content, and what was compared besides its output.
        instead: what a user can do if the network does not support it.
        cause: why its output may differ from the student's.
        tolerance: the largest difference accepted, of a range of 1.
    """

    suffix: str
    content: Callable[[Student], bytes]
    runner: str
    holds: str
    instead: str
    cause: str
    tolerance: float = ROUNDING


def _state_dict(student: Student) -> dict[str, Tensor]:
    return {
        key: value.detach().clone(memory_format=torch.contiguous_format)
        for key, value in student.net.state_dict().items()
    }


def _pth(student: Student) -> bytes:
    buffer = io.BytesIO()
    torch.save({'params': _state_dict(student), METADATA: student.description.as_metadata()}, buffer)
    return buffer.getvalue()


def _safetensors(student: Student) -> bytes:
    return safetensors.torch.save(_state_dict(student), {'format': 'pt', **student.description.as_metadata()})


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


WEIGHTS, GRAPH, PROGRAM = 'torch', 'onnxruntime', 'torch.export.load'
STEADY = 'one with the same output for the same image'  # any other reason is found before outputs are compared
WEIGHTS_ALONE = 'weights and arguments do not tell all of it'
BASIC = (
    Format('.pth', _pth, WEIGHTS, "BasicSR's checkpoint, loaded strictly, weights equal", STEADY, WEIGHTS_ALONE),
    Format('.safetensors', _safetensors, WEIGHTS, 'loaded strictly, weights equal', STEADY, WEIGHTS_ALONE),
)
FIXED = 'a graph does not decide by the size, as the network may'
ONNX = Format('.onnx', partial(onnx_bytes, half=False), GRAPH, f'ONNX, opset {OPSET}', '--no-onnx', FIXED)
ONNX_FP16 = Format(
    '_fp16.onnx',
    partial(onnx_bytes, half=True),
    GRAPH,
    f'ONNX, opset {OPSET}, float16 between float32 images',
    '--no-fp16',
    'float16 has three digits, too few for its features',
    HALF_ROUNDING,
)
TORCH_EXPORT = Format('.pt2', program_bytes, PROGRAM, "torch.export's program", 'no --torch-export', FIXED)
EXPORT_FORMATS = (*BASIC, ONNX, ONNX_FP16, TORCH_EXPORT)


TESTED_TILE = 64  # in which the receptive field radius is verified
# Images, height, width to compare at, none that a graph is traced at; the second for those whose sizes must be even
COMPARED = (((2, 24, 40), (1, 33, 17)), ((2, 64, 80), (1, 48, 32)))

Example = tuple[Tensor, Tensor]  # images (N, C, h, w) in [0, 1] and the student's output for them


def measured(student: Student, psnr: dict[str, float]) -> Student:
    """The student, with receptive field radius and validation metrics in its description, if there are any."""
    description = student.description
    channels = input_channels(description.network)
    reach = receptive_field_radius_or_none(student.net, channels, description.scale, TESTED_TILE)
    return Student(student.net, dataclasses.replace(description, reach=reach, psnr=psnr or description.psnr))


def paths_of(stem: Path, formats: Sequence[Format]) -> list[Path]:
    """The files that would be written.

    Raises:
        UserError: one exists, there is no folder for them, or the stem is a file's whole name.
    """
    if not stem.parent.is_dir():
        raise UserError(f'-o: no such folder: {stem.parent}')
    if stem.suffix in {format.suffix for format in EXPORT_FORMATS}:
        raise UserError(f'-o: {stem}; accepted: a name without suffix, as {stem.with_suffix("")}, for several files')
    if stem.is_dir():
        raise UserError(f'-o: {stem} is a folder; accepted: the name of files in it, as {stem / "student"}')
    paths = [stem.with_name(stem.name + format.suffix) for format in formats]
    there = [str(path) for path in paths if path.exists()]
    if there:
        raise UserError(f'-o: {", ".join(there)} exists; accepted: the name of new files')
    return paths


def export(student: Student, stem: Path, formats: Sequence[Format]) -> list[dict[str, float]]:
    """Writes all files or, when one of them fails, none. Each is loaded back and compared.

    Args:
        student: what :func:`measured` gives.
        stem: the files' path without suffix.
        formats: some of ``EXPORT_FORMATS``.

    Returns:
        For each format {what ran the file: the largest difference between its output and the student's, of a range of
        1}.

    Raises:
        UserError: as of :func:`paths_of`; a format does not support the network; or a file does not hold the student.
        OSError: the disk is full.
    """
    paths, examples, differences = paths_of(stem, formats), _examples(student), []
    with atomic_paths(paths) as written:
        for format, path, file in zip(formats, paths, written):
            file.write_bytes(format.content(student))
            try:
                nets = _loaded(file, student, format)
                differences.append({name: _difference(net, examples, format) for name, net in nets.items()})
            except UserError:
                raise
            except ValueError as error:
                raise UserError(f'-o: {path} would {error}; accepted: {format.instead}') from error
    return differences


def _loaded(file: Path, student: Student, format: Format) -> dict[str, nn.Module]:
    """What runs a written file, by name.

    Raises:
        ValueError: its content is not the student's; worded as the end of "it would".
    """
    if format.runner == PROGRAM:
        net, description = read_program(file)
    else:
        read = read_student(file, where='-o')
        net, description = read.net, read.description
    if description != student.description:
        raise ValueError(f'say {description} of itself instead of {student.description}')
    if format.runner == WEIGHTS:
        own = student.net.state_dict()
        changed = [key for key, value in net.state_dict().items() if not torch.equal(value, own[key])]
        if changed:
            raise ValueError(f'not read back as it was written ({changed[0]})')
    if format.tolerance == HALF_ROUNDING:
        # onnxruntime has few float16 operators for CPUs, and calculates the others in float32, where nothing overflows
        # and little is rounded. So the file is compared by it, and for the rest the same network by torch.
        return {format.runner: net, 'torch in float16': halved(student.net)}
    return {format.runner: net}


def _difference(net: nn.Module, examples: Sequence[Example], format: Format) -> float:
    """The largest difference to the student's output, of a range of 1.

    Raises:
        ValueError: it is too large, or there is none; worded as the end of "it would".
    """
    largest = 0.0
    for lq, expected in examples:
        size = f'images of {lq.shape[2]} x {lq.shape[3]}'
        try:
            sr = net(lq)
        except Exception as error:  # what onnxruntime and exported programs raise has no class in common
            raise ValueError(f'not run on {size}: {one_line(error)}') from error
        if sr.shape != expected.shape:
            raise ValueError(f'make {tuple(sr.shape)} instead of {tuple(expected.shape)} of {size}')
        if not sr.isfinite().all():
            raise ValueError(f'make numbers that are not finite of {size}')
        difference = float((sr - expected).abs().max())
        if difference > format.tolerance:
            raise ValueError(
                f'differ by {difference / STEP:.2g} of an 8-bit step, more than rounding '
                f'({format.tolerance / STEP:.2g}), on {size}: {format.cause}'
            )
        largest = max(largest, difference)
    return largest


def _examples(student: Student) -> list[Example]:
    """Random images of the first sizes that the student takes.

    Raises:
        UserError: it takes none.
    """
    channels = input_channels(student.description.network)
    for sizes in COMPARED:
        generator = torch.Generator().manual_seed(0)
        images = [torch.rand(n, channels, h, w, generator=generator) for n, h, w in sizes]
        try:
            return [(lq, student.net(lq.clone())) for lq in images]
        except (RuntimeError, AssertionError) as error:  # AssertionError: RRDBNet's
            refusal = error
    raise UserError(
        f'network_g: {student.description.architecture} does not run on images of {sizes[0][1]} x {sizes[0][2]} '
        f'({one_line(refusal)}); accepted: a network that does'
    ) from refusal
