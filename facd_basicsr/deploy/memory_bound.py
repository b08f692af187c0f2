"""``--memory``: tiles and images in work at a time by a bound of the process's memory."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from facd_basicsr.deploy.upscaler import Upscaler
from facd_basicsr.environment import resident_memory, return_freed_memory
from facd_basicsr.errors import UserError
from facd_basicsr.files.images import encoding_nbytes, image_size, pixels_nbytes

RESERVE = 64 * 2**20  # bytes: of threads, kernels that are built when they first run, allocations that are not counted
TILES = (512, 384, 256, 192, 128, 96, 64, 48, 32)  # LQ pixels


class MemoryBound:
    """A bound of all that the process holds in RAM, for images and network what Python and its libraries leave of it.

    Freed memory goes back to the system from now on.

    Args:
        upscaler: ready to run.
        limit: bytes.

    Raises:
        UserError: nothing is left.
    """

    def __init__(self, upscaler: Upscaler, limit: int) -> None:
        self._upscaler, self._limit = upscaler, limit
        return_freed_memory()
        upscaler.prepare(1, frugal=True)
        upscaler.less_memory = 'a smaller --memory'
        taken = resident_memory() + RESERVE
        self._free = limit - taken
        if self._free <= 0:
            raise UserError(
                f'--memory: {in_megabytes(limit)}, of which Python, its libraries and the network take '
                f'{in_megabytes(taken)}; accepted: more'
            )
        sizes = {upscaler.sizes.aligned(tile) for tile in TILES if tile < upscaler.tile} | {upscaler.tile}
        self._tiles = sorted(sizes, reverse=True)
        self._footprints: dict[tuple[int, int, int], int] = {}
        self._footprint(32, 32, self._tiles[-1])  # or a network that cannot be counted would be told of every image

    def tile(self, height: int, width: int, pixels: int, what: str) -> tuple[int, int]:
        """The largest tile with which the image takes half of the memory, so that two fit, or else all of it.

        Args:
            height, width: of LQ.
            pixels: bytes beside the network's.
            what: the image, for the message.

        Returns:
            The tile and all that the image then takes.

        Raises:
            UserError: no tile is small enough.
        """
        taken = {tile: pixels + self._footprint(height, width, tile) for tile in self._tiles}
        for part in (self._free // 2, self._free):
            for tile in self._tiles:
                if taken[tile] <= part:
                    return tile, taken[tile]
        least = min(taken.values())
        raise UserError(
            f'{what}: takes {in_megabytes(least)}, and --memory leaves {in_megabytes(self._free)}; accepted: --memory '
            f'{in_megabytes(self._limit + least - self._free, "M")}, or a smaller image'
        )

    def tile_of(self, path: Path, suffix: str) -> tuple[int, int]:
        """:meth:`tile` for an image file that becomes one by the name of ``suffix``.

        Raises:
            UserError: no tile is small enough, or the file is not an image.
        """
        height, width = image_size(path)
        own, reading, deep = pixels_nbytes(path)
        running = 2 * own + encoding_nbytes(own * self._upscaler.scale**2, suffix, deep)
        return self.tile(height, width, max(reading, running), str(path))

    def jobs(self, images: Sequence[tuple[Path, str]], most: int) -> int:
        """How many images, as of :meth:`tile_of`, may be in work at a time, whichever these are."""
        taken = [1]
        for path, suffix in images:
            with suppress(UserError):  # said in its turn
                taken.append(self.tile_of(path, suffix)[1])
        return max(1, min(most, self._free // max(taken)))

    def for_frames(self, width: int, height: int, most: int) -> tuple[int, int]:
        """The tile for frames of a stream, and how many of them may run at a time.

        Raises:
            UserError: not even one.
        """
        frame = 3 * width * height
        # jobs + 2 are held, each before and after, and what runs is copied
        pixels = frame + 3 * frame * (1 + self._upscaler.scale**2)
        tile, taken = self.tile(height, width, pixels, f'--raw: {width}x{height}')
        return tile, max(1, min(most, self._free // taken))

    def _footprint(self, height: int, width: int, tile: int) -> int:
        size = -(-height // 32) * 32, -(-width // 32) * 32, tile  # so that images of almost one size are counted once
        if size not in self._footprints:
            self._footprints[size] = self._upscaler.footprint(*size)
        return self._footprints[size]


def in_megabytes(size: int, unit: str = ' MB') -> str:
    """Of 2**20 bytes, rounded up."""
    return f'{-(-size // 2**20)}{unit}'
