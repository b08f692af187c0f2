"""A student, its description, and reading it from a checkpoint or a file by ``facd export``."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from basicsr.archs.edsr_arch import EDSR
from basicsr.archs.rcan_arch import RCAN
from basicsr.utils.registry import ARCH_REGISTRY
from safetensors import safe_open
from torch import nn

from facd_basicsr.archs.spandrel_arch import registered_name
from facd_basicsr.archs.student_arch import EDSRStudent, RCANStudent
from facd_basicsr.deploy.runtimes import BACKENDS
from facd_basicsr.errors import UserError, advising
from facd_basicsr.files.state_dicts import load_exactly, load_other_entry, load_state_dict
from facd_basicsr.options.build import build_lone_network, check_lone_network
from facd_basicsr.options.parse import OPTIONS_FILE, checked_options, options_digest
from facd_basicsr.options.signatures import signature_keys
from facd_basicsr.runs.run_folder import run_of
from facd_basicsr.runtime.fake_quantization import QUANTIZATION

# Of these only the defaults differ, so that with every argument spelled out BasicSR's own class is the same network.
STOCK = {EDSRStudent: EDSR, RCANStudent: RCAN}

VALUES: dict[str, Callable[[Any], bool]] = {  # what is not text, by name: whether it can be one
    'arguments': lambda value: isinstance(value, dict) and 'type' not in value,
    'scale': lambda value: type(value) is int and value >= 1,
    'reach': lambda value: value is None or (type(value) is int and value >= 0),
    'psnr': lambda value: (
        isinstance(value, dict)
        and all(type(psnr) in (int, float) and abs(psnr) < 1e6 for psnr in value.values())  # which NaN is not
    ),
}


@dataclass(frozen=True)
class Description:
    """A student's network and where it is from.

    Attributes:
        architecture: its name in BasicSR's registry; of this project's students the name of BasicSR's own class, of
            spandrel's classes with the suffix only where it needs one.
        arguments: every argument of it, defaults too; but those that are classes, which text cannot hold.
        scale: upscaling factor.
        reach: receptive field radius in LQ pixels: the overlap of tiles without seams
            (:func:`facd_basicsr.runtime.tiling.receptive_field_radius`); None: the whole image, or not measured.
        name: the run's.
        option_file: name of the option file it was trained by.
        option_sha256: SHA-256 of that file's options as ``facd show -opt FILE`` prints them, without the comment above:
            the same for a file with a ``base`` and the complete file that is made of it. What the command line changed
            is not in it, but what it changed in the network is in ``arguments``.
        psnr: {set: PSNR-Y in dB} of the run's validation at this checkpoint, where it is known.
    """

    architecture: str
    arguments: dict[str, Any]
    scale: int
    reach: int | None = None
    name: str = ''
    option_file: str = ''
    option_sha256: str = ''
    psnr: dict[str, float] = field(default_factory=dict)

    @property
    def network(self) -> dict[str, Any]:
        """As a ``network_g`` block."""
        return {'type': self.architecture, **self.arguments}

    def as_metadata(self) -> dict[str, str]:
        """As safetensors and ONNX keep it: text by name, what is not text as JSON."""
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in asdict(self).items()}

    @classmethod
    def of_metadata(cls, metadata: Mapping[str, str]) -> 'Description | None':
        """The reverse of :meth:`as_metadata`; other entries are ignored. None if it is of another program.

        Raises:
            ValueError: an entry is not what :meth:`as_metadata` writes.
        """
        if not metadata.keys() >= {'architecture', 'arguments', 'scale'}:
            return None
        return cls(**{key.name: _value(key.name, metadata[key.name]) for key in fields(cls) if key.name in metadata})


def _value(key: str, text: str) -> Any:
    if key not in VALUES:
        return text
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(text)
        if VALUES[key](value):
            return value
    raise ValueError(f'{key}: {text[:80]}')


def describe_network(network_opt: Mapping[str, Any], scale: int) -> Description:
    """The description of a ``network_g`` block, complete with the defaults of its class."""
    cls = ARCH_REGISTRY.get(network_opt['type'])
    given = {key: value for key, value in network_opt.items() if key != 'type'}
    defaults = {name: key.default for name, key in signature_keys(cls).items() if key.default is not ...}
    arguments = {**defaults, **given}
    return Description(registered_name(STOCK.get(cls, cls)), arguments, scale)


METADATA = 'metadata'  # next to `params` in a .pth; BasicSR and spandrel look at `params` only
OPT = '--opt FILE, the option file of its run'
STUDENT_SUFFIXES = ('.pth', '.pt', '.ckpt', '.safetensors', '.onnx')


@dataclass(frozen=True)
class Student:
    """A network that is ready to run.

    Attributes:
        net: in eval mode, without gradients, on the CPU; RGB [0, 1] (N, C, h, w) -> (N, C, h * scale, w * scale), not
            clamped.
        description: what it is.
        quantization: the ranges of its features in int8, of a checkpoint trained with ``train.quantize``.
    """

    net: nn.Module
    description: Description
    quantization: dict[str, Any] | None = None


def read_student(
    path: Path, option_file: str | None = None, where: str = 'IN', backend: str = 'onnxruntime'
) -> Student:
    """A student, described by its option file, else its own metadata, else the run whose folder it is in.

    Args:
        path: ``.pth``, ``.pt``, ``.ckpt``, ``.safetensors`` or ``.onnx``.
        option_file: a train or test file whose ``network_g`` it is; data and teacher need not be there. None: the file
            says it itself, as ONNX does always, or lies in ``experiments/NAME/models``, whose ``options.yml`` does.
        backend: one of ``BACKENDS``, which opens an ONNX file.

    Raises:
        UserError: the file cannot be read, does not fit, nothing says what network it is of, or the option file says
            another one than the run that it lies in.
    """
    if not path.is_file():
        raise UserError(f'{where}: no such file: {path}')
    if path.suffix not in STUDENT_SUFFIXES:
        raise UserError(f'{where}: {path}; accepted: a name that ends in {", ".join(STUDENT_SUFFIXES)}')
    if path.suffix == '.onnx':
        if option_file is not None:
            raise UserError(
                f'--opt: {option_file}; accepted with {path}: none, since an ONNX file describes its network'
            )
        onnx = BACKENDS[backend](path, where)
        own = _described(onnx.metadata, path, where)
        if own is None:
            raise UserError(f'{where}: {path} does not name its network; accepted: an ONNX file by facd export')
        return Student(onnx.eval(), own)
    description = _description_of(path, option_file, where)
    net = build_lone_network(f'{where}: {path}: network', description.network, description.scale)
    load_exactly(net, load_state_dict(path, where, [net.state_dict().keys()]), f'{where}: {path}')
    return Student(net.eval().requires_grad_(False), description, load_other_entry(path, where, QUANTIZATION))


def _description_of(path: Path, option_file: str | None, where: str) -> Description:
    if option_file is not None:
        opt = checked_options(option_file, [])
        description = _trained_by(opt, option_file, options_digest(option_file))
        _check_against_run(description, path, option_file)
        return description
    found = _described(_metadata(path), path, where) or _described_by_run(path, where)
    if found is None:
        raise UserError(f'{where}: {path} does not name its network; accepted: with {OPT}')
    return found


def _described_by_run(path: Path, where: str) -> Description | None:
    """None for a file that lies in no run."""
    with advising(f'or {OPT}'):
        run = run_of(path, where)
        if run is None:
            return None
        check_lone_network(f'{run.path / OPTIONS_FILE}: network_g', run.opt['network_g'], run.opt['scale'])
    facts = run.sessions[-1].facts
    return _trained_by(run.opt, str(facts.get('option_file', '')), str(facts.get('option_sha256', '')))


def _trained_by(opt: dict[str, Any], option_file: str, digest: str) -> Description:
    """The description of ``network_g``, from the options of ``option_file``, whose digest it is."""
    return dataclasses.replace(
        describe_network(opt['network_g'], opt['scale']),
        name=str(opt['name']),
        option_file=Path(option_file).name,
        option_sha256=digest,
    )


def _check_against_run(description: Description, path: Path, option_file: str) -> None:
    """Refuses another network than the run's: with the same weights it would silently give other images."""
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
