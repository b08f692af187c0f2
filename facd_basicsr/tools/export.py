"""``facd export``: a trained student as files that other programs read."""

import shlex
from pathlib import Path

import click

from facd_basicsr.deploy.export_formats import (
    BASIC,
    ONNX,
    ONNX_FP16,
    STEP,
    TORCH_EXPORT,
    Written,
    export,
    measured,
    paths_of,
)
from facd_basicsr.deploy.graphs import require_onnx
from facd_basicsr.deploy.student import Student, read_student
from facd_basicsr.errors import UserError, reraise_disk_errors
from facd_basicsr.evaluation.complexity import parameters
from facd_basicsr.runs.run_folder import psnr_of

CHECKPOINTS = ('.pth', '.pt', '.safetensors')


@click.command()
@click.argument('checkpoint', type=click.Path(path_type=Path))
@click.option(
    '-opt', '--opt', 'option_file', type=click.Path(), metavar='FILE', help="Its training's or a test's option file."
)
@click.option(
    '-o',
    '--out',
    'stem',
    metavar='STEM',
    type=click.Path(path_type=Path),
    required=True,
    help='student: student.pth and so on.',
)
@click.option(
    '--onnx/--no-onnx',
    default=True,
    show_default=True,
    help='STEM.onnx and STEM_fp16.onnx; they need onnx and onnxruntime.',
)
@click.option('--fp16/--no-fp16', default=True, show_default=True, help='STEM_fp16.onnx.')
@click.option('--torch-export', is_flag=True, help='STEM.pt2 too.')
def command(checkpoint: Path, option_file: str | None, stem: Path, onnx: bool, fp16: bool, torch_export: bool) -> None:
    """Write a trained student as files that other programs read: .pth, .safetensors, .onnx and _fp16.onnx.

    Each is loaded back and compared with the student before any of them gets its name. FILE may be left out for a
    CHECKPOINT in experiments/NAME/models and for a file by facd export. docs/deploy.md says how each is used.

    \b
    Example:
      facd export experiments/FACD_EDSR_x4/models/net_g_latest.pth --opt options/train/FACD_EDSR_x4.yml -o student
    """
    chosen = {ONNX: onnx, ONNX_FP16: onnx and fp16, TORCH_EXPORT: torch_export}
    formats = [*BASIC, *(format for format, is_chosen in chosen.items() if is_chosen)]
    if onnx:
        require_onnx('--onnx')
    if checkpoint.suffix == '.onnx':
        raise UserError(f'CHECKPOINT: {checkpoint}; accepted: a name that ends in {", ".join(CHECKPOINTS)}')
    paths_of(stem, formats)
    student = measured(read_student(checkpoint, option_file, 'CHECKPOINT'), psnr_of(checkpoint))
    click.echo(_title(student))
    with reraise_disk_errors():
        written = export(student, stem, formats)
    for file in written:
        click.echo(_line(file))
    click.echo(f'facd upscale IN -o OUT --student {shlex.quote(f"{stem}.safetensors")}')


def _title(student: Student) -> str:
    description = student.description
    reach = 'at the whole image' if description.reach is None else f'{description.reach} pixels far'
    psnr = ', '.join(f'{name} {value:.2f} dB' for name, value in description.psnr.items()) or 'not known'
    return (
        f'{description.architecture} x{description.scale}: {parameters(student.net):,} parameters; looks {reach}; '
        f'PSNR-Y in validation: {psnr}'
    )


def _line(file: Written) -> str:
    differences = ', '.join(
        f'{difference / STEP:.2g} of an 8-bit step ({name})' if difference else f'none ({name})'
        for name, difference in file.differences.items()
    )
    return f'{file.path}: {file.size / 1e6:.2f} MB; {file.holds}; largest difference: {differences}'
