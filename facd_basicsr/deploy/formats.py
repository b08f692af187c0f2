"""The kinds of files that ``facd export`` writes: their content, and what runs a file that was written."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from facd_basicsr.deploy.description import Description
from facd_basicsr.deploy.graphs import OPSET, halved, onnx_bytes, program_bytes, read_program
from facd_basicsr.deploy.student import METADATA, Student, read_student

STEP = 1 / 255  # of 8 bits, in [0, 1]
ROUNDING = 0.01 * STEP  # thirty times as much as float32 graphs were measured to differ by
# Float16's. Measured: 0.1 to 0.44, EDSR 256 x 32 and features up to 18,000 included, for it grows with how much of them
# cancels and not with their size. Where the largest is 4, the root mean square is 0.7: 0.05 dB of a PSNR of 32.
HALF_ROUNDING = 4 * STEP


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        suffix: of its name, after the stem.
        content: of the file.
        load: what runs a written file, by name; raises ValueError, worded as the end of "it would", where its content
            is not the student's.
        holds: what it is, and what of it was compared beside its output.
        instead: what a user can do where the network does not fit it.
        cause: why its output may be another than the student's.
        tolerance: how far it may be from that, of a range of 1.
    """

    suffix: str
    content: Callable[[Student], bytes]
    load: Callable[[Path, Student], dict[str, nn.Module]]
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


def _onnx(student: Student) -> bytes:
    return onnx_bytes(student.net, student.description, half=False)


def _onnx_fp16(student: Student) -> bytes:
    return onnx_bytes(student.net, student.description, half=True)


def _program(student: Student) -> bytes:
    return program_bytes(student.net, student.description)


def _load_weights(path: Path, student: Student) -> dict[str, nn.Module]:
    read = _read(path, student)
    own = student.net.state_dict()
    changed = [key for key, value in read.net.state_dict().items() if not torch.equal(value, own[key])]
    if changed:
        raise ValueError(f'not read back as it was written ({changed[0]})')
    return {'torch': read.net}


def _load_onnx(path: Path, student: Student) -> dict[str, nn.Module]:
    return {'onnxruntime': _read(path, student).net}


def _load_onnx_fp16(path: Path, student: Student) -> dict[str, nn.Module]:
    # onnxruntime has few float16 operators for CPUs, and calculates the others in float32, where nothing overflows and
    # little is rounded. So the file is compared by it, and for the rest the same network by torch.
    return {**_load_onnx(path, student), 'torch in float16': halved(student.net)}


def _load_program(path: Path, student: Student) -> dict[str, nn.Module]:
    net, description = read_program(path)
    _check_description(description, student)
    return {'torch.export.load': net}


def _read(path: Path, student: Student) -> Student:
    read = read_student(path, where='-o')
    _check_description(read.description, student)
    return read


def _check_description(found: Description | None, student: Student) -> None:
    if found != student.description:
        raise ValueError(f'say {found} of itself instead of {student.description}')


STEADY = 'one with the same output for the same image'  # any other reason is found before outputs are compared
WEIGHTS = 'weights and arguments do not tell all of it'
BASIC = (
    Format('.pth', _pth, _load_weights, "BasicSR's checkpoint, loaded strictly, weights equal", STEADY, WEIGHTS),
    Format('.safetensors', _safetensors, _load_weights, 'loaded strictly, weights equal', STEADY, WEIGHTS),
)
GRAPH = 'a graph does not decide by the size, as the network may'
ONNX = Format('.onnx', _onnx, _load_onnx, f'ONNX, opset {OPSET}', '--no-onnx', GRAPH)
ONNX_FP16 = Format(
    '_fp16.onnx',
    _onnx_fp16,
    _load_onnx_fp16,
    f'ONNX, opset {OPSET}, float16 between float32 images',
    '--no-fp16',
    'float16 has three digits, too few for its features',
    HALF_ROUNDING,
)
TORCH_EXPORT = Format('.pt2', _program, _load_program, "torch.export's program", 'no --torch-export', GRAPH)
FORMATS = (*BASIC, ONNX, ONNX_FP16, TORCH_EXPORT)
