"""``facd export``: its file formats; each file is loaded back and compared with the student before it gets its name."""

import contextlib
import copy
import ctypes
import dataclasses
import importlib.util
import io
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from facd_basicsr.archs import input_channels
from facd_basicsr.archs.reparameterization import as_compact, reparameterized
from facd_basicsr.archs.spandrel_arch import INSTALLED, differs, is_spandrels, opened_by_spandrel
from facd_basicsr.deploy.runtimes import BACKENDS, INSTALL, RuntimeNetwork
from facd_basicsr.deploy.student import METADATA, Description, Student, read_student
from facd_basicsr.errors import UserError, one_line, reraise
from facd_basicsr.files.atomic import atomic_paths, make_folder_of
from facd_basicsr.files.state_dicts import load_state_dict
from facd_basicsr.options.signatures import signature_keys
from facd_basicsr.runtime.fake_quantization import QUANTIZATION
from facd_basicsr.runtime.metrics import photograph_input
from facd_basicsr.runtime.tiling import receptive_field_radius

OPSET = 17  # read by onnxruntime 1.12 (2022) and everything later
OPSETS = range(11, 21)  # from the first with PixelShuffle's DepthToSpace to the last that torch's TorchScript writes
QUANTIZED_OPSETS = range(13, OPSETS.stop)  # from the first with one scale a channel
INPUT, OUTPUT = 'lq', 'sr'
TRACED = (2, 32, 48)  # images, height, width of the example; 1 would be taken for a constant

STEP = 1 / 255  # of 8 bits, of the range of the student's output
ROUNDING = 0.01 * STEP  # thirty times the measured difference of float32 graphs
# Float16's. Measured: 0.1 to 0.44, EDSR 256 x 32 and features up to 18,000 included, for it grows with how much of them
# cancels and not with their size. Where the largest is 4, the root mean square is 0.7: 0.05 dB of a PSNR of 32.
HALF_ROUNDING = 4 * STEP
FUSED_ROUNDING = 1e-5  # of re-parameterization; measured: 1e-7 to 1e-6
REPARAMETERIZED = 're-parameterized'  # beside what runs a file: the network that it holds
# Images, height, width to compare at, none that a graph is traced at; the second for those whose sizes must be even
COMPARED = (((2, 24, 40), (1, 81, 65)), ((2, 64, 80), (1, 48, 32)))
Sizes = Sequence[Sequence[tuple[int, int, int]]]


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
        tolerance: the largest difference accepted, of the range of the student's output.
        form: the student in the form that the file holds: as it is trained, or re-parameterized.
        sizes: of the images that it is compared on, as ``COMPARED``.
    """

    suffix: str
    content: Callable[[Student], bytes]
    runner: str
    holds: str
    instead: str
    cause: str
    tolerance: float = ROUNDING
    form: Callable[[Student], Student] = lambda student: student
    sizes: Sizes = COMPARED


def _fused(student: Student) -> Student:
    """Re-parameterized; the student itself, if it has nothing to fuse."""
    return dataclasses.replace(student, net=reparameterized(student.net))


def _stock(student: Student) -> Student:
    """Re-parameterized, in a class that BasicSR and spandrel have, of which a file can hold the weights.

    Raises:
        UserError: there is no such class.
    """
    compact = as_compact(student.net)
    if compact is None:
        raise UserError(f'network_g: {student.description.architecture}; accepted: an ECBSR that is a SRVGGNetCompact')
    arguments = {key: getattr(compact, key) for key in signature_keys(type(compact))}
    description = dataclasses.replace(student.description, architecture=type(compact).__name__, arguments=arguments)
    return Student(compact, description)


def _state_dict(student: Student) -> dict[str, Tensor]:
    """SPAN's ``eval_conv`` are up to date: its blocks fuse whenever they run, and it has run on photographs."""
    return {
        key: value.detach().clone(memory_format=torch.contiguous_format)
        for key, value in student.net.state_dict().items()
    }


def _pth(student: Student) -> bytes:
    buffer = io.BytesIO()
    ranges = {} if student.quantization is None else {QUANTIZATION: student.quantization}
    torch.save({'params': _state_dict(student), METADATA: student.description.as_metadata(), **ranges}, buffer)
    return buffer.getvalue()


def _safetensors(student: Student) -> bytes:
    return safetensors.torch.save(_state_dict(student), {'format': 'pt', **student.description.as_metadata()})


