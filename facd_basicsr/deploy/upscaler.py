"""A student that upscales images of every kind and size."""

import itertools
import math
import traceback
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import nullcontext, suppress
from threading import Lock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d

from facd_basicsr.archs import CHANNELS, OUT_CHANNELS, channels_argument, network_sizes
from facd_basicsr.archs.reparameterization import reparameterized
from facd_basicsr.archs.tail_in_tiles import has_tail, with_tail_in_tiles
from facd_basicsr.deploy.export_formats import run_by
from facd_basicsr.deploy.runtimes import RuntimeNetwork
from facd_basicsr.deploy.student import Student
from facd_basicsr.environment import available_memory
from facd_basicsr.errors import UserError, one_line
from facd_basicsr.evaluation.complexity import footprint
from facd_basicsr.files.images import without_alpha
from facd_basicsr.runtime.execution import is_lack_of_memory, refusal_reason
from facd_basicsr.runtime.size_requirements import Padded, SizeRequirements, on_meta
from facd_basicsr.runtime.tiling import overlap_without_seams, receptive_field_radius, tiles

DEFAULT_TILE = 512  # LQ pixels: with what is around it, an EDSR of 64 features and 16 blocks takes 0.6 GB at x4
TILE_WITHOUT_TAIL = 256  # of other networks, which hold all their features at once: 1.6 GB by onnxruntime
LUMA = (0.299, 0.587, 0.114)  # of red, green, blue: BT.601's, as Pillow makes gray of colors


class RefusedSizeError(Exception):
    """A network does not run on an image, or a tile, of this size. The message is the network's reason."""


