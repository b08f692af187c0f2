"""``facd upscale``: upscales images, folders of images and streams of frames with a student."""

import re
import signal
import sys
from pathlib import Path

import click

from facd_basicsr.cli import EXIT_SKIPPED, QuietCommand
from facd_basicsr.deploy.memory_bound import MemoryBound
from facd_basicsr.deploy.runtimes import BACKENDS
from facd_basicsr.deploy.student import Student, read_student
from facd_basicsr.deploy.upscale_images import (
    UpscaleRecord,
    is_one_file,
    pairs_of,
    student_id,
    upscale_images,
)
from facd_basicsr.deploy.upscale_stream import own_stdout, upscale_stream
from facd_basicsr.deploy.upscaler import Upscaler
from facd_basicsr.errors import UserError


@click.command(cls=QuietCommand)
@click.argument('inputs', metavar='IN...', nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    '-o', '--out', type=click.Path(path_type=Path), help='Output folder, or a file for a single image.  [required]'
)
@click.option(
    '-s', '--student', required=True, type=click.Path(path_type=Path), help='.pth, .pt, .ckpt, .safetensors or .onnx.'
)
@click.option(
    '-opt',
    '--opt',
    'option_file',
    type=click.Path(),
    help='Train or test file of the student, if neither its checkpoint nor its folder has one.',
)
@click.option(
    '--backend',
    type=click.Choice(['torch', *BACKENDS]),
    help='What runs the student; ONNX by torch is not supported.  [default: torch; onnxruntime for ONNX]',
)
@click.option('--format', 'kind', type=click.Choice(['png', 'jpg', 'webp']), help='Image format.  [default: png]')
@click.option(
    '--tile',
    type=click.IntRange(0),
    help='Tile size in input pixels; smaller tiles take less memory and more time. 0: no tiles, which RCAN and other '
    'networks with a global receptive field always use.  [default: 512; 256 for ONNX and networks other than EDSR]',
)
@click.option(
    '--memory',
    metavar='SIZE',
    help='Bound of the memory of the whole process, as 2G or 800M: tiles are chosen by it, and fewer images run in '
    'parallel. Instead of --tile.',
)
@click.option(
    '--jobs',
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help='Images in parallel; each takes its own memory.',
)
@click.option('--overwrite', is_flag=True, help='Overwrite existing files.')
@click.option(
    '--raw', metavar='WIDTHxHEIGHT', help='IN is -: rgb24 frames of this size are read from stdin, upscaled to stdout.'
)
def command(
    inputs: tuple[Path, ...],
    out: Path | None,
    student: Path,
    option_file: str | None,
    backend: str | None,
    kind: str | None,
    tile: int | None,
    memory: str | None,
    jobs: int,
    overwrite: bool,
    raw: str | None,
) -> None:
    """Upscale images and folders (recursively) with a student, on the GPU if there is one.

    Keeps gray, alpha, 16 bits per channel and color profiles, and applies the EXIF orientation. OUT mirrors the names
    and folders of IN. Run the same command again to upscale only what is missing or has changed. Unreadable images are
    reported and skipped; the exit code is then 3. Links to folders inside IN are not followed. docs/upscale.md

    \b
    Example:
      facd upscale photos -o photos_x4 --student experiments/FACD_EDSR_x4/models/net_g_latest.pth
      facd upscale a.jpg -o a_x4.png -s student.onnx
      ffmpeg -i a.mp4 -f rawvideo -pix_fmt rgb24 - | facd upscale --raw 640x360 - -s student.onnx |
        ffmpeg -f rawvideo -pix_fmt rgb24 -s 1280x720 -i - a_x2.mp4
    """
    limit = None if memory is None else _bytes(memory)
    if limit is not None and tile is not None:
        raise UserError(f'--tile: {tile}, with --memory, which chooses it; accepted: one of the two')
    size = (
        None if raw is None else _size(raw, inputs, {'--out': out, '--format': kind, '--overwrite': overwrite or None})
    )
    if student.suffix == '.onnx' and backend == 'torch':
        raise UserError(f'--backend: torch; accepted with {student}: {", ".join(BACKENDS)}')
    backend = backend or ('onnxruntime' if student.suffix == '.onnx' else 'torch')
    if size is not None:
        with own_stdout() as target:
            _upscale_stream(_read(student, option_file, backend), *size, backend, tile, limit, jobs, target)
        return
    if out is None:
        raise UserError('--out: missing; accepted: a folder, for one image also a new file, or --raw without it')
    if Path('-') in inputs and not Path('-').exists():
        raise UserError('IN: -; accepted: images and folders, or with --raw WIDTHxHEIGHT a stream')
    pairs = pairs_of(inputs, out, kind and f'.{kind}')
    found = _read(student, option_file, backend)
    record = None if is_one_file(inputs, out) else UpscaleRecord(out, student_id(student, found.description))
    pending = pairs if overwrite or record is None else record.unfinished(pairs)
    if record is None and pairs[0].target.exists() and not overwrite:
        raise UserError(f'--out: {pairs[0].target} exists; accepted: a new file, or --overwrite')
    skipped = 0
    if pending:
        upscaler = Upscaler(found, tile, backend)
        bound = None if limit is None else MemoryBound(upscaler, limit)
        if upscaler.seams is not None:
            click.echo(upscaler.seams)
        skipped = upscale_images(upscaler, pending, jobs, record, bound)
    upscaled, existing = len(pending) - skipped, len(pairs) - len(pending)
    click.echo(f'{out}: {upscaled} upscaled, {existing} up to date, {skipped} skipped')
    sys.exit(EXIT_SKIPPED if skipped else 0)


