"""Networks, registered in BasicSR's ``ARCH_REGISTRY`` by being imported."""

import copy
import importlib
import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from basicsr.archs import build_network
from basicsr.archs.edsr_arch import EDSR
from basicsr.archs.rcan_arch import RCAN
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from facd_basicsr.runtime.rng import preserve_rng_state
from facd_basicsr.runtime.size_requirements import SizeRequirements, size_requirements

from .regressor_arch import DeepRegressor as DeepRegressor  # for those who import this package
from .student_arch import EDSRStudent, RCANStudent

# What networks call the channels of their input and output: BasicSR's, then those that spandrel has beside them.
CHANNELS = ('num_in_ch', 'in_chans', 'in_channels', 'inp_channels', 'in_nc', 'in_ch', 'img_channel', 'n_colors')
OUT_CHANNELS = ('num_out_ch', 'out_chans', 'out_channels', 'out_nc', 'out_ch', *CHANNELS)
CONVOLUTIONAL = (EDSR, EDSRStudent, RCAN, RCANStudent)  # these very classes: a class derived from one may add anything

for _file in sorted(Path(__file__).parent.glob('*_arch.py')):
    importlib.import_module(f'{__name__}.{_file.stem}')


def input_channels(network_opt: Mapping[str, Any]) -> int:
    """Channels of a network's input, by its block in an option file, else by the default of its class, else 3.

    Args:
        network_opt: as ``network_g``. Its ``type`` may be one that is not registered, as an ONNX file's may.
    """
    return channels_argument(network_opt, CHANNELS)[1]


def channels_argument(network_opt: Mapping[str, Any], names: Sequence[str]) -> tuple[str, int]:
    """The argument of a network that says its channels, and its value; the first of ``names`` and 3 where it has none.

    Args:
        names: ``CHANNELS`` of the input, or ``OUT_CHANNELS`` of the output: where a network has no argument for it, it
            gives as many as it takes.
    """
    parameters: Mapping[str, inspect.Parameter] = {}
    with suppress(KeyError):
        parameters = inspect.signature(ARCH_REGISTRY.get(network_opt['type'])).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    given = {**defaults, **network_opt}
    return next(((name, given[name]) for name in names if isinstance(given.get(name), int)), (names[0], 3))


def network_sizes(net: nn.Module, network_opt: Mapping[str, Any], scale: int) -> SizeRequirements:
    """The sizes of LQ that a network takes; those that are known to take every size are not probed."""
    if type(net) in CONVOLUTIONAL:
        return SizeRequirements()
    return size_requirements(net, input_channels(network_opt), scale)


def build_without_weights(network_opt: Mapping[str, Any]) -> nn.Module:
    """A network for its arguments, keys and shapes alone; the random number generators are left as they were.

    On the meta device, without memory and in no time. Some classes read values while they are constructed (SwinIR) or
    make tensors that the meta device does not take (ECBSR, RIDNet): these, and what fails anyway, on the CPU.

    Raises:
        Exception: whatever the class raises on the CPU.
    """
    with preserve_rng_state():
        with suppress(Exception), torch.device('meta'):
            return build_network(dict(network_opt))
        return build_network(dict(network_opt))


def unused_in_training(net: nn.Module, lq: Tensor) -> list[str]:
    """Names of the parameters that one training step leaves without a gradient, such as SPAN's ``eval_conv``, which is
    made of others for inference, or the experts that SeemoRe does not choose. The network stays as it was.

    Args:
        lq: (N, C, h, w).
    """
    with preserve_rng_state():
        probe = copy.deepcopy(net).train()
        probe(lq).sum().backward()
    return [name for name, parameter in probe.named_parameters() if parameter.requires_grad and parameter.grad is None]