class Upscaler:
    """Runs a student on images as files have them. Of several threads each may run one.

    Args:
        student: its network, which is re-parameterized, may be moved to the GPU, if there is one.
        tile: LQ pixels per side that run at once, plus the receptive field radius; 0: whole images;
            None: 512, of networks other than EDSR and RCAN 256. Rounded up to a multiple of the network's windows.
            Images no larger run whole, and so do all images where the network cannot run in tiles; RCAN then runs the
            part of it in tiles that can and needs the memory.
        backend: ``torch``, or one of ``BACKENDS``, for which the network is exported in memory. An ONNX file's is what
            has opened it.

    Attributes:
        scale: upscaling factor.
        tile: 0: whole images.
        sizes: of LQ that the network takes.
        less_memory: what needs less memory, for messages after "accepted".
        seams: of tiles that differ from the whole image, by how much, and what they cost, in a line; None: of others.

    Raises:
        UserError: the student is not of color images, an ONNX file of several at a time, or not run by the
            backend.
    """

    def __init__(self, student: Student, tile: int | None = None, backend: str = 'torch') -> None:
        description = student.description
        for names in (CHANNELS, OUT_CHANNELS):
            key, value = channels_argument(description.network, names)
            if value != 3:
                raise UserError(f'--student: {key}: {value}; accepted: a network of color images, 3')
        self.scale = description.scale
        of_file = isinstance(student.net, RuntimeNetwork)
        by_runtime = of_file or backend != 'torch'
        # a runtime takes its input from the CPU
        self._device = torch.device('cuda' if torch.cuda.is_available() and not by_runtime else 'cpu')
        reach = description.reach
        if isinstance(student.net, RuntimeNetwork):
            batch = student.net.fixed.get(0, 1)
            if batch > 1:
                raise UserError(
                    f'--student: takes {batch} images at a time; accepted: exported with --batch 1 or dynamic'
                )
            if 2 in student.net.fixed:
                reach = None  # images of this size, and tiles of none
        net = reparameterized(student.net).to(self._device)
        self.sizes = network_sizes(net, description.network, self.scale)
        tail = has_tail(net) and not by_runtime
        self.tile = self.sizes.aligned((DEFAULT_TILE if tail else TILE_WITHOUT_TAIL) if tile is None else tile)
        self.seams: str | None = None
        if not of_file:
            reach = self._overlap(net, self.sizes) if self.tile else None
        self.less_memory = f'a --tile smaller than {self.tile}' if self.tile else 'no --tile 0'
        if reach is None and self.tile:
            self.tile = 0
            self.less_memory = f'another student (--tile does not help, {description.architecture} needs whole images)'
        self._reach = max(1, reach or 0)  # 1: alpha's neighbors
        if tail and tile != 0:
            net = with_tail_in_tiles(net, self.scale)
        elif by_runtime and not of_file:
            net = run_by(backend, Student(net, description), '--backend')
        self._net = Padded(net, self.scale, self.sizes)
        # a GPU gains nothing from several at once, and each takes its memory
        self._turn = Lock() if self._device.type == 'cuda' else nullcontext()
        self._cancelled = False
        for module in self._net.modules():
            module.register_forward_pre_hook(lambda *_: self._check_cancelled())

    def prepare(self, jobs: int, frugal: bool = False) -> None:
        """Tells the runtime, if it is not torch, what :meth:`RuntimeNetwork.open` takes."""
        if isinstance(self._net.net, RuntimeNetwork):
            self._net.net.open(jobs, frugal)

    def footprint(self, height: int, width: int, tile: int) -> int:
        """Bytes that an image takes while it is run in tiles, beside its pixels, its output and the weights, counted.

        Raises:
            UserError: they cannot be counted.
        """
        sides = [min(side, tile + 2 * self._reach) if tile else side for side in (height, width)]
        output = 4 * 3 * self.scale**2 * math.prod(sides)  # bytes, float32
        net = self._net.net
        if isinstance(net, RuntimeNetwork):
            of_net = net.footprint(*(self.sizes.aligned(max(side, self.sizes.minimum)) for side in sides))
        else:
            own = sum(tensor.nbytes for tensor in (*net.parameters(), *net.buffers()))
            try:  # of a network on the meta device nothing is ever run in fact
                of_net = footprint(on_meta(self._net), (sides[0], sides[1]))[1] - own
            except (RuntimeError, NotImplementedError) as error:
                raise UserError(
                    f'--memory: the memory of {type(net).__name__} cannot be counted ({one_line(error, 100)}); '
                    'accepted: --tile and --jobs'
                ) from error
        return max(of_net, 3 * output)  # clamped, then as integers

    def _overlap(self, net: nn.Module, sizes: SizeRequirements) -> int | None:
        """Pixels of LQ around a tile; None: it cannot be run in tiles.

        Of convolutions the receptive field radius, with which tiles are the whole image. Windows of attention reach
        several times as far as their output notices, and take the time.
        """
        if sizes == SizeRequirements():
            with suppress(UserError):
                return receptive_field_radius(net, 3, self.scale, self.tile)
        if has_tail(net):
            return None  # it looks at the whole image, but not in the part that needs the memory
        found = overlap_without_seams(net, 3, self.scale, sizes)
        if found is None:
            return None
        overlap, difference = found
        self.seams = (
            f'{type(net).__name__} in tiles with {overlap} pixels around each, at {self.tile} pixels '
            f'{((self.tile + 2 * overlap) / self.tile) ** 2:.1f} times the arithmetic; on photographs they differ from '
            f'the whole image by at most {255 * difference:.2g} of an 8-bit step'
        )
        return overlap

    def upscale(
        self, pixels: np.ndarray, show: Callable[[int, int], None] = lambda *_: None, tile: int | None = None
    ) -> np.ndarray:
        """Upscales an image at its own bit depth.

        Colors go through the network as in training; gray as three equal channels, of whose outputs it is the luma;
        alpha as gray, and stays within what it is in the pixel and its neighbors, so that what is opaque remains so.

        Args:
            pixels: uint8 or uint16 (H, W, C), as of :func:`facd_basicsr.files.images.read_pixels`.
            show: called before each tile with its number and the total; alpha has its own.
            tile: None: ``self.tile``.

        Returns:
            (H * scale, W * scale, C) of the same type.

        Raises:
            MemoryError: it needs more memory than is available.
            RefusedSizeError: the network does not run on it.
            CancelledError: :meth:`cancel` was called.
        """
        colors, alpha = without_alpha(pixels)
        height, width, channels = pixels.shape
        shape = (height * self.scale, width * self.scale, channels)
        free = available_memory()
        if free is not None and free < math.prod(shape) * pixels.itemsize:  # Linux would give it, and then kill
            raise MemoryError
        output = np.empty(shape, pixels.dtype)
        try:
            tile = (self.tile if tile is None else tile) or max(height, width)
            self._run(colors, output[:, :, : colors.shape[2]], tile, show)
            if alpha is not None and alpha.min() == alpha.max():
                output[:, :, -1] = alpha.max()
            elif alpha is not None:
                self._run(alpha, output[:, :, -1:], tile, show, is_alpha=True)
        except RuntimeError as error:
            if not is_lack_of_memory(error):
                raise
            raise MemoryError from error
        return output

    def cancel(self) -> None:
        """Cancels other threads, within a layer of the network."""
        self._cancelled = True

    def _check_cancelled(self) -> None:
        if self._cancelled:
            raise CancelledError

    def _run(
        self,
        channels: np.ndarray,
        output: np.ndarray,
        tile: int,
        show: Callable[[int, int], None],
        is_alpha: bool = False,
    ) -> None:
        """(H, W, 1 or 3) -> (H * scale, W * scale, 1 or 3)."""
        top = np.iinfo(channels.dtype).max
        whole = torch.uint8 if channels.dtype == np.uint8 else torch.int32  # torch has too little of uint16
        lq = torch.from_numpy(channels.transpose(2, 0, 1).copy())[None]  # Pillow's are read-only, which torch has not
        count = math.prod(math.ceil(side / tile) for side in lq.shape[2:])
        numbers = itertools.count(1)

        def finished(part: Tensor) -> Tensor:
            """A part of the image, as integers: (1, C, h, w) -> (1, C, h * scale, w * scale)."""
            show(next(numbers), count)
            self._check_cancelled()
            with self._turn:
                return self._output(part.float().to(self._device) / top, is_alpha).mul_(top).round_().to('cpu', whole)

        with torch.inference_mode():
            for rows, columns, part in tiles(finished, lq, self.scale, tile, self._reach):
                output[rows, columns] = part[0].permute(1, 2, 0).numpy()

    def _output(self, lq: Tensor, is_alpha: bool) -> Tensor:
        """(1, 1 or 3, h, w) -> (1, 1 or 3, h * scale, w * scale), all in [0, 1]."""
        rgb = lq.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)  # which is faster on a CPU
        try:
            output = self._net(rgb)
        except (RuntimeError, AssertionError) as error:  # AssertionError: RRDBNet's
            traceback.clear_frames(error.__traceback__)  # they hold features, as long as anybody keeps the error
            if is_lack_of_memory(error):
                raise
            raise RefusedSizeError(refusal_reason(error)) from error
        expected = (1, 3, *(self.scale * side for side in lq.shape[2:]))
        if output.shape != expected:
            raise RefusedSizeError(f'gives {tuple(output.shape)} instead of {expected}')
        if lq.shape[1] == 1:
            output = (output * output.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
        if is_alpha:
            highest, lowest = max_pool2d(lq, 3, 1, 1), -max_pool2d(-lq, 3, 1, 1)
            least, most = (interpolate(bound, scale_factor=self.scale) for bound in (lowest, highest))
            output = output.clamp(least, most)
        return output.clamp(0, 1)
