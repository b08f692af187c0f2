"""Many images through one student: several at a time, what can't be read left out."""

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager

import torch
from PIL import Image
from tqdm import tqdm

from facd_basicsr.data.images import damage_named, read_pixels
from facd_basicsr.deploy.image_file import check_size, encoded
from facd_basicsr.deploy.image_tree import Pair
from facd_basicsr.deploy.upscale_record import UpscaleRecord
from facd_basicsr.deploy.upscaler import RefusedSizeError, Upscaler
from facd_basicsr.engine.execution import tf32_of
from facd_basicsr.engine.whole_files import give_name, write_partial
from facd_basicsr.errors import UserError


def upscale_images(upscaler: Upscaler, pairs: Sequence[Pair], jobs: int, record: UpscaleRecord | None) -> int:
    """Writes the file of each pair, whole or not at all, under a progress bar if there is a terminal.

    What a format can't keep of an image, and why an image is left out, is said in a line each on stderr.

    Args:
        upscaler: is of no use afterwards if this ends by an exception.
        jobs: images at a time: so many are read, run and written in threads, which share the CPU's cores.
        record: where every file is noted; None: nowhere.

    Returns:
        How many images were left out: not readable, too large for the format or for the memory, or of a size that the
        network does not take.

    Raises:
        OSError: a file can't be written. As with Ctrl-C, what was begun ends at once and leaves nothing.
    """
    jobs = max(1, min(jobs, len(pairs)))
    skipped = 0
    with (
        _shared_cores(jobs),
        _of_any_size(),
        tf32_of('fp32'),  # TF32 rounds more than a step of 16 bits
        tqdm(total=len(pairs), unit='image', dynamic_ncols=True, disable=None) as bar,
        ThreadPoolExecutor(jobs) as threads,
    ):
        try:
            futures = {threads.submit(_upscale, upscaler, pair, record, bar): pair for pair in pairs}
            for future in as_completed(futures):
                try:
                    for sentence in future.result():
                        tqdm.write(f'{futures[future].source}: {sentence}', file=sys.stderr)
                except UserError as error:
                    skipped += 1
                    tqdm.write(f'skipped: {error}', file=sys.stderr)
                bar.update()
        except BaseException:
            upscaler.cancel()
            threads.shutdown(cancel_futures=True)
            raise
    return skipped


def _upscale(upscaler: Upscaler, pair: Pair, record: UpscaleRecord | None, bar: tqdm) -> list[str]:
    """One image; returns what its format could not keep."""
    suffix = pair.target.suffix.lower()

    def show(tile: int, tiles: int) -> None:
        if tiles > 1:
            bar.set_postfix_str(f'{pair.source.name}: tile {tile} of {tiles}')

    with damage_named(pair.source):
        # its line first, or it would not be of what is read
        line = None if record is None else record.line(pair)
    try:
        pixels, profile = read_pixels(pair.source)
        height, width = (upscaler.scale * side for side in pixels.shape[:2])
        check_size(height, width, suffix, f'{pair.source}: x{upscaler.scale}')
        parts, lost = encoded(upscaler.upscale(pixels, show), profile, suffix)
        pair.target.parent.mkdir(parents=True, exist_ok=True)
        partial = write_partial(pair.target, parts)
    except MemoryError as error:
        raise UserError(
            f'{pair.source}: takes more memory than there is; accepted: --jobs 1, {upscaler.less_memory}, or a smaller '
            'image'
        ) from error
    except RefusedSizeError as error:
        raise UserError(
            f'{pair.source}: the network does not run on {width // upscaler.scale}x{height // upscaler.scale} pixels '
            f'({error}); accepted: an image of a size that it takes'
        ) from error
    if record is None or line is None:
        give_name(partial, pair.target)
    else:
        record.finish(pair, line, partial)
    return lost


@contextmanager
def _of_any_size() -> Iterator[None]:
    """Pillow refuses images of more than 179 megapixels, in case a stranger has sent them: here the user names them."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@contextmanager
def _shared_cores(jobs: int) -> Iterator[None]:
    """Threads that are started inside have a part of torch's threads each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // jobs))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
