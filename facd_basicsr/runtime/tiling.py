"""Large images in overlapping tiles: the overlap is the network's receptive field radius, or measured."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from facd_basicsr.errors import UserError, one_line
from facd_basicsr.runtime.execution import tf32_of
from facd_basicsr.runtime.metrics import photograph_input
from facd_basicsr.runtime.size_requirements import Padded, SizeRequirements

STRIP = 16  # pixels: across the direction of measurement
LENGTHS = (64, 256, 1024)  # of the strips, each tried when the one before was too short
TOLERANCE = 1e-4  # of a range of 1: rounding is less, a step of 8 bits 40 times as much
OVERLAPS = (16, 32, 64)  # pixels, for networks that are not run with their receptive field
SEAM = 0.5 / 255  # of a range of 1: a value that is rounded to 8 bits differs by one step at most
HEIGHT, WIDTH = 64, 96  # pixels: of the image on which overlaps are tried, and of each of its two tiles


def tiled(net: Callable[[Tensor], Tensor], lq: Tensor, scale: int, tile: int, reach: int) -> Tensor:
    """``net(lq)`` in tiles: (N, C, h, w) -> (N, C, h * scale, w * scale).

    Args:
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


def receptive_field_radius(
    net: nn.Module,
    channels: int,
    scale: int,
    tile: int,
    sizes: SizeRequirements = SizeRequirements(),  # noqa: B008
) -> int:
    """The radius of a network's receptive field in pixels of its input: the overlap of tiles without seams.

    Independent of its weights: a NaN in the input makes every output pixel that depends on it NaN.

    Args:
        tile: what it will be run in; the radius is verified with such tiles.
        sizes: that it takes, by which tiles are aligned: the radius is a multiple too.

    Raises:
        UserError: ``tile`` is not aligned; the receptive field is the whole image or cannot be measured; or the output
            depends on absolute position, as with windows of attention that the network itself pads to.
    """
    if tile != sizes.aligned(tile):
        raise UserError(f'val.tile: {tile}; accepted with {type(net).__name__}: a multiple of {sizes.multiple_of}')
    training = net.training
    padded = Padded(net, scale, sizes).eval()
    device = next(net.parameters()).device
    with _pixels_unmixed():
        try:
            reach = max(_reach(padded, channels, upright, device) for upright in (False, True))
            reach = sizes.aligned(reach + sizes.multiple_of - 1)  # it depends on where in a window a pixel is
            for upright in (False, True):
                lq = photograph_input('astronaut.png', channels, STRIP, tile + reach + STRIP)
                lq = _turned(lq.to(device), upright)
                found, whole = tiled(padded, lq, scale, tile, reach), padded(lq)
                if not torch.allclose(found, whole, rtol=TOLERANCE, atol=TOLERANCE):
                    raise _refusal(net, 'has an output that depends on where a tile begins')
        except (RuntimeError, AssertionError) as error:
            raise _refusal(net, f'does not run on tiles of every size ({one_line(error)})') from error
        finally:
            net.train(training)
    return reach


def overlap_without_seams(
    net: nn.Module, channels: int, scale: int, sizes: SizeRequirements
) -> tuple[int, float] | None:
    """An overlap with which the tiles of two photographs, side by side and one above the other, show no seam.

    These are of odd height and width: SAFMN's features of half and quarter size are of other pixels then.

    For networks whose receptive field is far larger than what their output notices, as with windows of attention.
    Other than the receptive field radius it depends on the weights. Not for those whose receptive field is the whole
    image: what they calculate of it, such as means, differs more in larger images than in these.

    Args:
        net: on its device, in eval mode.

    Returns:
        Pixels of LQ, and the largest difference from the whole images, of a range of 1; None: more than half a step of
        8 bits with each of ``OVERLAPS``, or the receptive field is the whole image or cannot be measured.
    """
    padded, tile = Padded(net, scale, sizes), sizes.aligned(WIDTH)
    device = next(net.parameters()).device
    with _pixels_unmixed():
        try:
            for upright in (False, True):
                _reach(padded, channels, upright, device)
        except (UserError, RuntimeError, AssertionError):
            return None
    with torch.no_grad():
        pairs = []
        for name, upright in (('astronaut.png', False), ('chelsea.png', True)):
            lq = _turned(photograph_input(name, channels, HEIGHT - 3, 2 * tile - 5).to(device), upright)
            pairs.append((lq, padded(lq).clamp(0, 1)))
        for overlap in map(sizes.aligned, OVERLAPS):
            difference = max(
                float((tiled(padded, lq, scale, tile, overlap).clamp(0, 1) - whole).abs().max()) for lq, whole in pairs
            )
            if difference <= SEAM:
                return overlap, difference
    return None


@contextmanager
def _pixels_unmixed() -> Iterator[None]:
    """Not by cuDNN: some of its algorithms mix further pixels, which then are NaN too; nor by TF32, which rounds more
    than the tolerance."""
    with torch.no_grad(), tf32_of('fp32'), torch.backends.cudnn.flags(enabled=False):
        yield


def _reach(net: Padded, channels: int, upright: bool, device: torch.device) -> int:
    """The radius along the width or, ``upright``, the height."""
    for length in LENGTHS:
        lq = torch.full((1, channels, STRIP, length), 0.5, device=device)
        middle = length // 2
        lq[:, :, :, middle] = torch.nan
        output = _turned(net(_turned(lq, upright)), upright)
        reached = output.isnan().any(dim=1).any(dim=1)[0].nonzero() // net.scale  # columns of lq
        if len(reached) and reached.min() > 0 and reached.max() < length - 1:
            return int((reached - middle).abs().max())
    raise _refusal(net.net, _why(net, _turned(lq, upright)))


def _refusal(net: nn.Module, reason: str) -> UserError:
    return UserError(f'val.tile: {type(net).__name__} {reason}; accepted for such a network: no val.tile')


def _why(net: Padded, lq: Tensor) -> str:
    """Names the first module with a global receptive field."""
    culprits = []

    def look(module: nn.Module, inputs: tuple, output: object) -> None:
        tensors = [value for value in (*inputs, output) if isinstance(value, Tensor)]
        if len(tensors) >= 2 and output is tensors[-1] and output.isnan().all() and not tensors[0].isnan().all():
            culprits.append(module)

    hooks = [module.register_forward_hook(look) for module in net.net.modules()]
    net(lq)
    for hook in hooks:
        hook.remove()
    names = {module: name for name, module in net.net.named_modules() if name}
    where = [f' in {names[module]} ({type(module).__name__})' for module in culprits if module in names]
    return f'looks at the whole image, or farther than {LENGTHS[-1] // 2} pixels{(where or [""])[0]}'


def _turned(image: Tensor, upright: bool) -> Tensor:
    return image.transpose(2, 3) if upright else image
