"""Costs of the networks of an option file, at the two sizes of efficient super-resolution papers."""

import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from basicsr.archs import build_network
from torch import nn

from facd_basicsr.archs import input_channels, network_sizes
from facd_basicsr.distill.teacher import build_teacher, teacher_blocks
from facd_basicsr.environment import machine, versions
from facd_basicsr.errors import UserError, one_line, reraise
from facd_basicsr.evaluation.complexity import (
    FUSED,
    LQ_SIZE,
    OUTPUT_SIZE,
    architecture,
    as_trained_and_fused,
    flops,
    footprint,
    latencies_ms,
    parameters,
    peak_gpu_memory,
)
from facd_basicsr.evaluation.methods import device_of, is_teacher, teacher_names
from facd_basicsr.options import load_options
from facd_basicsr.progress import ProgressBar
from facd_basicsr.runtime.size_requirements import Padded

LIMIT = 30  # seconds; on two CPU cores one forward of EDSR 256 x 32 takes as long
PROGRESS = '{desc} run {n_fmt} of {total_fmt}, {elapsed}'  # with the run that has just begun


Graphs = Callable[[dict[str, Any]], dict[str, nn.Module]]


def costs(option_file: str, overrides: Sequence[str], repeats: int, graphs: Graphs = lambda opt: {}) -> dict[str, Any]:
    """Counts and measures the networks of an option file at 256x256 input and at 1280x720 output.

    Args:
        option_file: for train.py, whose teachers are profiled too, or for test.py. Data and checkpoints need not be
            there, but for that of a teacher without ``network`` block.
        repeats: runs of which a latency is the median; 0: nothing runs.
        graphs: gives {row: network} of the options, of which only latencies are measured: the student's files.

    Returns:
        Plain data. Sizes are (height, width), memory is in bytes.

    Raises:
        UserError: the option file is not accepted, or a network does not take such an image.
    """
    opt = load_options(option_file, overrides, with_data=False, with_weights=False)
    device, scale = device_of([opt]), opt['scale']
    networks = _networks(opt, device)
    sizes = [LQ_SIZE, (OUTPUT_SIZE[0] // scale, OUTPUT_SIZE[1] // scale)]
    others = graphs(opt) if repeats else {}
    student, channels = networks['student'], input_channels(opt['network_g'])
    settings = []

    def tell(size: tuple[int, int], name: str) -> None:
        bar.n += 1
        bar.set_description(f'{words_of(size)}, {name}')

    kinds = len({architecture(net) for net in networks.values()}) + len(others)
    with ProgressBar(total=len(sizes) * kinds * (repeats + 1), bar_format=PROGRESS, disable=not repeats) as bar:
        for size in sizes:
            found = {}
            nets = {}
            for name, net in networks.items():
                with _reraise(name, net, size):
                    found[name] = _counted(net, size, channels)
                    if repeats:
                        lq = torch.rand(1, channels, *size, device=device)
                        nets[name] = (net, lq)
                        if device.type == 'cuda':
                            found[name]['gpu_memory'] = peak_gpu_memory(net, lq.clone())
            for name, other in others.items():
                found[name] = {'network': _name(student)}
                nets[name] = (Padded(other, scale, student.sizes), torch.rand(1, channels, *size))
            for name, times in latencies_ms(nets, repeats, LIMIT, partial(tell, size)).items():
                found[name] |= {'latency_ms': round(statistics.median(times), 2), 'runs': len(times)}
            settings.append({'input': list(size), 'output': [side * scale for side in size], 'networks': found})
    return {
        'option_file': option_file,
        'force_yml': list(overrides),
        'scale': scale,
        'device': device.type,
        'machine': machine(device.type == 'cuda'),
        'threads': torch.get_num_threads(),
        'versions': versions(),
        'settings': settings,
    }


def _networks(opt: dict[str, Any], device: torch.device) -> dict[str, Padded]:
    """The teachers, where there are some, and the student, each that fuses in both forms.

    Costs do not depend on weights, so these are random.
    """
    networks: dict[str, Padded] = {}
    for name, (place, own) in zip(teacher_names(opt), teacher_blocks(opt.get('teacher')).items()):
        if 'network' in own:
            networks[name] = _network(own['network'], opt['scale'])
        else:
            teacher = build_teacher(own, opt['scale'], place)
            networks[name] = Padded(teacher.net, opt['scale'], teacher.sizes)
    networks['student'] = _network(opt['network_g'], opt['scale'])
    for net in networks.values():
        net.eval().to(device)
    return {form: net for name, own in networks.items() for form, net in as_trained_and_fused(name, own).items()}


def _network(block: dict[str, Any], scale: int) -> Padded:
    net = build_network(block)
    return Padded(net, scale, network_sizes(net, block, scale))


def _name(net: Padded) -> str:
    return type(net.net).__name__


def _counted(net: Padded, size: tuple[int, int], channels: int) -> dict[str, Any]:
    flop_count = flops(net, net.scale, (size[0] * net.scale, size[1] * net.scale), channels)
    activations, memory = footprint(net, size, channels)
    return {
        'network': _name(net),
        'parameters': parameters(net),
        'multiply_adds': flop_count // 2,
        'flops': flop_count,
        'activations': activations,
        'memory': memory,
    }


def _reraise(name: str, net: Padded, size: tuple[int, int]) -> AbstractContextManager[None]:
    """Names the network whose forward failed, with the network's own error."""
    return reraise(
        (RuntimeError, ValueError, TypeError, LookupError, AssertionError),
        lambda error: UserError(
            f'{name}: {_name(net)} does not take an image of {words_of(size)} '
            f'({type(error).__name__}: {one_line(error, 300)}); accepted: a network that does, where it fits '
            'into memory'
        ),
    )


def _deployed(name: str, networks: dict[str, Any]) -> str:
    """The name of its form that is deployed."""
    return name + FUSED if name + FUSED in networks else name


def words_of(size: Sequence[int]) -> str:
    """A size (height, width) as ``WIDTHxHEIGHT``."""
    height, width = size
    return f'{width}x{height}'


# Of a network's row: what it is called, with its unit, and how much of the plain number the unit is.
COLUMNS = {
    'parameters': ('parameters [M]', 1e6, 3),
    'multiply_adds': ('mult-adds [G]', 1e9, 2),
    'activations': ('activations [M]', 1e6, 2),
    'memory': ('memory [MiB]', 2**20, 1),
    'gpu_memory': ('GPU memory [MiB]', 2**20, 1),
    'runs': ('runs', 1, 0),
    'latency_ms': ('latency [ms]', 1, 1),
}
NOTES = {
    'multiply_adds': "mult-adds: of convolutions and matrix products, each counted once, which NTIRE's tables call "
    'FLOPs. FLOPs elsewhere in facd are two for each.',
    'activations': 'activations: elements of the outputs of all convolutions.',
    'memory': 'memory: weights, input and features at the peak of a forward, counted, without workspaces of libraries.',
    'gpu_memory': "GPU memory: by torch.cuda.max_memory_allocated, as in NTIRE's tables, with workspaces.",
    'latency_ms': 'latency: of one image in float32, random weights, the networks in turn: median of so many runs. '
    'Networks of one architecture are measured once.',
}

GRAPHS_NOTE = (
    "ONNX, int8: the student's files of facd export, by onnxruntime on the CPU; int8 with the ranges of one photograph."
)
FUSED_NOTE = (
    'fused: re-parameterized, as facd export writes it and facd upscale runs it; the row above: as it is trained, with '
    'all its branches.'
)


def cost_tables(result: dict[str, Any], table: Callable[[Sequence[str], Sequence[Sequence[str]]], str]) -> str:
    """The tables and what their columns mean, as text."""
    columns = {key: column for key, column in COLUMNS.items() if key in result['settings'][0]['networks']['student']}
    where = f'{result["machine"]}, {result["threads"]} threads' if result['device'] == 'cpu' else result['machine']
    parts = [f'{result["option_file"]}, x{result["scale"]}; {where}; {result["versions"]}.']
    for setting in result['settings']:
        networks = setting['networks']
        rows = [
            [
                name,
                found['network'],
                *(
                    f'{found[key] / unit:,.{digits}f}' if key in found else ''
                    for key, (_, unit, digits) in columns.items()
                ),
            ]
            for name, found in networks.items()
        ]
        student = _deployed('student', networks)
        for teacher in (_deployed(name, networks) for name in networks if is_teacher(name)):
            ratios = [
                f'{networks[teacher][key] / networks[student][key]:.2f}' if key != 'runs' else '' for key in columns
            ]
            rows.append([f'{teacher} / {student}', '', *ratios])
        title = f'{words_of(setting["input"])} -> {words_of(setting["output"])}'
        header = [title, 'network', *(column for column, _, _ in columns.values())]
        parts.append(table(header, rows))
    notes = [note for key, note in NOTES.items() if key in columns]
    if any('parameters' not in found for found in result['settings'][0]['networks'].values()):
        notes.append(GRAPHS_NOTE)
    if any(name.endswith(FUSED) for name in result['settings'][0]['networks']):
        notes.append(FUSED_NOTE)
    return '\n\n'.join([*parts, '\n'.join(notes)])
