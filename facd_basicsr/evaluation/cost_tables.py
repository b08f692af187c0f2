"""Tables of what networks cost, as NTIRE's challenges on efficient super-resolution have them."""

from collections.abc import Callable, Sequence
from typing import Any

from facd_basicsr.evaluation.costs import words_of

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
    'latency_ms': 'latency: of one image in float32, random weights, the networks in turn: median of so many runs.',
}


def cost_tables(result: dict[str, Any], table: Callable[[Sequence[str], Sequence[Sequence[str]]], str]) -> str:
    """The tables and what their columns mean, as text.

    Args:
        result: from :func:`facd_basicsr.evaluation.costs.costs`.
        table: what makes a table of a header and rows.
    """
    columns = {key: column for key, column in COLUMNS.items() if key in result['settings'][0]['networks']['student']}
    where = f'{result["machine"]}, {result["threads"]} threads' if result['device'] == 'cpu' else result['machine']
    parts = [f'{result["option_file"]}, x{result["scale"]}; {where}; {result["versions"]}.']
    for setting in result['settings']:
        networks = setting['networks']
        rows = [
            [
                name,
                found['network'],
                *(f'{found[key] / unit:,.{digits}f}' for key, (_, unit, digits) in columns.items()),
            ]
            for name, found in networks.items()
        ]
        if 'teacher' in networks:
            ratios = [_ratio(networks, key) if key != 'runs' else '' for key in columns]
            rows.append(['teacher / student', '', *ratios])
        header = [_title(setting), 'network', *(title for title, _, _ in columns.values())]
        parts.append(table(header, rows))
    notes = [note for key, note in NOTES.items() if key in columns]
    return '\n\n'.join([*parts, '\n'.join(notes)])


def _title(setting: dict[str, Any]) -> str:
    return f'{words_of(setting["input"])} -> {words_of(setting["output"])}'


def _ratio(networks: dict[str, dict[str, Any]], key: str) -> str:
    return f'{networks["teacher"][key] / networks["student"][key]:.2f}'
