"""The sizes of LQ that a network takes, and padding of all others: windows of attention, factors of two."""

import copy
from bisect import bisect_left
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from facd_basicsr.runtime.rng import preserve_rng_state

POWERS = tuple(2**exponent for exponent in range(7))
OTHERS = (3, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 20, 24, 28, 40, 48, 56)  # windows such as Swin's own 7
# Least sizes that are tried: on the meta device a size costs nothing, on another no more than a network may need.
PROBED_ON_META, PROBED = 48, 16


@dataclass(frozen=True)
class SizeRequirements:
    """What height and width of LQ a network takes.

    Attributes:
        multiple_of: both are multiples of it.
        minimum: the least of both, a multiple of ``multiple_of``.
    """

    multiple_of: int = 1
    minimum: int = 1

    def aligned(self, size: int) -> int:
        """The least multiple of ``multiple_of`` that is no smaller."""
        return -(-size // self.multiple_of) * self.multiple_of

    def pad(self, lq: Tensor) -> Tensor:
        """LQ padded at the bottom and right, by reflection as far as possible, then by its last row and column.

        Args:
            lq: (N, C, h, w).

        Returns:
            (N, C, h', w') of the least size that the network takes; LQ itself if it is of such a size.
        """
        pads = [self.aligned(max(size, self.minimum)) - size for size in lq.shape[2:]]
        if not any(pads):
            return lq
        bottom, right = (min(pad, size - 1) for pad, size in zip(pads, lq.shape[2:]))
        lq = F.pad(lq, (0, right, 0, bottom), 'reflect')
        return F.pad(lq, (0, pads[1] - right, 0, pads[0] - bottom), 'replicate')


class Padded(nn.Module):
    """A network on images of every size: LQ is padded to one that it takes, and its output cropped.

    Input (N, C, h, w); output (N, C', h * scale, w * scale). What a network gives that is not ``scale`` times the size
    of its input is returned as it is.
    """

    def __init__(self, net: nn.Module, scale: int, sizes: SizeRequirements) -> None:
        super().__init__()
        self.net = net
        self.scale = scale
        self.sizes = sizes

    def forward(self, lq: Tensor) -> Tensor:
        padded = self.sizes.pad(lq)
        sr = self.net(padded)
        if padded is lq or not _is_scaled(sr, padded, self.scale):
            return sr
        height, width = lq.shape[2:]
        return sr[..., : height * self.scale, : width * self.scale]

    def extra_repr(self) -> str:
        return f'scale={self.scale}, {self.sizes}'


def size_requirements(net: nn.Module, channels: int, scale: int) -> SizeRequirements:
    """Probes what sizes a network takes, in eval mode and with a flat image.

    On the meta device, where nothing is calculated; a network that does not run there is tried where it is.

    Args:
        net: not wrapped in DDP. Neither it nor a random number generator is changed.

    Returns:
        Those of the least multiple up to 64 that it takes, in height and width different from each other; no
        requirements of a network that takes none of these, or of another scale.
    """
    with preserve_rng_state(), torch.no_grad():
        if any(True for _ in net.parameters()):  # others run files
            probe = _Probe(on_meta(net), channels, scale, PROBED_ON_META)
            found = probe.requirements()
            if probe.has_run:
                return found or SizeRequirements()
        return _Probe(net, channels, scale, PROBED).requirements() or SizeRequirements()


def on_meta(net: nn.Module) -> nn.Module:
    """A copy of a network on the meta device."""
    sizes = {id(p): nn.Parameter(p.to('meta'), p.requires_grad) for p in net.parameters()}
    return copy.deepcopy(net, sizes | {id(buffer): buffer.to('meta') for buffer in net.buffers()})


class _Probe:
    """Tries sizes on a network, of ``least`` pixels or more where it takes these."""

    def __init__(self, net: nn.Module, channels: int, scale: int, least: int) -> None:
        self._net, self._channels, self._scale, self._least = net, channels, scale, least
        self._device = next((p.device for p in net.parameters()), torch.device('cpu'))
        self.has_run = False  # on any size, whatever it gave

    def requirements(self) -> SizeRequirements | None:
        for multiple in (*POWERS, *OTHERS):
            if self.has_run and multiple in OTHERS:
                break  # on multiples of 64: what keeps it from upscaling is no window
            count = -(-self._least // multiple) | 1  # odd, so that no power of two passes for a smaller one
            if self._takes(multiple * count, multiple * (count + 2)):
                return SizeRequirements(multiple, self._minimum(multiple, count))
        return None

    def _minimum(self, multiple: int, count: int) -> int:
        """The least size that is taken, where ``multiple * count`` is: between two powers of two, then by halves."""
        sizes = [multiple * number for number in range(1, count + 1)]
        powers = [2**exponent for exponent in range(count.bit_length())]
        high = next((power for power in powers if self._takes(sizes[power - 1], sizes[power - 1])), count)
        refused = max((power for power in powers if power < high), default=0)
        return sizes[bisect_left(sizes, True, refused, high - 1, key=lambda size: self._takes(size, size))]

    def _takes(self, height: int, width: int) -> bool:
        lq = torch.full((1, self._channels, height, width), 0.5, device=self._device)
        training = self._net.training
        # Networks refuse a size by errors of any class. What a forward makes, as ECBSR's kernels, is on the device too.
        with suppress(Exception), self._device:
            try:
                sr = self._net.eval()(lq)
            finally:
                self._net.train(training)
            self.has_run = True
            return _is_scaled(sr, lq, self._scale)
        return False


def _is_scaled(sr: object, lq: Tensor, scale: int) -> bool:
    return isinstance(sr, Tensor) and sr.dim() == 4 and sr.shape[2:] == tuple(scale * side for side in lq.shape[2:])
