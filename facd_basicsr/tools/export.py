"""``facd export``: a trained student in deployment formats."""

import re
import shlex
import sys
from pathlib import Path

import click

from facd_basicsr.archs.reparameterization import as_compact, fused_blocks, reparameterized
from facd_basicsr.cli import EXIT_SKIPPED, QuietCommand
from facd_basicsr.deploy.export_formats import (
    BASIC,
    FUSED_WEIGHTS,
    OPSET,
    OPSETS,
    REPARAMETERIZED,
    TORCH_EXPORT,
    GraphOptions,
    export,
    in_steps,
    measured,
    onnx_formats,
    opened_in_spandrel,
    paths_of,
    require_onnx,
)
from facd_basicsr.deploy.student import STUDENT_SUFFIXES, read_student
from facd_basicsr.errors import UserError
from facd_basicsr.evaluation.complexity import parameters
from facd_basicsr.runs.run_folder import psnr_of

CHECKPOINTS = ('.pth', '.pt', '.ckpt', '.safetensors')


@click.command(cls=QuietCommand)
@click.argument('checkpoint', type=click.Path(path_type=Path))
@click.option(
    '-opt', '--opt', 'option_file', type=click.Path(), metavar='FILE', help='Train or test file of the student.'
)
@click.option(
    '-o',
    '--out',
    'stem',
    metavar='STEM',
    type=click.Path(path_type=Path),
    required=True,
    help='Output path without suffix: STEM.pth and so on. Its folder is made.',
)
@click.option(
    '--onnx/--no-onnx',
    default=True,
    show_default=True,
    help='Write STEM.onnx and STEM_fp16.onnx; needs onnx and onnxruntime.',
)
@click.option('--fp16/--no-fp16', default=True, show_default=True, help='Write STEM_fp16.onnx.')
@click.option('--opset', type=int, default=OPSET, show_default=True, help='Of the ONNX files: 11 to 20.')
@click.option(
    '--static', metavar='WxH', help='The ONNX files take images of this width and height only, as phones need.'
)
@click.option(
    '--batch',
    metavar='N',
    help='The ONNX files take this number of images at a time, or any: dynamic.  [default: dynamic; 1 with --static]',
)
@click.option('--mobile', is_flag=True, help="The ONNX files have operators that phones' delegates run.")
@click.option('--torch-export', is_flag=True, help='Also write STEM.pt2.')
def command(
    checkpoint: Path,
    option_file: str | None,
    stem: Path,
    onnx: bool,
    fp16: bool,
    opset: int,
    static: str | None,
    batch: str | None,
    mobile: bool,
    torch_export: bool,
) -> None:
    """Export a trained student as .pth, .safetensors, .onnx and _fp16.onnx.

    Each file is loaded back and compared with the student on photographs. One that does not hold is not written: a line
    says why, and the exit code is then 3. FILE is not needed for a CHECKPOINT in experiments/NAME/models or one written
    by facd export. docs/deploy.md says how to use each format.

    A student whose blocks fuse for inference, as ECBSR's and SPAN's, is re-parameterized in ONNX and .pt2, and is as it
    was trained in .pth and .safetensors; ECBSR is also written as the SRVGGNetCompact that it then is, to
    STEM_fused.pth and STEM_fused.safetensors.

    \b
    Example:
      facd export experiments/FACD_EDSR_x4/models/net_g_latest.pth --opt options/train/FACD_EDSR_x4.yml -o student
      facd export student.pth -o phone --mobile --static 640x360
    """
    options = _graph_options(opset, static, batch, mobile)
    if onnx:
        require_onnx('--onnx')
    elif options != GraphOptions():
        raise UserError(
            '--no-onnx: with --opset, --static, --batch or --mobile; accepted: --onnx, whose files they change'
        )
    in_float32, in_float16 = onnx_formats(options)
    chosen = {in_float32: onnx, in_float16: onnx and fp16, TORCH_EXPORT: torch_export}
    formats = [*BASIC, *(format for format, is_chosen in chosen.items() if is_chosen)]
    if checkpoint.suffix == '.onnx':
        raise UserError(f'CHECKPOINT: {checkpoint}; accepted: a name that ends in {", ".join(CHECKPOINTS)}')
    paths_of(stem, formats)  # which takes no time, reading and measuring the student do
    student = measured(read_student(checkpoint, option_file, 'CHECKPOINT'), psnr_of(checkpoint))
    description = student.description
    radius = 'the whole image' if description.reach is None else f'radius {description.reach} pixels'
    psnr = ', '.join(f'{name} {value:.2f} dB' for name, value in description.psnr.items()) or 'unknown'
    click.echo(
        f'{description.architecture} x{description.scale}: {parameters(student.net):,} parameters; '
        f'receptive field: {radius}; PSNR-Y in validation: {psnr}'
    )
    if as_compact(student.net) is not None:
        formats += FUSED_WEIGHTS
    found = export(student, stem, formats)
    fused = [result for result in found.values() if isinstance(result, dict) and REPARAMETERIZED in result]
    if fused:
        blocks = ', '.join(f'{number} {name}' for name, number in fused_blocks(student.net).items())
        click.echo(
            f'{REPARAMETERIZED}: {blocks}, one convolution each; {parameters(reparameterized(student.net)):,} '
            f'parameters; largest difference: {in_steps(fused[0][REPARAMETERIZED])}'
        )
    weights = [path for path, format in zip(found, formats) if format in (*BASIC, *FUSED_WEIGHTS)]
    opened = opened_in_spandrel(student, [path for path in weights if not isinstance(found[path], UserError)])
    for (path, result), format in zip(found.items(), formats):
        if isinstance(result, UserError):
            click.echo(f'error: {path}: not written: {result}', err=True)
            continue
        differences = ', '.join(
            f'{in_steps(difference)} ({name})' for name, difference in result.items() if name != REPARAMETERIZED
        )
        holds = f'{REPARAMETERIZED}, {format.holds}' if REPARAMETERIZED in result else format.holds
        line = f'{path}: {path.stat().st_size / 1e6:.2f} MB; {holds}; largest difference: {differences}'
        opens, warning = opened.get(path, ('', ''))
        click.echo(f'{line}; {opens}' if opens else line)
        if warning:
            click.echo(f'warning: {path}: {warning}', err=True)
    written = [path for path, result in found.items() if not isinstance(result, UserError)]
    readable = [path for path in written if path.suffix in STUDENT_SUFFIXES]
    if readable:
        use = next((path for path in readable if path.suffix == '.safetensors'), readable[0])
        click.echo(f'facd upscale IN -o OUT --student {shlex.quote(str(use))}')
    if len(written) < len(found):
        sys.exit(EXIT_SKIPPED if written else 2)


def _graph_options(opset: int, static: str | None, batch: str | None, mobile: bool) -> GraphOptions:
    """
    Raises:
        UserError: an option is not what is accepted.
    """
    if opset not in OPSETS:
        raise UserError(f'--opset: {opset}; accepted: {OPSETS[0]} to {OPSETS[-1]}')
    size = None
    if static is not None:
        found = re.fullmatch('([1-9][0-9]*)x([1-9][0-9]*)', static)
        if found is None:
            raise UserError(f'--static: {static}; accepted: width x height in pixels of LQ, as 640x360')
        size = int(found[2]), int(found[1])
    if batch is None:
        batch = 'dynamic' if size is None else '1'
    if re.fullmatch('dynamic|[1-9][0-9]*', batch) is None:
        raise UserError(f'--batch: {batch}; accepted: a number of images, or dynamic')
    return GraphOptions(opset, size, None if batch == 'dynamic' else int(batch), mobile)
