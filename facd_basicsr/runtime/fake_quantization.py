"""Fake quantization: a forward with the values that it has in int8, so that training allows for them.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018.
Features are uint8, affine, by ranges that are observed in training; weights int8, symmetric, by output channel; what
neither is in ONNX's quantized operators nor between two of them stays float: the mean shift, the output.

By PyTorch's function mode around the forward, not by torch.ao or torchao, whose ways to quantize a convolution replace
the network by a graph: then taps find no module, and checkpoints have other keys.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from facd_basicsr.errors import UserError
from facd_basicsr.runtime.processes import largest

# Operators whose inputs are quantized, by the name of torch's function. An activation other than ReLU, which a runtime
# makes part of the convolution before it, is one of its own, as in TFLite and onnxruntime.
OUTPUT_AXES = {'conv2d': 0, 'conv_transpose2d': 1, 'linear': 0}  # the weight's axis of output channels
BINARY = {'add', 'add_', 'mul', 'mul_'}  # of two features; an image's mean or a scalar is none
UNARY = {'prelu', 'leaky_relu', 'leaky_relu_', 'adaptive_avg_pool2d', 'pixel_shuffle'}
JOINING = {'cat', 'concat', 'concatenate'}
FEATURE_LEVELS = 255  # steps of uint8
WEIGHT_LEVELS = 127  # of int8 on each side of zero
SMALLEST_SCALE = 1e-8  # of what is 0 everywhere

QUANTIZATION = 'quantization'  # of a checkpoint, beside `params`
REBUILT = 'a network that runs the same operators for every image, in training and in eval mode'


class FakeQuantization:
    """The ranges of a network's quantized features, and its forward by them.

    In a training forward the extremes of each feature are recorded; :meth:`update`, once for a batch, lets the ranges
    follow them. Nothing is quantized before the first update. Nothing is read back from the device.

    Args:
        names: of each quantized feature, in the order of the forward: operator and module, or number, of the first
            that reads it.
        keep: paths of modules with a weight whose convolution or product stays float.
        decay: of the moving average of extremes.

    Attributes:
        bounds: (2, K), how far each range reaches below and above zero; None before the first update.
        least: (2, K), of the features that are images, shifted or resized: from black to white, though not every batch
            has both, or highlights would be clipped; 0 of the others.
        exports: whether features and weights are quantized by torch's own operators, which ONNX can hold.
    """

    def __init__(self, names: Sequence[str], keep: Sequence[str] = (), decay: float = 0.99) -> None:
        self.names, self.keep, self.decay = list(names), tuple(keep), decay
        self.bounds: Tensor | None = None
        self.least = torch.zeros(2, len(self.names))
        self.exports = False
        self._batch: Tensor | None = None  # as bounds, of the batch's forwards until now
        self._grids: list[tuple[Tensor, Tensor, Tensor]] = []

    @classmethod
    def of(cls, net: nn.Module, size: int, channels: int, **options: Any) -> 'FakeQuantization':
        """
        Args:
            size, channels: of LQ to probe the network with.
            options: ``keep`` and ``decay``.

        Raises:
            UserError: the network is not the same in training and eval mode, has nothing to quantize, or a path of
                ``keep`` is that of no layer.
        """
        device = next(net.parameters()).device
        black_and_white = torch.tensor([0.0, 1.0], device=device)[:, None, None, None].expand(2, channels, size, size)
        seen = _probed(net, options.get('keep', ()), black_and_white.contiguous())
        found = cls(seen.names, **options)
        found.least = seen.stacked() * torch.tensor(seen.are_images, device=device)
        return found.to(device)

    @classmethod
    def of_entry(cls, entry: Mapping[str, Any], where: str) -> 'FakeQuantization':
        """The reverse of :meth:`entry`.

        Raises:
            UserError: the entry is another program's.
        """
        with suppress(LookupError, TypeError, ValueError, AttributeError, RuntimeError):
            found = cls([*entry['ranges']], entry['keep'])
            low, high = torch.stack([*entry['ranges'].values()]).float().unbind(1)
            if bool((low <= 0).all() and (high >= 0).all()):
                found.set_bounds(torch.stack([-low, high]))
                return found
        raise UserError(f'{where}: {QUANTIZATION}: not as train.quantize writes it; accepted: a checkpoint of its run')

    def entry(self) -> dict[str, Any] | None:
        """Of a checkpoint: the ranges by name, (2,) each; None before the first update."""
        if self.bounds is None:
            return None
        ranges = (self.bounds * self.bounds.new_tensor([[-1.0], [1.0]])).T.cpu() + 0.0  # no -0
        return {'keep': [*self.keep], 'ranges': {name: own.clone() for name, own in zip(self.names, ranges)}}

    def attach(self, net: nn.Module) -> None:
        """Makes it the forward of a network, whose class, modules and keys stay: a wrapper would be in all of them."""
        net.forward = partial(self._run, net)

    def _run(self, net: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with _Mode(net, self.keep, self) as mode:
            output = type(net).forward(net, *args, **kwargs)
        if len(mode.names) != len(self.names):
            raise _refusal(net, f'has {len(mode.names)} quantized features')
        if net.training:
            extremes = mode.stacked()
            self._batch = extremes if self._batch is None else torch.maximum(self._batch, extremes)
        return output

    @torch.no_grad()
    def update(self) -> None:
        """After the batch's last training forward: over its parts and the ranks it has the values of one process."""
        if self._batch is None:
            return
        bounds, self._batch = torch.maximum(largest(self._batch), self.least), None
        # features that are not finite, whose step is skipped, leave no trace
        if self.bounds is not None:
            bounds = self.bounds.lerp(torch.where(bounds.isfinite(), bounds, self.bounds), 1 - self.decay)
        elif not bool(bounds.isfinite().all()):
            return
        self.set_bounds(bounds)

    def set_bounds(self, bounds: Tensor) -> None:
        """
        Args:
            bounds: (2, K), none negative: zero is in each range, and has a step of its own.
        """
        self.bounds = bounds
        scales = (bounds.sum(0) / FEATURE_LEVELS).clamp(min=SMALLEST_SCALE)
        zeros = (bounds[0] / scales).round()
        self._grids = [*zip(scales, -zeros, FEATURE_LEVELS - zeros)]

    def to(self, device: torch.device) -> 'FakeQuantization':
        self.least = self.least.to(device)
        if self.bounds is not None:
            self.set_bounds(self.bounds.to(device))
        return self

    def feature(self, index: int, x: Tensor) -> Tensor:
        """A feature of any shape, quantized."""
        if self.bounds is None:
            return x
        scale, low, high = self._grids[index]
        if self.exports:
            return torch.fake_quantize_per_tensor_affine(x, float(scale), int(-low), 0, FEATURE_LEVELS)
        return fake_quantize(x, scale, low, high)

    def weight(self, weight: Tensor, axis: int) -> Tensor:
        """A weight, quantized by its slices along ``axis``."""
        if self.bounds is None:
            return weight
        axes = [other for other in range(weight.dim()) if other != axis]
        if self.exports:
            values = torch.from_numpy(weight.detach().numpy())  # a constant of the graph that torch.onnx traces
            scale = _weight_scale(values, axes).flatten()
            zeros = torch.zeros(len(scale), dtype=torch.int32)
            low, high = -WEIGHT_LEVELS - 1, WEIGHT_LEVELS
            return torch.fake_quantize_per_channel_affine(weight, scale, zeros, axis, low, high)
        return fake_quantize(weight, _weight_scale(weight.detach(), axes), -WEIGHT_LEVELS, WEIGHT_LEVELS)


