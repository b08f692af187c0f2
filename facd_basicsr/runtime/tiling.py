"""Large images in overlapping tiles: the overlap is the network's receptive field radius."""

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from facd_basicsr.errors import UserError, one_line
from facd_basicsr.runtime.execution import tf32_of
from facd_basicsr.runtime.metrics import photograph_input

STRIP = 16  # pixels: across the direction of measurement
LENGTHS = (64, 256, 1024)  # of the strips, each tried when the one before was too short
TOLERANCE = 1e-4  # of a range of 1: rounding is less, a step of 8 bits 40 times as much


def tiled(net: Callable[[Tensor], Tensor], lq: Tensor, scale: int, tile: int, reach: int) -> Tensor:
    """``net(lq)`` in tiles: (N, C, h, w) -> (N, C, h * scale, w * scale).

    Args:
        net: (N, C, h, w) -> (N, C, h * scale, w * scale) for all h and w.
        scale: its upscaling factor.
        tile: pixels of ``lq`` per side whose output is kept of each run.
        reach: pixels of ``lq`` around them that go in too, from :func:`receptive_field_radius`.
    """
    parts = tiles(net, lq, scale, tile, reach)
    first = next(parts)
    output = first[2].new_empty(*first[2].shape[:2], *(scale * side for side in lq.shape[2:]))
    for rows, columns, part in itertools.chain([first], parts):
        output[:, :, rows, columns] = part
    return output


def tiles(
    net: Callable[[Tensor], Tensor], lq: Tensor, scale: int, tile: int, reach: int
) -> Iterator[tuple[slice, slice, Tensor]]:
    """The tiles of :func:`tiled`, one after the other: rows and columns of the output, and what is there."""
    for top, left in itertools.product(*(range(0, side, tile) for side in lq.shape[2:])):
        y, x = max(0, top - reach), max(0, left - reach)
        output = net(lq[:, :, y : top + tile + reach, x : left + tile + reach])
        rows, columns = (slice(scale * first, scale * (first + tile)) for first in (top, left))
        yield rows, columns, output[:, :, _moved(rows, -scale * y), _moved(columns, -scale * x)]


def _moved(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)


def receptive_field_radius(net: nn.Module, channels: int, scale: int, tile: int) -> int:
    """The radius of a network's receptive field in pixels of its input: the overlap of tiles without seams.

    Independent of its weights: a NaN in the input makes every output pixel that depends on it NaN.

    Args:
        net: on its device.
        channels: of its input.
        scale: its upscaling factor.
        tile: what it will be run in; the radius is verified with such tiles.

    Raises:
        UserError: its receptive field is the whole image or cannot be measured; or its output depends on
            absolute position, as with windows of attention.
    """
    training = net.training
    net.eval()
    device = next(net.parameters()).device
    # not cuDNN: some of its algorithms mix further pixels, which then are NaN too; not TF32,
    # which rounds more than the tolerance
    with torch.no_grad(), tf32_of('fp32'), torch.backends.cudnn.flags(enabled=False):
        try:
            reach = max(_reach(net, channels, scale, upright, device) for upright in (False, True))
            for upright in (False, True):
                lq = photograph_input('astronaut.png', channels, STRIP, tile + reach + STRIP)
                lq = _turned(lq.to(device), upright)
                if not torch.allclose(tiled(net, lq, scale, tile, reach), net(lq), rtol=TOLERANCE, atol=TOLERANCE):
                    raise _refusal(net, 'has an output that depends on where a tile begins')
        except (RuntimeError, AssertionError) as error:
            raise _refusal(net, f'does not run on tiles of every size ({one_line(error)})') from error
    net.train(training)
    return reach


def receptive_field_radius_or_none(net: nn.Module, channels: int, scale: int, tile: int) -> int | None:
    """As :func:`receptive_field_radius`; None of a network that cannot be run in tiles."""
    try:
        return receptive_field_radius(net, channels, scale, tile)
    except UserError:
        return None


def _reach(net: nn.Module, channels: int, scale: int, upright: bool, device: torch.device) -> int:
    """The radius along the width or, ``upright``, the height."""
    for length in LENGTHS:
        lq = torch.full((1, channels, STRIP, length), 0.5, device=device)
        middle = length // 2
        lq[:, :, :, middle] = torch.nan
        output = _turned(net(_turned(lq, upright)), upright)
        reached = output.isnan().any(dim=1).any(dim=1)[0].nonzero() // scale  # columns of lq
        if len(reached) and reached.min() > 0 and reached.max() < length - 1:
            return int((reached - middle).abs().max())
    raise _refusal(net, _why(net, _turned(lq, upright)))


def _refusal(net: nn.Module, reason: str) -> UserError:
    return UserError(f'val.tile: {type(net).__name__} {reason}; accepted for such a network: no val.tile')


def _why(net: nn.Module, lq: Tensor) -> str:
    """Names the first module with a global receptive field."""
    culprits = []

    def look(module: nn.Module, inputs: tuple, output: object) -> None:
        tensors = [value for value in (*inputs, output) if isinstance(value, Tensor)]
        if len(tensors) >= 2 and output is tensors[-1] and output.isnan().all() and not tensors[0].isnan().all():
            culprits.append(module)

    hooks = [module.register_forward_hook(look) for module in net.modules()]
    net(lq)
    for hook in hooks:
        hook.remove()
    names = {module: name for name, module in net.named_modules() if name}
    where = [f' in {names[module]} ({type(module).__name__})' for module in culprits if module in names]
    return f'looks at the whole image, or farther than {LENGTHS[-1] // 2} pixels{(where or [""])[0]}'


def _turned(image: Tensor, upright: bool) -> Tensor:
    return image.transpose(2, 3) if upright else image
