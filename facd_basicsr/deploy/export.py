"""Writes a trained student as files that other programs read, each loaded back and compared."""

import dataclasses
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from facd_basicsr.deploy.graphs import channels, onnx_bytes, program_bytes, read_program
from facd_basicsr.deploy.student import METADATA, Student, read_student
from facd_basicsr.engine.whole_files import written_together
from facd_basicsr.errors import UserError
from facd_basicsr.evaluation.tiling import reach_of

STEP = 1 / 255  # of 8 bits, in [0, 1]
ROUNDING = 0.01 * STEP  # thirty times as much as float32 graphs were measured to differ by
TILE = 64  # in which the reach is put to the test
COMPARED = ((2, 24, 40), (1, 33, 17))  # images, height, width; none that a graph is traced at


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        suffix: of its name, after the stem.
        content: of the file.
        load: a written file; raises :class:`UserError` where it is not of the student.
        holds: what it is and how it was loaded, in a few words.
        tolerance: how far its output may be from the student's, of a range of 1; without one it has to be finite.
    """

    suffix: str
    content: Callable[[Student], bytes]
    load: Callable[[Path, Student], nn.Module]
    holds: str
    tolerance: float = ROUNDING


@dataclass(frozen=True)
class Written:
    """A file that was written, loaded back and compared.

    Attributes:
        path: its name.
        size: bytes.
        holds: what it is and how it was loaded, in a few words.
        difference: the largest between an output of it and of the student, of a range of 1.
    """

    path: Path
    size: int
    holds: str
    difference: float


def measured(student: Student, psnr: dict[str, float]) -> Student:
    """The student, its description complete with its reach, if it has one, and with figures, if there are any."""
    description = student.description
    try:
        reach = reach_of(student.net, channels(description), description.scale, TILE)
    except UserError:  # it looks at the whole image
        reach = None
    return Student(student.net, dataclasses.replace(description, reach=reach, psnr=psnr or description.psnr))


def paths_of(stem: Path, formats: Sequence[Format]) -> list[Path]:
    """The files that would be written.

    Raises:
        UserError: one is there already, there is no folder for them, or the stem is a file's whole name.
    """
    if not stem.parent.is_dir():
        raise UserError(f'-o: no such folder: {stem.parent}')
    if stem.suffix in {format.suffix for format in FORMATS}:
        raise UserError(f'-o: {stem}; accepted: a name without suffix, as {stem.with_suffix("")}, for several files')
    paths = [stem.with_name(stem.name + format.suffix) for format in formats]
    there = [str(path) for path in paths if path.exists()]
    if there:
        raise UserError(f'-o: {", ".join(there)} is there already; accepted: the name of new files')
    return paths


def export(student: Student, stem: Path, formats: Sequence[Format]) -> list[Written]:
    """Writes all files or, when one of them fails, none.

    Args:
        student: what :func:`measured` gives.
        stem: the files' path without suffix.
        formats: some of ``FORMATS``.

    Raises:
        UserError: as of :func:`paths_of`; a format has no words for the network; or a file does not hold the student.
        OSError: the disk is full.
    """
    paths = paths_of(stem, formats)
    with written_together(paths) as partials:
        return [_write(student, format, path, partial) for format, path, partial in zip(formats, paths, partials)]


def _write(student: Student, format: Format, path: Path, partial: Path) -> Written:
    partial.write_bytes(format.content(student))
    difference = _difference(format.load(partial, student), student, path)
    if not math.isfinite(difference) or difference > format.tolerance:
        raise UserError(
            f'-o: {path} would differ from the student by {difference / STEP:.2g} of an 8-bit step; accepted: '
            f'{"finite output" if math.isinf(format.tolerance) else f"up to {format.tolerance / STEP:.2g}"}. {LEFT_OUT}'
        )
    return Written(path, partial.stat().st_size, format.holds, difference)


def _difference(net: nn.Module, student: Student, path: Path) -> float:
    """The largest of both networks' outputs for random images, of a range of 1."""
    generator, differences = torch.Generator().manual_seed(0), []
    for images, height, width in COMPARED:
        lq = torch.rand(images, channels(student.description), height, width, generator=generator)
        expected = student.net(lq.clone())
        try:
            sr = net(lq.clone())
        except Exception as error:  # what onnxruntime and exported programs raise has no class in common
            reason = ' '.join(str(error).split())
            raise UserError(
                f'-o: {path} would not run on an image of {height} x {width} ({reason}). {LEFT_OUT}'
            ) from error
        if sr.shape != expected.shape:
            raise UserError(
                f'-o: {path} would make {tuple(sr.shape)} of an image of {height} x {width}; accepted: '
                f'{tuple(expected.shape)}. {LEFT_OUT}'
            )
        differences.append((sr - expected).abs().max())
    return float(torch.stack(differences).max())  # of which max(), unlike Python's, keeps what is no number


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


def _onnx(student: Student) -> bytes:
    return onnx_bytes(student.net, student.description, half=False)


def _onnx_fp16(student: Student) -> bytes:
    return onnx_bytes(student.net, student.description, half=True)


def _program(student: Student) -> bytes:
    return program_bytes(student.net, student.description)


def _load_described(path: Path, student: Student) -> nn.Module:
    read = read_student(path, where='-o')
    if read.description != student.description:
        raise UserError(f'-o: {path} describes {read.description}; accepted: {student.description}')
    return read.net


def _load_weights(path: Path, student: Student) -> nn.Module:
    net = _load_described(path, student)
    own = student.net.state_dict()
    changed = [key for key, value in net.state_dict().items() if not torch.equal(value, own[key])]
    if changed:
        raise UserError(f'-o: {path} did not read back as it was written: {changed[0]}; accepted: a sound disk')
    return net


def _load_program(path: Path, student: Student) -> nn.Module:
    net, description = read_program(path)
    if description != student.description:
        raise UserError(f'-o: {path} describes {description}; accepted: {student.description}')
    return net


LEFT_OUT = '--no-onnx leaves ONNX out'
BASIC = (
    Format('.pth', _pth, _load_weights, "BasicSR's checkpoint, loaded strictly: weights equal"),
    Format('.safetensors', _safetensors, _load_weights, 'with metadata, loaded strictly: weights equal'),
)
ONNX = (
    Format('.onnx', _onnx, _load_described, 'ONNX, run by onnxruntime'),
    Format('_fp16.onnx', _onnx_fp16, _load_described, 'ONNX, float16 inside, run by onnxruntime', math.inf),
)
TORCH_EXPORT = (Format('.pt2', _program, _load_program, 'torch.export, loaded by torch.export.load'),)
FORMATS = (*BASIC, *ONNX, *TORCH_EXPORT)