def _weight_scale(weight: Tensor, axes: list[int]) -> Tensor:
    return (weight.abs().amax(axes, keepdim=True) / WEIGHT_LEVELS).clamp(min=SMALLEST_SCALE)


def _probed(net: nn.Module, keep: Sequence[str], lq: Tensor) -> '_Mode':
    """What a forward in eval mode sees, which is what one in training sees.

    Raises:
        UserError: as of :meth:`FakeQuantization.of`.
    """
    modules, training = dict(net.named_modules()), net.training
    for index, path in enumerate(keep):
        if not isinstance(getattr(modules.get(path), 'weight', None), nn.Parameter):
            paths = [name for name, module in modules.items() if isinstance(module, (nn.Conv2d, nn.Linear))]
            raise UserError(
                f'train.quantize.keep[{index}]: {path!r} is no layer of {type(net).__name__} with a weight; accepted: '
                f'such as {", ".join(dict.fromkeys([paths[0], paths[-1]])) if paths else "none of it"}'
            )
    found = []
    try:
        for mode in (True, False):
            net.train(mode)
            with torch.enable_grad(), _Mode(net, keep) as seen:  # a gradient tells what parameters take part in
                net(lq)
            found.append(seen.names)
    finally:
        net.train(training)
    if found[0] != found[1]:
        raise _refusal(net, 'runs other operators in eval mode than in training')
    if not seen.names:
        raise _refusal(net, f'has nothing to quantize beside {", ".join(keep) or "its operators"}')
    return seen


def _refusal(net: nn.Module, reason: str) -> UserError:
    return UserError(f'train.quantize: {type(net).__name__} {reason}; accepted: {REBUILT}')


