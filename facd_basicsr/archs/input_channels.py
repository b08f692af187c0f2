"""How many channels the images have that a network takes."""

import inspect
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY

NAMES = ('num_in_ch', 'in_chans', 'in_channels')  # most networks', SwinIR's, RIDNet's


def input_channels(network_opt: Mapping[str, Any]) -> int:
    """Channels of a network's input, by its block in an option file, else by the default of its class, else 3.

    Args:
        network_opt: as ``network_g``. Its ``type`` may be one that is not registered, as an ONNX file's may.
    """
    parameters: Mapping[str, inspect.Parameter] = {}
    with suppress(KeyError):
        parameters = inspect.signature(ARCH_REGISTRY.get(network_opt['type'])).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    given = {**defaults, **network_opt}
    return next((given[name] for name in NAMES if isinstance(given.get(name), int)), 3)
