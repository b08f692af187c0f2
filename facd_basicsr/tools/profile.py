"""``facd profile``: cost of teacher and student, as in NTIRE's challenges on efficient super-resolution."""

import json
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
from basicsr.archs import build_network
from torch import nn

from facd_basicsr.archs import input_channels
from facd_basicsr.cli import QuietCommand, overrides_option
from facd_basicsr.deploy.export_formats import int8_graph, require_onnx
from facd_basicsr.deploy.quantization import quantize_by_min_max
from facd_basicsr.deploy.runtimes import INSTALL, CpuOnnxNetwork
from facd_basicsr.deploy.student import Student, describe_network
from facd_basicsr.errors import UserError
from facd_basicsr.evaluation.costs import cost_tables, costs
from facd_basicsr.evaluation.tables import markdown_table, text_table
from facd_basicsr.files.atomic import atomic_write, make_folder_of

TABLE_SUFFIXES = ('.json', '.md')


@click.command(cls=QuietCommand)
@click.option(
    '-opt', '--opt', 'option_file', type=click.Path(), required=True, help='Option file for train.py or test.py.'
)
@click.option(
    '--repeats', default=5, show_default=True, type=click.IntRange(0), help='Timed forward passes; 0: no latency.'
)
@click.option(
    '--out', type=click.Path(path_type=Path), help='Also write this file, .json or .md; an existing one is replaced.'
)
@overrides_option
def command(option_file: str, repeats: int, out: Path | None, overrides: tuple[str, ...]) -> None:
    """Cost of teacher and student: parameters, multiply-adds, activations, memory and latency.

    For an input of 256x256, as in NTIRE's challenges on efficient super-resolution, and for an output of 1280x720. A
    train file gives teacher and student, a test file the student. Data and checkpoints are not needed, except the
    checkpoint of a teacher that spandrel detects. A multiply-add counts as one, as in NTIRE's FLOPs. The student's ONNX
    file, and the same in int8, as facd export writes them, have a row with their latency by onnxruntime on the CPU.

    \b
    Example:
      facd profile -opt options/train/FACD_EDSR_x4.yml
    """
    if out is not None:
        if out.suffix not in TABLE_SUFFIXES:
            raise UserError(f'--out: {out}; accepted: a name that ends in {", ".join(TABLE_SUFFIXES)}')
        if out.is_dir():
            raise UserError(f'--out: {out} is a folder; accepted: a file name')
        make_folder_of(out, '--out')
    with TemporaryDirectory() as folder:
        result = costs(option_file, overrides, repeats, partial(_graphs, folder=Path(folder)))
    click.echo(cost_tables(result, text_table))
    if out is not None:
        text = json.dumps(result, indent=1) if out.suffix == '.json' else cost_tables(result, markdown_table)
        atomic_write(out, f'{text}\n')


def _graphs(opt: dict[str, Any], folder: Path) -> dict[str, nn.Module]:
    """{row: network} of the student's ONNX files, written to a folder; none, with a line, where they cannot be."""
    block = opt['network_g']
    student = Student(build_network(block).eval().requires_grad_(False), describe_network(block, opt['scale']))
    found: dict[str, nn.Module] = {}
    try:
        require_onnx('ONNX')
        (folder / 'onnx').write_bytes(int8_graph(student))
        found['student, ONNX'] = CpuOnnxNetwork(folder / 'onnx', 'ONNX')
        (folder / 'int8').write_bytes(quantize_by_min_max(folder / 'onnx', input_channels(block)))
        found['student, int8'] = CpuOnnxNetwork(folder / 'int8', 'ONNX')
    except UserError as error:
        reason, _, accepted = str(error).partition('; accepted: ')
        if INSTALL in accepted:  # other advice is facd export's
            reason = f'{reason}; accepted: {INSTALL}'
        click.echo(f'no row of {"int8" if found else "ONNX and int8"}: {reason}', err=True)
    return found
