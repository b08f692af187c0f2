"""``facd export``: a trained student in deployment formats."""

import re
import shlex
import sys
from pathlib import Path
from statistics import median
from typing import Any

import click

from facd_basicsr.archs.reparameterization import as_compact, fused_blocks, reparameterized
from facd_basicsr.cli import EXIT_SKIPPED, QuietCommand
from facd_basicsr.deploy.export_formats import (
    BASIC,
    FUSED_WEIGHTS,
    INT8,
    OPSET,
    OPSETS,
    QUANTIZED_OPSETS,
    REPARAMETERIZED,
    TORCH_EXPORT,
    GraphOptions,
    export,
    in_steps,
    int8_format,
    int8_graph,
    measured,
    onnx_formats,
    opened_in_spandrel,
    paths_of,
    require_onnx,
)
from facd_basicsr.deploy.quantization import Quantized, calibration_images, of_trained_ranges, quantize
from facd_basicsr.deploy.quantized_graph import qat_onnx_bytes
from facd_basicsr.deploy.runtimes import CpuOnnxNetwork
from facd_basicsr.deploy.student import STUDENT_SUFFIXES, Student, read_student
from facd_basicsr.errors import UserError
from facd_basicsr.evaluation.complexity import LQ_SIZE, latencies_ms, parameters
from facd_basicsr.evaluation.test_sets import validation_pairs
from facd_basicsr.options.parse import checked_options
from facd_basicsr.runs.run_folder import psnr_of, run_of
from facd_basicsr.runtime.metrics import photograph_input

NODES_SHOWN = 5
REPEATS, LIMIT = 7, 30  # of a latency; the limit in seconds
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
@click.option(
    '--opset', type=int, default=OPSET, show_default=True, help=f'Of the ONNX files: {OPSETS[0]} to {OPSETS[-1]}.'
)
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
@click.option('--int8', is_flag=True, help='Also write STEM_int8.onnx; needs --calibrate, or train.quantize.')
@click.option(
    '--calibrate',
    metavar='FOLDER',
    type=click.Path(path_type=Path),
    help='LQ images, as the student will get them, of which --int8 takes the ranges of activations. Not for a student '
    'of train.quantize, which has them.',
)
@click.option(
    '--keep',
    metavar='N',
    type=click.IntRange(0),
    help='Keep the N nodes that cost most in int8 in float.  [default: 0]',
)
@click.option(
    '--max-loss',
    metavar='DB',
    type=click.FloatRange(0, min_open=True),
    help='Keep as many nodes in float as it takes to lose no more PSNR-Y on the validation sets, on average.',
)
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
    int8: bool,
    calibrate: Path | None,
    keep: int | None,
    max_loss: float | None,
) -> None:
    """Export a trained student as .pth, .safetensors, .onnx, _fp16.onnx and, on request, .pt2 and _int8.onnx.

    Each file is loaded back and compared with the student on photographs. One that does not hold is not written: a line
    says why, and the exit code is then 3. FILE is not needed for a CHECKPOINT in experiments/NAME/models or one written
    by facd export. docs/deploy.md says how to use each format.

    A student whose blocks fuse for inference, as ECBSR's and SPAN's, is re-parameterized in ONNX and .pt2, and is as it
    was trained in .pth and .safetensors; ECBSR is also written as the SRVGGNetCompact that it then is, to
    STEM_fused.pth and STEM_fused.safetensors.

    With --int8 onnxruntime quantizes the ONNX file, after training; what that costs and gains is measured: PSNR-Y on
    the validation sets of the run or of FILE, the size and the latency.

    \b
    Examples:
      facd export experiments/FACD_EDSR_x4/models/net_g_latest.pth --opt options/train/FACD_EDSR_x4.yml -o student
      facd export student.pth -o phone --mobile --static 640x360
      facd export student.pth -o student_small --opt FILE --int8 --calibrate photographs --max-loss 0.05
    """
    options = _graph_options(opset, static, batch, mobile)
    of_int8 = {'--calibrate': calibrate, '--keep': keep, '--max-loss': max_loss}
    given = {option: value for option, value in of_int8.items() if value is not None}
    _check_int8(int8, onnx, options, given)
    if onnx:
        require_onnx('--onnx')
    elif options != GraphOptions():
        raise UserError(
            '--no-onnx: with --opset, --static, --batch or --mobile; accepted: --onnx, whose files they change'
        )
    in_float32, in_float16 = onnx_formats(options)
    chosen = {in_float32: onnx, in_float16: onnx and fp16, TORCH_EXPORT: torch_export}
    formats = [*BASIC, *(format for format, is_chosen in chosen.items() if is_chosen)]
    if checkpoint.suffix not in CHECKPOINTS:
        raise UserError(f'CHECKPOINT: {checkpoint}; accepted: a name that ends in {", ".join(CHECKPOINTS)}')
    # which takes no time, reading, measuring and quantizing the student do
    paths_of(stem, [format.suffix for format in formats] + [INT8] * int8)
    student = read_student(checkpoint, option_file, 'CHECKPOINT')
    trained = student.quantization is not None
    if int8:
        _check_ranges(trained, given)
    validated = psnr_of(checkpoint)
    student = measured(student, {} if trained else validated)  # train.quantize validates it as in int8
    description = student.description
    radius = 'the whole image' if description.reach is None else f'radius {description.reach} pixels'
    psnr = ', '.join(f'{name} {value:.2f} dB' for name, value in (validated or description.psnr).items())
    psnr = psnr or 'unknown'
    click.echo(
        f'{description.architecture} x{description.scale}: {parameters(student.net):,} parameters; '
        f'receptive field: {radius}; PSNR-Y in validation: {psnr}'
    )
    if as_compact(student.net) is not None:
        formats += FUSED_WEIGHTS
    quantized = None
    if int8:
        quantized = _quantized(student, options, checkpoint, option_file, calibrate, keep or 0, max_loss)
        of_int8_by_set = {name: after for name, (_, after) in quantized.psnr.items()}
        formats.append(int8_format(quantized.content, of_int8_by_set, options))
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
    if quantized is not None:
        files = [path for path, format in zip(found, formats) if format.suffix in (in_float32.suffix, INT8)]
        _report(quantized, files, options)
    written = [path for path, result in found.items() if not isinstance(result, UserError)]
    readable = [path for path in written if path.suffix in STUDENT_SUFFIXES]
    if readable:
        use = next((path for path in readable if path.suffix == '.safetensors'), readable[0])
        click.echo(f'facd upscale IN -o OUT --student {shlex.quote(str(use))}')
    if len(written) < len(found):
        sys.exit(EXIT_SKIPPED if written else 2)