def _read(student: Path, option_file: str | None, backend: str) -> Student:
    return read_student(student, option_file, '--student', backend if backend in BACKENDS else 'onnxruntime')


def _bytes(text: str) -> int:
    found = re.fullmatch(r'(\d+(?:\.\d+)?)([KMG]?)', text, re.IGNORECASE)
    if found is None:
        raise UserError(f'--memory: {text}; accepted: bytes, or a number with K, M or G, as 2G')
    return int(float(found[1]) * 1024 ** ' KMG'.index(found[2].upper() or ' '))


def _size(raw: str, inputs: tuple[Path, ...], unused: dict[str, object]) -> tuple[int, int]:
    """Width and height of frames.

    Raises:
        UserError: they are not that, or something else is given that has no meaning for a stream.
    """
    found = re.fullmatch(r'([1-9]\d{0,5})x([1-9]\d{0,5})', raw)
    if found is None:
        raise UserError(f'--raw: {raw}; accepted: WIDTHxHEIGHT in pixels, as 640x360')
    if inputs != (Path('-'),):
        raise UserError(f'IN: {" ".join(map(str, inputs))}; accepted with --raw: -, for standard input')
    for option, value in unused.items():
        if value is not None:
            raise UserError(f'{option}: given; accepted with --raw: none, for frames go to standard output')
    for name, stream in (('input', sys.stdin), ('output', sys.stdout)):
        if stream.isatty():
            raise UserError(
                f'--raw: standard {name} is a terminal; accepted: a pipe or a file; docs/upscale.md#streams'
            )
    return int(found[1]), int(found[2])


def _upscale_stream(
    student: Student,
    width: int,
    height: int,
    backend: str,
    tile: int | None,
    limit: int | None,
    jobs: int,
    target: int,
) -> None:
    upscaler = Upscaler(student, tile, backend)
    chosen = None
    if limit is not None:
        chosen, jobs = MemoryBound(upscaler, limit).for_frames(width, height, jobs)
    if upscaler.seams is not None:
        click.echo(upscaler.seams, err=True)
    try:
        count = upscale_stream(upscaler, width, height, jobs, 0, target, chosen, limit is not None)
    except BrokenPipeError:  # as of other programs, whose reader has seen enough
        sys.exit(128 + signal.SIGPIPE)
    click.echo(f'{count} frames', err=True)
