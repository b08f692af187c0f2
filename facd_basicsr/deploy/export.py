"""Writes a trained student as files that other programs read, each loaded back and compared."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from facd_basicsr.deploy.formats import FORMATS, STEP, Format
from facd_basicsr.deploy.graphs import channels
from facd_basicsr.deploy.student import Student
from facd_basicsr.engine.whole_files import written_together
from facd_basicsr.errors import UserError
from facd_basicsr.evaluation.tiling import reach_or_none

TILE = 64  # in which the reach is put to the test
# Images, height, width to compare at, none that a graph is traced at; the second for those whose sizes must be even
COMPARED = (((2, 24, 40), (1, 33, 17)), ((2, 64, 80), (1, 48, 32)))

Example = tuple[Tensor, Tensor]  # images (N, C, h, w) in [0, 1] and the student's output for them


@dataclass(frozen=True)
class Written:
    """A file that was written, loaded back and compared.

    Attributes:
        path: its name.
        size: bytes.
        holds: what it is, and what of it was compared beside its output.
        differences: {what ran it: the largest between its output and the student's, of a range of 1}.
    """

    path: Path
    size: int
    holds: str
    differences: dict[str, float]


def measured(student: Student, psnr: dict[str, float]) -> Student:
    """The student, its description complete with its reach, if it has one, and with figures, if there are any."""
    description = student.description
    reach = reach_or_none(student.net, channels(description), description.scale, TILE)
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
    if stem.is_dir():
        raise UserError(f'-o: {stem} is a folder; accepted: the name of files in it, as {stem / "student"}')
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
    paths, examples = paths_of(stem, formats), _examples(student)
    with written_together(paths) as partials:
        return [
            _write(student, format, path, partial, examples) for format, path, partial in zip(formats, paths, partials)
        ]


def _write(student: Student, format: Format, path: Path, partial: Path, examples: Sequence[Example]) -> Written:
    partial.write_bytes(format.content(student))
    try:
        nets = format.load(partial, student)
        differences = {name: _difference(net, examples, format) for name, net in nets.items()}
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f'-o: {path} would {error}; accepted: {format.instead}') from error
    return Written(path, partial.stat().st_size, format.holds, differences)


def _difference(net: nn.Module, examples: Sequence[Example], format: Format) -> float:
    """The largest between its output and the student's, of a range of 1.

    Raises:
        ValueError: it is too large, or there is none; worded as the end of "it would".
    """
    largest = 0.0
    for lq, expected in examples:
        size = f'images of {lq.shape[2]} x {lq.shape[3]}'
        try:
            sr = net(lq)
        except Exception as error:  # what onnxruntime and exported programs raise has no class in common
            raise ValueError(f'not run on {size}: {" ".join(str(error).split())}') from error
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
    for sizes in COMPARED:
        generator = torch.Generator().manual_seed(0)
        images = [torch.rand(n, channels(student.description), h, w, generator=generator) for n, h, w in sizes]
        try:
            return [(lq, student.net(lq.clone())) for lq in images]
        except (RuntimeError, AssertionError) as error:  # AssertionError: RRDBNet's
            refusal = error
    raise UserError(
        f'network_g: {student.description.architecture} does not run on images of {sizes[0][1]} x {sizes[0][2]} '
        f'({" ".join(str(refusal).split())}); accepted: a network that does'
    ) from refusal