def _check_int8(int8: bool, onnx: bool, options: GraphOptions, given: dict[str, Any]) -> None:
    """
    Args:
        given: {option of --int8: its value}.

    Raises:
        UserError: the options do not go together.
    """
    if int8 and not onnx:
        raise UserError('--no-onnx: with --int8, which is made of the ONNX file; accepted: one of both')
    if int8 and options.opset not in QUANTIZED_OPSETS:
        accepted = f'{QUANTIZED_OPSETS[0]} to {QUANTIZED_OPSETS[-1]}'
        raise UserError(f'--opset: {options.opset}; accepted with --int8: {accepted}')
    for option, value in given.items():
        if not int8:
            raise UserError(f'{option}: {value}; accepted: with --int8')
    if {'--keep', '--max-loss'} <= given.keys():
        raise UserError(f'--keep: {given["--keep"]}, and --max-loss: {given["--max-loss"]:g}; accepted: one of both')


def _check_ranges(trained: bool, given: dict[str, Any]) -> None:
    """
    Raises:
        UserError: the options of --int8 do not go with the student.
    """
    if not trained and '--calibrate' not in given:
        raise UserError(
            '--calibrate: missing; accepted with --int8: a folder of LQ images, or a CHECKPOINT of train.quantize; '
            'docs/deploy.md'
        )
    for option, value in given.items():
        if trained:
            raise UserError(f'{option}: {value}; accepted with a CHECKPOINT of train.quantize: none, it has its ranges')


def _quantized(
    student: Student,
    options: GraphOptions,
    checkpoint: Path,
    option_file: str | None,
    folder: Path | None,
    keep: int,
    max_loss: float | None,
) -> Quantized:
    """Quantizes the student, with PSNR-Y on the validation sets of its option file or run that are there.

    Args:
        folder: to calibrate with; None: it has ranges of training.
    """
    images = [] if folder is None else calibration_images(folder, student)
    run = run_of(checkpoint, 'CHECKPOINT') if option_file is None else None
    opt = run.opt if run is not None else option_file and checked_options(option_file, [])
    pairs, problems = validation_pairs(opt) if opt else ([], ['neither a run nor --opt names a set'])
    for problem in problems:
        click.echo(f'int8: PSNR-Y is not measured: {problem}', err=True)
    if max_loss is not None and not pairs:
        raise UserError(f'--max-loss: {max_loss:g}, but there is no set to measure it on; accepted: --keep N')
    graph = int8_graph(student, options)
    if folder is None:
        return of_trained_ranges(graph, qat_onnx_bytes(student, options=options.of_any_size), student, pairs)
    return quantize(graph, student, images, pairs, keep, max_loss)


def _report(quantized: Quantized, files: list[Path], options: GraphOptions) -> None:
    """What int8 costs and gains, beside the float file."""
    if quantized.method:
        _report_calibration(quantized)
    for name, (before, after) in quantized.psnr.items():
        click.echo(f'int8: {name}: PSNR-Y {before:.2f} -> {after:.2f} dB')
    if all(file.is_file() for file in files):
        height, width = options.static or LQ_SIZE
        lq = photograph_input('astronaut.png', 3, height, width).repeat(options.batch or 1, 1, 1, 1)
        times = latencies_ms({str(file): (CpuOnnxNetwork(file, '-o'), lq) for file in files}, REPEATS, LIMIT)
        costs = [f'{median(times[str(file)]):.1f} ms, {file.stat().st_size / 1e6:.2f} MB' for file in files]
        click.echo(f'int8: {width}x{height} by onnxruntime on the CPU, median of {REPEATS}: {" -> ".join(costs)}')


def _report_calibration(quantized: Quantized) -> None:
    others = ', '.join(f'{name} {error:.2f}' for name, error in quantized.errors.items() if name != quantized.method)
    click.echo(
        f'int8: calibrated by {quantized.method}; root mean square difference to float, without nodes in float: '
        f'{quantized.errors[quantized.method]:.2f} of an 8-bit step ({others})'
    )
    costs = [
        f'{node} {cost:.2f}{" (in float)" if node in quantized.kept else ""}'
        for node, cost in [*quantized.sensitivity.items()][: max(NODES_SHOWN, len(quantized.kept))]
    ]
    click.echo(
        f'int8: {len(quantized.kept)} of {len(quantized.sensitivity)} nodes in float; the costliest, each alone in '
        f'int8: {", ".join(costs)}'
    )


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
