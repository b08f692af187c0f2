"""A student from any file that has one: a checkpoint of a training, or what ``facd export`` writes."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from basicsr.archs import build_network
from safetensors import safe_open
from torch import nn

from facd_basicsr.data.download import sha256_of
from facd_basicsr.deploy.description import Description, describe
from facd_basicsr.deploy.onnx_network import OnnxNetwork
from facd_basicsr.distill.checkpoints import load_any_state_dict, load_exactly
from facd_basicsr.errors import UserError
from facd_basicsr.options.check import check
from facd_basicsr.options.parse import read_options

METADATA = 'metadata'  # beside `params` in a .pth; BasicSR and spandrel look at `params` only
SUFFIXES = ('.pth', '.pt', '.safetensors', '.onnx')


@dataclass(frozen=True)
class Student:
    """A network that is ready to run.

    Attributes:
        net: in eval mode, without gradients, on the CPU; RGB [0, 1] (N, C, h, w) -> (N, C, h * scale, w * scale), not
            clamped.
        description: what it is.
    """

    net: nn.Module
    description: Description


def read_student(path: Path, option_file: str | None = None, where: str = 'IN') -> Student:
    """A student with what its option file, else its own metadata, else the option file of its training says of it.

    Args:
        path: ``.pth``, ``.pt``, ``.safetensors`` or ``.onnx``.
        option_file: a train or test file whose ``network_g`` it is; data and teacher need not be there. None: the file
            says it itself, or lies in ``experiments/NAME/models`` beside the option file of its training.
        where: what names ``path``, for messages.

    Raises:
        UserError: the file can't be read, does not fit, or nothing says what network it is of.
    """
    if not path.is_file():
        raise UserError(f'{where}: no such file: {path}')
    if path.suffix not in SUFFIXES:
        raise UserError(f'{where}: {path}; accepted: a name that ends in {", ".join(SUFFIXES)}')
    if path.suffix == '.onnx':
        net = OnnxNetwork(path, where)
        description = _described(net.metadata, path, where)
        if description is None:
            raise UserError(f'{where}: {path} does not say what it is of; accepted: an ONNX file by facd export')
        return Student(net.eval(), description)
    description = _description_of(path, option_file, where)
    state_dict = load_any_state_dict(path, where)
    net = build_network(description.network)
    load_exactly(net, state_dict, f'{where}: {path}')
    return Student(net.eval().requires_grad_(False), description)


def _description_of(path: Path, option_file: str | None, where: str) -> Description:
    if option_file is None:
        own = _described(_metadata(path), path, where)
        if own is not None:
            return own
        option_file = _option_file_of_run(path, where)
    opt = read_options(option_file, [])
    try:
        check(opt, is_train='train' in opt)
    except UserError as error:
        raise UserError(f'{option_file}: {error}') from error
    return dataclasses.replace(
        describe(opt['network_g'], opt['scale']),
        name=opt['name'],
        option_file=Path(option_file).name,
        option_sha256=sha256_of(Path(option_file)),
    )


def _described(metadata: dict[str, str], path: Path, where: str) -> Description | None:
    try:
        return Description.of_metadata(metadata)
    except ValueError as error:
        raise UserError(f'{where}: {path}: metadata: {error}; accepted: as facd export writes it') from error


def _metadata(path: Path) -> dict[str, str]:
    """The file's own text by name, empty where it has none. What is wrong with a file is said when it is loaded."""
    try:
        if path.suffix == '.safetensors':
            with safe_open(path, framework='pt') as file:
                return file.metadata() or {}
        content: Any = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
    except Exception:
        return {}
    found = content.get(METADATA) if isinstance(content, dict) else None
    return found if isinstance(found, dict) and all(isinstance(value, str) for value in found.values()) else {}


def _option_file_of_run(path: Path, where: str) -> str:
    found = option_files_of_run(path)
    if len(found) != 1:
        several = f', and {found[0].parent} has {len(found)} option files' if found else ''
        raise UserError(
            f'{where}: {path} does not say what network it is of{several}; accepted: with --opt FILE, the option file '
            'of its training'
        )
    return str(found[0])


def option_files_of_run(path: Path) -> list[Path]:
    """``experiments/NAME/*.yml`` of ``experiments/NAME/models/FILE``: one, the run's own; none for a file elsewhere."""
    models = path.resolve().parent
    return sorted(models.parent.glob('*.yml')) if models.name == 'models' else []
