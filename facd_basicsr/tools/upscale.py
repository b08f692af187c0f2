"""``facd upscale``: upscales images and folders of images with a student."""

import sys
from pathlib import Path

import click

from facd_basicsr.cli import EXIT_SKIPPED, QuietCommand
from facd_basicsr.deploy.student import read_student
from facd_basicsr.deploy.upscale_images import (
    UpscaleRecord,
    is_one_file,
    pairs_of,
    student_id,
    upscale_images,
)
from facd_basicsr.deploy.upscaler import Upscaler
from facd_basicsr.errors import UserError


@click.command(cls=QuietCommand)
@click.argument('inputs', metavar='IN...', nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    '-o', '--out', required=True, type=click.Path(path_type=Path), help='Output folder, or a file for a single image.'
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
@click.option('--format', 'kind', type=click.Choice(['png', 'jpg', 'webp']), help='Image format.  [default: png]')
@click.option(
    '--tile',
    type=click.IntRange(0),
    help='Tile size in input pixels; smaller tiles take less memory and more time. 0: no tiles, which RCAN and other '
    'networks with a global receptive field always use.  [default: 512; 256 for ONNX and networks other than EDSR]',
)
@click.option(
    '--jobs',
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help='Images in parallel; each takes its own memory.',
)
@click.option('--overwrite', is_flag=True, help='Overwrite existing files.')
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
    """Upscale images and folders (recursively) with a student, on the GPU if there is one.

    Keeps gray, alpha, 16 bits per channel and color profiles, and applies the EXIF orientation. OUT mirrors the names
    and folders of IN. Run the same command again to upscale only what is missing or has changed. Unreadable images are
    reported and skipped; the exit code is then 3. Links to folders inside IN are not followed. docs/upscale.md

    \b
    Example:
      facd upscale photos -o photos_x4 --student experiments/FACD_EDSR_x4/models/net_g_latest.pth
      facd upscale a.jpg -o a_x4.png -s student.onnx
    """
    pairs = pairs_of(inputs, out, kind and f'.{kind}')
    found = read_student(student, option_file, '--student')
    record = None if is_one_file(inputs, out) else UpscaleRecord(out, student_id(student, found.description))
    pending = pairs if overwrite or record is None else record.unfinished(pairs)
    if record is None and pairs[0].target.exists() and not overwrite:
        raise UserError(f'--out: {pairs[0].target} exists; accepted: a new file, or --overwrite')
    skipped = 0
    if pending:
        upscaler = Upscaler(found, tile)
        if upscaler.seams is not None:
            click.echo(upscaler.seams)
        skipped = upscale_images(upscaler, pending, jobs, record)
    upscaled, existing = len(pending) - skipped, len(pairs) - len(pending)
    click.echo(f'{out}: {upscaled} upscaled, {existing} up to date, {skipped} skipped')
    sys.exit(EXIT_SKIPPED if skipped else 0)
