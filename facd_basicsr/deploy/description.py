"""What a student's file says of the network in it, so that it can be built and run without its option file."""

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from basicsr.archs.edsr_arch import EDSR
from basicsr.archs.rcan_arch import RCAN
from basicsr.utils.registry import ARCH_REGISTRY

from facd_basicsr.archs.edsr_student_arch import EDSRStudent
from facd_basicsr.archs.rcan_student_arch import RCANStudent
from facd_basicsr.options.signatures import default_arguments

# Of these only the defaults differ, so that with every argument spelled out BasicSR's own class is the same network.
STOCK = {EDSRStudent: EDSR, RCANStudent: RCAN}
PLAIN = (bool, int, float, str, list, type(None))  # what JSON gives back as it was

TEXTS = ('architecture', 'name', 'option_file', 'option_sha256')
VALUES: dict[str, Callable[[Any], bool]] = {  # by name, whether it can be one
    'arguments': lambda value: isinstance(value, dict) and 'type' not in value,
    'scale': lambda value: type(value) is int and value >= 1,
    'reach': lambda value: value is None or (type(value) is int and value >= 0),
    'psnr': lambda value: isinstance(value, dict) and all(map(_is_figure, value.values())),
}


@dataclass(frozen=True)
class Description:
    """A student's network and where it is from.

    Attributes:
        architecture: its name in BasicSR's registry; of this project's students the name of BasicSR's own class.
        arguments: every argument of it, defaults too; but those that are classes, which text can't hold.
        scale: upscaling factor.
        reach: how far from a pixel it looks, in LQ pixels: the overlap with which tiles join without seams
            (:func:`facd_basicsr.evaluation.tiling.reach_of`); None: at the whole image, or not measured.
        name: the training's.
        option_file: name of the option file it was trained by.
        option_sha256: SHA-256 of that file's options as ``facd show -opt FILE`` prints them, without the comment above:
            the same for a file with a ``base``, the complete file that is made of it, and the copy that a run keeps.
            What the command line changed is not in it, but what it changed in the network is in ``arguments``.
        psnr: {set: PSNR-Y in dB} of the training's validation at this checkpoint, where it is known.
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
        """The reverse of :meth:`as_metadata`; other entries are passed over. None if it is of another program.

        Raises:
            ValueError: an entry is not what :meth:`as_metadata` writes.
        """
        if not metadata.keys() >= {'architecture', 'arguments', 'scale'}:
            return None
        texts = {key: metadata[key] for key in TEXTS if key in metadata}
        values = {key: _value(key, metadata[key]) for key in VALUES if key in metadata}
        return cls(**texts | values)


def _value(key: str, text: str) -> Any:
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(text)
        if VALUES[key](value):
            return value
    raise ValueError(f'{key}: {text[:80]}')


def _is_figure(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e6  # which NaN is not


def describe(network_opt: Mapping[str, Any], scale: int) -> Description:
    """The description of a ``network_g`` block, complete with the defaults of its class."""
    cls = ARCH_REGISTRY.get(network_opt['type'])
    given = {key: value for key, value in network_opt.items() if key != 'type'}
    defaults = {key: value for key, value in default_arguments(cls).items() if isinstance(value, PLAIN)}
    arguments = {**defaults, **given}
    return Description(STOCK.get(cls, cls).__name__, arguments, scale)