class _Mode(TorchFunctionMode):
    """Around one forward of a network: gives its operators quantized inputs.

    Args:
        of: what quantizes; None: nothing, as of a forward that finds the names.

    Attributes:
        names: of the features until now.
        are_images: whether each is made of the network's input without a parameter.
    """

    def __init__(self, net: nn.Module, keep: Sequence[str], of: FakeQuantization | None = None) -> None:
        super().__init__()
        self._net, self._of = net, of
        self._kept = {id(net.get_submodule(path).weight) for path in keep}
        self._paths = {} if of else {id(own): name.rpartition('.')[0] for name, own in net.named_parameters()}
        self._counts: Counter[str] = Counter()
        self._seen = WeakIdKeyDictionary()  # feature: its version, number, and itself quantized; None: it is already
        self._extremes: list[tuple[Tensor, Tensor]] = []
        self.names: list[str] = []
        self.are_images: list[bool] = []

    def stacked(self) -> Tensor:
        """(2, K): how far each feature reaches below and above zero, or to the other side of it."""
        return torch.stack([torch.stack([-low, high]) for low, high in self._extremes], 1)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name, kwargs = getattr(func, '__name__', ''), dict(kwargs or {})
        if name in OUTPUT_AXES:
            x, weight, *rest = (*args, *(kwargs.pop(key) for key in ('input', 'weight')[len(args) :]))
            if id(weight) in self._kept:
                return func(x, weight, *rest, **kwargs)
            x = self._quantized(x, name, weight)
            return func(x, weight if self._of is None else self._of.weight(weight, OUTPUT_AXES[name]), *rest, **kwargs)
        if name in BINARY and len(args) == 2 and _are_features(name, *args):
            x, other = (self._quantized(own, name) for own in args)
            if name.endswith('_') and not torch.jit.is_tracing():  # ONNX has none in place
                return args[0].copy_(getattr(torch, name[:-1])(x, other, **kwargs))
            return getattr(torch, name.removesuffix('_'))(x, other, **kwargs)
        if name in UNARY and args:
            x, *rest = args
            y = func(self._quantized(x, name), *rest, **kwargs)
            return self._again(x, y) if name == 'pixel_shuffle' else y
        if name in JOINING:
            tensors = args[0] if args else kwargs.pop('tensors')
            return func([self._quantized(x, name) for x in tensors], *args[1:], **kwargs)
        return func(*args, **kwargs)

    def _quantized(self, x: Tensor, operator: str, weight: Tensor | None = None) -> Tensor:
        """The same tensor for all that read ``x``."""
        known = self._seen.get(x)
        if known is not None and known[0] == _version(x):
            return x if known[2] is None else known[2]
        index = self._next(operator, weight)
        y = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x  # as autocast gives them
        if self._of is None or self._net.training:
            self._extremes.append(torch.aminmax(y.detach()))
        if self._of is None:
            self.are_images.append(not x.requires_grad)
        else:
            y = self._of.feature(index, y)
        self._seen[x] = _version(x), index, None if y is x else y
        return y

    def _again(self, x: Tensor, y: Tensor) -> Tensor:
        """A feature whose values are those of ``x`` in another order, and so are quantized already."""
        _, index, _ = self._seen[x]
        if self._of is not None and self._of.exports:  # a runtime's integer operator is between two
            y = self._of.feature(index, y)
        self._seen[y] = _version(y), index, None
        return y

    def _next(self, operator: str, weight: Tensor | None) -> int:
        index, operator = len(self.names), operator.removesuffix('_')
        if self._of is None:
            name = f'{operator} {self._paths.get(id(weight), "")}'.strip()
            self._counts[name] += 1
            is_alone = ' ' in name and self._counts[name] == 1
            self.names.append(name if is_alone else f'{name} {self._counts[name]}')
        else:
            if index == len(self._of.names) or self._of.names[index].split()[0] != operator:
                raise _refusal(self._net, f'runs {operator} where there was another operator')
            self.names.append(self._of.names[index])
        return index


def _are_features(operator: str, *tensors: Any) -> bool:
    """Whether both are features, (N, C, ...): of a sum of one shape, of a product one may be each channel's factor."""
    if not all(isinstance(x, Tensor) and not isinstance(x, nn.Parameter) and x.dim() >= 3 for x in tensors):
        return False
    one, other = (x.shape if operator.startswith('add') else x.shape[:2] for x in tensors)
    return one == other


def _version(x: Tensor) -> int | None:
    return None if x.is_inference() else x._version


def fake_quantize(x: Tensor, scale: Tensor, low: Tensor | int, high: Tensor | int) -> Tensor:
    """``x`` at the nearest multiple of ``scale``, between ``low`` and ``high`` of them, as ONNX's QuantizeLinear and
    DequantizeLinear. The gradient passes straight through, but is 0 beyond the ends (Bengio et al. 2013).

    On a CPU in half the time of torch.fake_quantize_per_tensor_affine; NaN stays NaN.
    """
    return _FakeQuantize.apply(x, scale, low, high)


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: Any, high: Any) -> Tensor:
        steps = (x / scale).round_()
        ends = steps.clamp(low, high)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(steps.eq(ends))
        return ends.mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, None]:
        (inside,) = ctx.saved_tensors
        return gradient * inside, None, None, None
