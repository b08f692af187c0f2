"""How a network is run in training: its precision, its memory format, and whether it is compiled.

Weights, losses, validation and checkpoints stay float32.
"""

import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, fields
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from facd_basicsr.errors import UserError, one_line, reraise

# The dtype of each precision's autocast. tf32 rounds the factors of float32 products inside a GPU's matrix units.
PRECISIONS = {'fp32': None, 'tf32': None, 'bf16': torch.bfloat16, 'fp16': torch.float16}

# What networks raise of an input that is not theirs; NameError: where BasicSR's own CUDA code is not built.
REFUSALS = (AssertionError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, NameError)

TAKEN = 'a network of images (N, C, H, W), and sizes and channels that it takes'

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
        keys = ((field.name, key) for field in fields(cls) for key in (field.name, field.name + suffix))
        return cls(**{name: block[key] for name, key in keys if key in block})

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of autocast; None: no autocast."""
        return PRECISIONS[self.precision or 'fp32']

    def lay_out(self, net: Net) -> Net:
        """Puts a network's weights into the memory format, in place."""
        return net.to(memory_format=torch.channels_last) if self.channels_last else net

    def laid_out(self, x: Tensor) -> Tensor:
        """A batch or feature, (N, C, H, W), in the memory format, which a network propagates from layer to layer."""
        return x.contiguous(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)

    def autocast(self, device: torch.device) -> AbstractContextManager:
        """The context of a forward, whatever the context around it."""
        return torch.autocast(device.type, dtype=self.dtype, enabled=self.dtype is not None)

    def compiled(self, function: Function, where: str) -> Function:
        """The function itself, or one that compiles it when it is first called, and again for other shapes.

        Raises:
            UserError: in the call, if it cannot be compiled.
        """
        if self.compile is None:
            return function
        with self.reraise_compile_errors(where):
            compiled = torch.compile(function, **self.compile)

        def run(*args: Any) -> Any:
            if _IS_UNCOMPILED.get():
                return function(*args)
            with self.reraise_compile_errors(where):
                outputs = compiled(*args)
            # while no backward is to come, the next compiled call overwrites what a CUDA graph gave
            return outputs if torch.is_grad_enabled() else tree_map_only(Tensor, Tensor.clone, outputs)

        return cast(Function, run)

    def reraise_compile_errors(self, where: str) -> AbstractContextManager[None]:
        """Turns errors of torch.compile into a UserError, if anything is compiled."""
        if self.compile is None:
            return nullcontext()
        from torch._dynamo.exc import TorchDynamoException  # takes a second to import
        from torch._inductor.exc import CppCompileError

        def translated(error: RuntimeError) -> UserError | None:
            # others are of a Python or a system that torch.compile does not know
            if not (isinstance(error, (TorchDynamoException, CppCompileError)) or 'compile' in str(error)):
                return None
            return UserError(
                f'{where}: torch.compile failed ({one_line(error, 300)}); accepted: no compile, or what it needs (on a '
                'CPU a C++ compiler, g++)'
            )

        return reraise(RuntimeError, translated)

    def reraise_layout_errors(self, block: str) -> AbstractContextManager[None]:
        """Turns the error of a network that cannot take channels_last into a UserError."""

        def translated(error: RuntimeError) -> UserError | None:
            if not (self.channels_last and 'view' in str(error)):
                return None
            reason = one_line(error, 200)
            return UserError(
                f'{block}.channels_last: true, which this network does not take ({reason}); accepted: false'
            )

        return reraise(RuntimeError, translated)


_IS_UNCOMPILED = ContextVar('uncompiled', default=False)


@contextmanager
def uncompiled() -> Iterator[None]:
    """A context in which what :meth:`Execution.compiled` gave runs as it was written."""
    token = _IS_UNCOMPILED.set(True)
    try:
        yield
    finally:
        _IS_UNCOMPILED.reset(token)


def reraise_refused_input(
    where: str, net: nn.Module, lq: Tensor, accepted: str = TAKEN, images: str = 'LQ'
) -> AbstractContextManager[None]:
    """Turns what a network raises of an input that it does not take into a UserError; a lack of memory stays.

    Args:
        lq: the input, (N, C, h, w).
        images: what it is called.
    """

    def translated(error: Exception) -> UserError | None:
        if is_lack_of_memory(error):
            return None
        channels, height, width = lq.shape[1:]
        return UserError(
            f'{where}: {type(net).__name__} does not take {images} of {height} x {width} with {channels} channels '
            f'({refusal_reason(error)}); accepted: {accepted}'
        )

    return reraise(REFUSALS, translated)


def check_upscaled(where: str, net: nn.Module, lq: Tensor, sr: Any, scale: int, channels: int | None = None) -> None:
    """Checks that what a network gives is LQ's image at ``scale`` times its size.

    Args:
        lq: its input, (N, C, h, w).
        channels: of the output; None: as many as it has.

    Raises:
        UserError: it is no tensor, or not of shape (N, channels, h * scale, w * scale).
    """
    of_image = isinstance(sr, Tensor) and sr.dim() == 4
    expected = (len(lq), channels or (sr.shape[1] if of_image else lq.shape[1]), *(scale * s for s in lq.shape[2:]))
    if not of_image or sr.shape != expected:
        found = tuple(sr.shape) if isinstance(sr, Tensor) else type(sr).__name__
        raise UserError(
            f'{where}: {type(net).__name__} gives {found} for LQ of {tuple(lq.shape)}; accepted: {expected}, as of a '
            f'network for x{scale}'
        )


def refusal_reason(error: Exception) -> str:
    """What a network's error says in one line; of one that says nothing, as RRDBNet's, the line of code."""
    silent = not str(error).strip()
    return (silent and traceback.extract_tb(error.__traceback__)[-1].line) or one_line(error, 200)


def is_lack_of_memory(error: Exception) -> bool:
    return 'alloc' in str(error).lower()  # so torch says it, of the CPU's and a GPU's, cuDNN and onnxruntime


def set_deterministic(deterministic: bool) -> None:
    """For all of the process: GPU algorithms that give the same bits in every run, or the fastest that cuDNN finds.

    An operation that has no such algorithm is run all the same, with a warning by torch.
    """
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # torch asks for it; 24 MiB
    torch.use_deterministic_algorithms(deterministic, warn_only=True)


def set_tf32(precision: str | None) -> None:
    """Lets CUDA's float32 products and convolutions use TF32, or forbids it; of ``tf32`` and ``fp32`` only.

    For all of the process, since a backward has no context of its own.
    """
    if precision in ('fp32', 'tf32'):
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
