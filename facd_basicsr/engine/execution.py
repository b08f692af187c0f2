"""How a network is run in training: its precision, its memory format, and whether it is compiled.

Where weights and losses are concerned nothing changes: they stay float32, and so do validation and checkpoints.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from facd_basicsr.errors import UserError

# The dtype of each precision's autocast. tf32 rounds the factors of float32 products inside a GPU's matrix units.
PRECISIONS = {'fp32': None, 'tf32': None, 'bf16': torch.bfloat16, 'fp16': torch.float16}

Net = TypeVar('Net', bound=nn.Module)
Function = TypeVar('Function', bound=Callable[..., Any])


@dataclass(frozen=True)
class Execution:
    """What an option file says of one network's forward.

    Args:
        precision: one of :data:`PRECISIONS`, or None for torch's own float32, which is TF32 in a GPU's convolutions,
            as in BasicSR.
        channels_last: whether weights and activations lie in memory as (N, H, W, C). No value depends on it beyond
            rounding; which is faster depends on network, precision and machine (docs/performance.md).
        compile: arguments of ``torch.compile``; None: not compiled.
    """

    precision: str | None = None
    channels_last: bool = False
    compile: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, block: Mapping[str, Any], suffix: str = '') -> 'Execution':
        """What a block says by ``precision``, ``channels_last`` and ``compile``.

        Args:
            suffix: as BasicSR's ``_g``: a key with it goes before the one without.
        """
        keys = ('precision', 'channels_last', 'compile')
        return cls(
            **{key: block.get(key + suffix, block[key]) for key in keys if key in block or key + suffix in block}
        )

    @property
    def dtype(self) -> torch.dtype | None:
        """What autocast rounds to; None: nothing."""
        return PRECISIONS[self.precision or 'fp32']

    def lay_out(self, net: Net) -> Net:
        """Puts a network's weights into the memory format, in place."""
        return net.to(memory_format=torch.channels_last) if self.channels_last else net

    def laid_out(self, x: Tensor) -> Tensor:
        """A batch or feature, (N, C, H, W), in the memory format: a network hands it on from layer to layer."""
        return x.contiguous(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)

    def autocast(self, device: torch.device) -> AbstractContextManager:
        """The context of a forward, whatever the context around it."""
        return torch.autocast(device.type, dtype=self.dtype, enabled=self.dtype is not None)

    def compiled(self, function: Function, where: str) -> Function:
        """The function itself, or one that compiles it when it is first called, and again for other shapes.

        Args:
            where: the option key that asks for it.

        Raises:
            UserError: in the call, if it can not be compiled.
        """
        if self.compile is None:
            return function
        from torch._dynamo.exc import TorchDynamoException  # takes a second to import

        compiled = torch.compile(function, **self.compile)

        def run(*args: Any) -> Any:
            try:
                return compiled(*args)
            except TorchDynamoException as error:
                reason = ' '.join(str(error).split())[:300]
                raise UserError(
                    f'{where}: torch.compile failed ({reason}); accepted: no compile, or what it needs (on a CPU a C++ '
                    'compiler, g++)'
                ) from error

        return run


def set_tf32(precision: str | None) -> None:
    """Lets CUDA's matrix products and convolutions use TF32, or forbids it; None leaves torch's own settings.

    For all of the process, since a backward has no context of its own.
    """
    if precision is not None:
        torch.backends.cuda.matmul.allow_tf32 = precision == 'tf32'
        torch.backends.cudnn.allow_tf32 = precision == 'tf32'


@contextmanager
def tf32_of(precision: str | None) -> Iterator[None]:
    """As :func:`set_tf32`, for a forward without gradient."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    set_tf32(precision)
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
