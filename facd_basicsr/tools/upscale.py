"""``facd upscale``: images and folders of them through a student."""

import logging
import sys
from pathlib import Path

import click
from basicsr.utils import get_root_logger

from facd_basicsr.deploy.student import read_student
from facd_basicsr.deploy.upscale_images import (
    UpscaleJob,
    UpscaleRecord,
    is_one_file,
    pairs_of,
    student_id,
    upscale_images,
)
from facd_basicsr.deploy.upscaler import Upscaler
from facd_basicsr.errors import UserError, reraise_disk_errors

LEFT_OUT = 3  # exit code; 1 is Python's for a crash, 2 for what a user can fix


def _unfinished(pairs: list[UpscaleJob], record: UpscaleRecord | None) -> list[UpscaleJob]:
    if record is not None:
        return record.unfinished(pairs)
    (pair,) = pairs
    if pair.target.exists():
        raise UserError(f'--out: {pair.target} exists; accepted: a new file, or --overwrite')
    return pairs


@click.command()
@click.argument('inputs', metavar='IN...', nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option('-o', '--out', required=True, type=click.Path(path_type=Path), help='Folder; for one image also a file.')
@click.option(
    '-s', '--student', required=True, type=click.Path(path_type=Path), help='.pth, .pt, .safetensors or .onnx.'
)
@click.option(
    '-opt',
    '--opt',
    'option_file',
    type=click.Path(),
    help="The student's train or test file, where neither it nor its folder tells.",
)
@click.option('--format', 'kind', type=click.Choice(['png', 'jpg', 'webp']), help='Of the files.  [default: png]')
@click.option(
    '--tile',
    type=click.IntRange(0),
    help='Pixels of IN per side that run at once; fewer take less memory and more time. 0: whole images, as '
    'RCAN and others that look at the whole image run with any number.  [default: 512; 256 for ONNX and networks '
    'other than EDSR]',
)
@click.option(
    '--jobs',
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help='Images at a time; each takes its own memory.',
)
@click.option('--overwrite', is_flag=True, help='Make files again that are there already.')
def command(
    inputs: tuple[Path, ...],
    out: Path,
    student: Path,
    option_file: str | None,
    kind: str | None,
    tile: int | None,
    jobs: int,
    overwrite: bool,
) -> None:
    """Upscale images, and folders of them with all folders below, by a student; on the GPU if there is one.

    Gray, alpha, 16 bits a channel and color profile are kept, and images turned as their EXIF orientation says. The
    files are named as the images, and lie below OUT as these below IN. The same command again makes what is missing
    and what has changed. An image that cannot be read is named and left out; then the exit code is 3. Links to folders
    inside IN are not followed. docs/upscale.md

    \b
    Example:
      facd upscale photos -o photos_x4 --student experiments/FACD_EDSR_x4/models/net_g_latest.pth
      facd upscale a.jpg -o a_x4.png -s student.onnx
    """
    get_root_logger().setLevel(logging.WARNING)  # BasicSR's parts say what they build
    pairs = pairs_of(inputs, out, kind and f'.{kind}')
    found = read_student(student, option_file, '--student')
    with reraise_disk_errors():
        record = None if is_one_file(inputs, out) else UpscaleRecord(out, student_id(student, found.description))
        pending = pairs if overwrite else _unfinished(pairs, record)
        skipped = upscale_images(Upscaler(found, tile), pending, jobs, record) if pending else 0
    upscaled, already = len(pending) - skipped, len(pairs) - len(pending)
    click.echo(f'{out}: {upscaled} upscaled, {already} already there, {skipped} skipped')
    sys.exit(LEFT_OUT if skipped else 0)
