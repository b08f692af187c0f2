"""A student from any file that has one: a checkpoint of a training, or what ``facd export`` writes."""

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from facd_basicsr.deploy.description import Description, describe
from facd_basicsr.deploy.onnx_network import OnnxNetwork
from facd_basicsr.distill.checkpoints import load_any_state_dict, load_exactly
from facd_basicsr.errors import UserError
from facd_basicsr.experiment.run_folder import run_of
from facd_basicsr.options.check import check
from facd_basicsr.options.lone_network import build_lone_network, check_lone_network
from facd_basicsr.options.parse import read_options
from facd_basicsr.options.plain_yaml import option_text

METADATA = 'metadata'  # beside `params` in a .pth; BasicSR and spandrel look at `params` only
OPT = '--opt FILE, the option file of its training'
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
    """A student with what its option file, else its own metadata, else the run that it lies in says of it.

    Args:
        path: ``.pth``, ``.pt``, ``.safetensors`` or ``.onnx``.
        option_file: a train or test file whose ``network_g`` it is; data and teacher need not be there. None: the file
            says it itself, as ONNX does always, or lies in ``experiments/NAME/models``, whose option file and log do.
        where: what names ``path``, for messages.

    Raises:
        UserError: the file can't be read, does not fit, nothing says what network it is of, or the option file says
            another one than the run that it lies in.
    """
    if not path.is_file():
        raise UserError(f'{where}: no such file: {path}')
    if path.suffix not in SUFFIXES:
        raise UserError(f'{where}: {path}; accepted: a name that ends in {", ".join(SUFFIXES)}')
    if path.suffix == '.onnx':
        if option_file is not None:
            raise UserError(f'--opt: {option_file}; accepted with {path}: none, for an ONNX file tells all itself')
        return _read_onnx(path, where)
    description = _description_of(path, option_file, where)
    state_dict = load_any_state_dict(path, where)
    net = build_lone_network(f'{where}: {path}: network', description.network, description.scale)
    load_exactly(net, state_dict, f'{where}: {path}')
    return Student(net.eval().requires_grad_(False), description)


def _read_onnx(path: Path, where: str) -> Student:
    net = OnnxNetwork(path, where)
    description = _described(net.metadata, path, where)
    if description is None:
        raise UserError(f'{where}: {path} does not say what it is of; accepted: an ONNX file by facd export')
    return Student(net.eval(), description)


def _description_of(path: Path, option_file: str | None, where: str) -> Description:
    if option_file is not None:
        opt = read_options(option_file, [])
        try:
            check(opt, is_train='train' in opt)
        except UserError as error:
            raise UserError(f'{option_file}: {error}') from error
        description = _trained_by(opt, opt, option_file)
        _check_against_run(description, path, option_file)
        return description
    own = _described(_metadata(path), path, where)
    if own is not None:
        return own
    by_run = _described_by_run(path, where)
    if by_run is None:
        raise UserError(f'{where}: {path} does not say what network it is of; accepted: with {OPT}')
    return by_run


def _described_by_run(path: Path, where: str) -> Description | None:
    """None for a file that lies in no run."""
    try:
        run = run_of(path, where)
        if run is None:
            return None
        check_lone_network(f'{run.option_file}: network_g', run.opt['network_g'], run.opt['scale'])
    except UserError as error:
        raise UserError(f'{error}; or {OPT}') from error
    return _trained_by(run.opt, run.file, str(run.option_file))


def _trained_by(opt: dict[str, Any], file: dict[str, Any], option_file: str) -> Description:
    """The description of ``network_g``.

    Args:
        opt: the options of its training, or of a test.
        file: what the option file says of them.
        option_file: its path.
    """
    return dataclasses.replace(
        describe(opt['network_g'], opt['scale']),
        name=str(opt['name']),
        option_file=Path(option_file).name,
        option_sha256=hashlib.sha256(option_text(file).encode()).hexdigest(),
    )


def _check_against_run(description: Description, path: Path, option_file: str) -> None:
    """Refuses another network than the run had: of the same weights it makes other images, and without a word."""
    try:
        trained = _described_by_run(path, '')
    except UserError:  # then the option file is all there is
        return
    if trained is None:
        return
    ours, theirs = ({**by.network, 'scale': by.scale} for by in (description, trained))
    for key in ours | theirs:
        if ours.get(key, ...) != theirs.get(key, ...):
            given, had = ('nothing' if by.get(key, ...) is ... else repr(by[key]) for by in (ours, theirs))
            raise UserError(
                f'--opt: {option_file}: network_g.{key}: {given}, but the run of {path} had {had}; accepted: no --opt, '
                "for the run's folder tells, or a copy of the checkpoint elsewhere"
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