class _Halved(nn.Module):
    """A copy in float16, from and to float32 images (N, C, h, w), so that its interface is float32."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = _traceable(net).half()

    def forward(self, lq: Tensor) -> Tensor:
        return self.net(lq.half()).float()


def require_onnx(where: str) -> None:
    """Raises :class:`UserError` unless ONNX files can be written and run."""
    missing = [name for name in ('onnx', 'onnxruntime') if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'{where}: needs {" and ".join(missing)}, not installed; accepted: {INSTALL}, or --no-onnx')


@dataclass(frozen=True)
class GraphOptions:
    """How an ONNX graph is written.

    Attributes:
        opset: version of its operators, of ``OPSETS``.
        static: (height, width) of the only images that it takes; None: of any.
        batch: the only number of images that it takes; None: any.
        mobile: of operators that phones' delegates have (:func:`facd_basicsr.deploy.graph_rewrites.for_mobile`).
    """

    opset: int = OPSET
    static: tuple[int, int] | None = None
    batch: int | None = None
    mobile: bool = False

    @property
    def of_any_size(self) -> 'GraphOptions':
        return dataclasses.replace(self, static=None, batch=None)

    @property
    def sizes(self) -> Sizes:
        """What a graph is compared on."""
        sizes = COMPARED if self.static is None else (tuple((n, *self.static) for n in (2, 1)),)
        return tuple(tuple(dict.fromkeys((self.batch or n, h, w) for n, h, w in images)) for images in sizes)

    def __str__(self) -> str:
        of = [f'opset {self.opset}', *(['mobile'] if self.mobile else [])]
        of += [f'{self.static[1]}x{self.static[0]} only'] if self.static else []
        return ', '.join([*of, *([f'batches of {self.batch} only'] if self.batch else [])])


def onnx_bytes(student: Student, half: bool, options: GraphOptions = GraphOptions()) -> bytes:
    """An ONNX file's content: input ``lq``, output ``sr``, float32 both, by default of any number, height and width.

    Args:
        student: on the CPU; its description is the file's metadata.
        half: weights and operators are float16.

    Raises:
        UserError: ONNX does not support it.
    """
    import onnx

    from facd_basicsr.deploy.graph_rewrites import fold_shapes, for_mobile  # needs onnx

    description = student.description
    graph = _Halved(student.net) if half else _traceable(student.net)
    names = {} if options.batch else {0: 'batch'}
    names |= {} if options.static else {2: 'height', 3: 'width'}
    grown = {axis: name if axis == 0 else f'{name}_x{description.scale}' for axis, name in names.items()}
    example = _example(description, options)
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
            (example,),
            path,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: names, OUTPUT: grown},
            opset_version=options.opset,
            # By TorchScript: the same in torch 2.4 to 2.14. The newer exporter is a draft in 2.4, needs onnxscript, and
            # for EDSR and RCAN writes the same operators in 5 times the time, with a note of this code's path at each.
            # What it freezes silently, such as a branch on the image's size, is found when files are compared.
            dynamo=False,
        )
        model = onnx.load(path)
        if options.static:
            fold_shapes(model)
        if options.mobile:
            for_mobile(model)
        model.doc_string = _doc_string(model, description) + ' Weights and operators are float16.' * half
        onnx.helper.set_model_props(model, description.as_metadata())
        onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _doc_string(model: Any, description: Description) -> str:
    dims = model.graph.input[0].type.tensor_type.shape.dim
    shape = ', '.join(dim.dim_param or str(dim.dim_value) for dim in dims)
    return (
        f'{description.architecture} x{description.scale}. {INPUT}: RGB in [0, 1], float32, ({shape}). {OUTPUT}: the '
        f'same, {description.scale} times as high and wide, not clamped.'
    )


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


def read_program(path: Path) -> tuple[nn.Module, Description | None]:
    """The network of :func:`program_bytes` and its description."""
    texts = {METADATA: ''}
    program = torch.export.load(path, extra_files=texts)
    return program.module(), Description.of_metadata(json.loads(texts[METADATA]))


def _example(description: Description, options: GraphOptions = GraphOptions()) -> Tensor:
    images, height, width = options.batch or TRACED[0], *(options.static or TRACED[1:])
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
COMPACT = "a SRVGGNetCompact's weights, loaded strictly"
FUSED_WEIGHTS = tuple(  # of a student for which as_compact() finds one
    dataclasses.replace(format, suffix=f'_fused{format.suffix}', holds=COMPACT, form=_stock) for format in BASIC
)
FIXED = 'a graph does not decide by the size, as the network may'


def onnx_formats(options: GraphOptions) -> tuple[Format, Format]:
    """ONNX in float32 and in float16."""
    full = Format(
        '.onnx',
        partial(onnx_bytes, half=False, options=options),
        GRAPH,
        f'ONNX, {options}',
        '--no-onnx',
        FIXED,
        form=_fused,
        sizes=options.sizes,
    )
    half = dataclasses.replace(
        full,
        suffix='_fp16.onnx',
        content=partial(onnx_bytes, half=True, options=options),
        holds=f'ONNX, {options}, float16 between float32 images',
        instead='--no-fp16',
        cause='float16 has three digits, too few for its features',
        tolerance=HALF_ROUNDING,
    )
    return full, half


ONNX, ONNX_FP16 = onnx_formats(GraphOptions())
TORCH_EXPORT = Format('.pt2', program_bytes, PROGRAM, "torch.export's program", 'no --torch-export', FIXED, form=_fused)
EXPORT_FORMATS = (*BASIC, ONNX, ONNX_FP16, TORCH_EXPORT)
INT8 = '_int8.onnx'
BROKEN = 64 * STEP  # of a file that does not hold the student; what int8 costs PSNR-Y says


def int8_graph(student: Student, options: GraphOptions = GraphOptions()) -> bytes:
    """The graph that is quantized: of images of any size, on which its PSNR-Y is measured."""
    with silence():
        return onnx_bytes(_fused(student), half=False, options=options.of_any_size)


def int8_format(content: bytes, psnr: dict[str, float], options: GraphOptions) -> Format:
    """Of a graph that was quantized, with its PSNR-Y by set; the file takes the sizes of the options alone."""
    return Format(
        INT8,
        lambda student: _described(content, student.description, options),
        GRAPH,
        f'ONNX, {options}, int8 in QDQ form',
        'no --int8',
        'eight bits are too few for its features',
        BROKEN,
        lambda student: Student(_fused(student).net, dataclasses.replace(student.description, psnr=psnr)),
        options.sizes,
    )


def _described(content: bytes, description: Description, options: GraphOptions) -> bytes:
    """A graph of any size with its description, and with the sizes of the options as constants."""
    import onnx

    from facd_basicsr.deploy.graph_rewrites import fix_sizes  # needs onnx

    model = onnx.load_from_string(content)
    if options.static is not None or options.batch is not None:
        fix_sizes(model, options.batch, options.static, description.scale)
        model.doc_string = _doc_string(model, description)
    onnx.helper.set_model_props(model, description.as_metadata())
    return model.SerializeToString()


TESTED_TILE = 64  # in which the receptive field radius is verified
PHOTOGRAPHS = ('astronaut.png', 'chelsea.png')


@dataclass(frozen=True)
class Example:
    """What a file is compared on.

    Attributes:
        lq: images (N, C, h, w) in [0, 1].
        sr: the student's output for them.
    """

    lq: Tensor
    sr: Tensor


def measured(student: Student, psnr: dict[str, float]) -> Student:
    """The student, with receptive field radius and validation metrics in its description, if there are any."""
    description = student.description
    channels, reach = input_channels(description.network), None
    with silence(), contextlib.suppress(UserError):  # silence: warnings of torch about the network's code
        reach = receptive_field_radius(student.net, channels, description.scale, TESTED_TILE)
    description = dataclasses.replace(description, reach=reach, psnr=psnr or description.psnr)
    return dataclasses.replace(student, description=description)


def paths_of(stem: Path, suffixes: Sequence[str]) -> list[Path]:
    """The files that would be written.

    Raises:
        UserError: one exists, or the stem is a folder's or a file's whole name.
    """
    if stem.suffix in {format.suffix for format in EXPORT_FORMATS}:
        raise UserError(f'-o: {stem}; accepted: a name without suffix, as {stem.with_suffix("")}, for several files')
    if stem.is_dir():
        raise UserError(f'-o: {stem} is a folder; accepted: the name of files in it, as {stem / "student"}')
    paths = [stem.with_name(stem.name + suffix) for suffix in suffixes]
    there = [str(path) for path in paths if path.exists()]
    if there:
        raise UserError(f'-o: {", ".join(there)} exists; accepted: the name of new files')
    return paths


def export(student: Student, stem: Path, formats: Sequence[Format]) -> dict[Path, dict[str, float] | UserError]:
    """Writes the files, each of which is loaded back and compared with the student on photographs.

    One that does not hold the student is left out. The others get their names together; after any error there is none.
    What other libraries print meanwhile, a whole graph in the case of torch, is held back.

    Args:
        student: what :func:`measured` gives.
        stem: the files' path without suffix; its folder is made.

    Returns:
        For each file {what ran it: the largest difference between its output and the student's, of the range of the
        student's}, with ``REPARAMETERIZED`` where the file holds that network; of one that was left out, the reason.

    Raises:
        UserError: as of :func:`paths_of`; or the student has no output for photographs of a format's sizes.
        OSError: the disk is full.
    """
    paths = paths_of(stem, [format.suffix for format in formats])
    found: dict[Path, dict[str, float] | UserError] = {}
    make_folder_of(stem, '-o')
    with silence(), atomic_paths(paths) as partials:
        examples = {sizes: _examples(student, sizes) for sizes in {format.sizes for format in formats}}
        for format, path, partial in zip(formats, paths, [*partials]):
            try:
                found[path] = _write_verified(student, format, partial, examples[format.sizes])
            except UserError as error:
                partials.remove(partial)
                found[path] = error
    return found


def _write_verified(student: Student, format: Format, file: Path, examples: Sequence[Example]) -> dict[str, float]:
    """
    Raises:
        UserError: the format does not support the network, or the file does not hold the student.
    """
    held, found = format.form(student), {}
    with reraise(ValueError, lambda error: UserError(f'it would {error}; accepted: {format.instead}')):
        if held.net is not student.net:
            cause = 're-parameterized it is another network'
            found[REPARAMETERIZED] = _difference(held.net, examples, FUSED_ROUNDING, cause)
        file.write_bytes(format.content(held))
        for name, net in _loaded(file, held, format).items():
            found[name] = _difference(net, examples, format.tolerance, format.cause)
    return found


def opened_in_spandrel(student: Student, files: Sequence[Path]) -> dict[Path, tuple[str, str]]:
    """Whether spandrel, and so chaiNNer, opens written files as the same network.

    Args:
        files: each a ``.pth`` or ``.safetensors`` of :func:`export`.

    Returns:
        For each what it opens as, and what a user should know of it; either may be empty. Both are of a network that
        spandrel does not know, as EDSR. Nothing without spandrel.
    """
    if not (INSTALLED and files):
        return {}
    examples = _examples(student)
    return {file: _opened(student, file, examples) for file in files}


def _opened(student: Student, file: Path, examples: Sequence[Example]) -> tuple[str, str]:
    own = student.description.arguments
    try:
        with silence():
            found = opened_by_spandrel(load_state_dict(file, '-o'))
            if found is None:
                known = is_spandrels(type(student.net))
                return '', f'spandrel does not recognize this {student.description.architecture}' if known else ''
            with torch.no_grad():
                net = found.model.eval()
                # cloned: spandrel's RCAN multiplies its input in place
                differences = [float((net(example.lq.clone()) - example.sr).abs().max()) for example in examples]
    except (ValueError, RuntimeError) as error:
        return '', f'spandrel {one_line(error, 200)}'
    unit = max(float(example.sr.max() - example.sr.min()) for example in examples) or 1.0
    difference = max(differences) / unit
    words = f'opens in spandrel as {found.architecture.name}, largest difference: {in_steps(difference)}'
    if difference <= ROUNDING:
        return words, ''
    theirs = found.model.hyperparameters
    others = [f'{key}: {theirs[key]} for {own[key]}' for key in theirs if key in own and differs(own[key], theirs[key])]
    return words, (
        f'spandrel, which cannot read it off the weights, takes {", ".join(others)}: its images differ by '
        f'{in_steps(difference)}'
    )


def in_steps(difference: float) -> str:
    """A difference of the range of the student's output, in words."""
    return f'{difference / STEP:.2g} of an 8-bit step' if difference else 'none'


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Holds back what is printed, by C++ too: what file descriptors 1 and 2 are given."""
    library = ctypes.CDLL(None)
    with (
        Path(os.devnull).open('w') as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
        contextlib.ExitStack() as undo,
    ):
        for number in (1, 2):
            kept = os.dup(number)
            undo.callback(os.close, kept)
            undo.callback(os.dup2, kept, number)
        undo.callback(library.fflush, None)  # what C and C++ hold in their buffers, before it gets to the terminal
        library.fflush(None)
        for number in (1, 2):
            os.dup2(nowhere.fileno(), number)
        yield


def _loaded(file: Path, student: Student, format: Format) -> dict[str, nn.Module]:
    """What runs a written file, by name.

    Raises:
        ValueError: its content is not the student's; worded as the end of "it would".
    """
    if format.runner == PROGRAM:
        net, description = read_program(file)
    else:
        try:
            read = read_student(file, where='-o')
        except UserError as error:
            reason = one_line(error.__cause__ or error, 200).removeprefix(f'-o: {file} ')
            raise ValueError(f'not be read back ({reason})') from error
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
        return {format.runner: net, 'torch in float16': _Halved(student.net)}
    return {format.runner: net}


def _difference(net: nn.Module, examples: Sequence[Example], tolerance: float, cause: str) -> float:
    """The largest difference to the student's output, of the range of that.

    Raises:
        ValueError: it is too large, or there is none; worded as the end of "it would".
    """
    outputs = torch.cat([example.sr.flatten() for example in examples])
    largest, unit = 0.0, float(outputs.max() - outputs.min()) or 1.0
    for example in examples:
        size = f'photographs of {example.lq.shape[2]} x {example.lq.shape[3]}'
        try:
            sr = net(example.lq)
        except Exception as error:  # what onnxruntime and exported programs raise has no class in common
            raise ValueError(f'not run on {size} ({one_line(error, 200)})') from error
        if sr.shape != example.sr.shape:
            raise ValueError(f'make {tuple(sr.shape)} instead of {tuple(example.sr.shape)} of {size}')
        if not sr.isfinite().all():
            raise ValueError(f'make numbers that are not finite of {size}: {cause}')
        difference = float((sr - example.sr).abs().max()) / unit
        if difference > tolerance:
            raise ValueError(
                f'differ by {difference / STEP:.2g} of an 8-bit step, more than rounding '
                f'({tolerance / STEP:.2g}), on {size}: {cause}'
            )
        largest = max(largest, difference)
    return largest


def _examples(student: Student, sizes: Sizes = COMPARED) -> list[Example]:
    """Photographs of the first sizes that the student takes.

    Raises:
        UserError: it takes none, or its output is not finite.
    """
    channels, architecture = input_channels(student.description.network), student.description.architecture
    for shapes in sizes:
        images = [
            torch.cat([photograph_input(PHOTOGRAPHS[i % 2], channels, *size) for i in range(n)]) for n, *size in shapes
        ]
        try:
            examples = [Example(lq, student.net(lq.clone())) for lq in images]
        except (RuntimeError, AssertionError) as error:  # AssertionError: RRDBNet's
            refusal = error
            continue
        if not all(example.sr.isfinite().all() for example in examples):
            raise UserError(
                f'CHECKPOINT: {architecture} makes numbers that are not finite of photographs; accepted: weights that '
                'have learnt to upscale them'
            )
        return examples
    raise UserError(
        f'network_g: {architecture} does not run on images of {shapes[0][1]} x {shapes[0][2]} ({one_line(refusal)}); '
        f'accepted: {"a network that does" if sizes == COMPARED else "another --static"}'
    ) from refusal


def run_by(backend: str, student: Student, where: str) -> RuntimeNetwork:
    """A student, exported in memory, by one of ``BACKENDS``; compared with it on photographs, as files are.

    Raises:
        UserError: ONNX or the backend does not support it, or is not installed.
    """
    if importlib.util.find_spec('onnx') is None:
        raise UserError(
            f'{where}: {backend}: needs onnx, which is not installed; accepted: {BACKENDS[backend].install}'
        )
    architecture = student.description.architecture
    with (
        reraise(ValueError, lambda error: UserError(f'{where}: {backend}: would {error}; accepted: torch')),
        silence(),
    ):
        examples = _examples(student)
        try:
            content = onnx_bytes(student, half=False)
        except UserError as error:
            reason = one_line(error.__cause__ or error, 200)
            raise UserError(
                f'{where}: {backend}: {architecture} cannot be written as ONNX ({reason}); accepted: torch'
            ) from error
        net = BACKENDS[backend](content, where)
        _difference(net, examples, ROUNDING, FIXED)
    return net
