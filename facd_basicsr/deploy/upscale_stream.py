"""Upscaling of a stream of raw frames, as ``ffmpeg -f rawvideo -pix_fmt rgb24`` writes and reads them."""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import Queue
from threading import Thread

import numpy as np

from facd_basicsr.deploy.upscale_images import settings
from facd_basicsr.deploy.upscaler import RefusedSizeError, Upscaler
from facd_basicsr.errors import UserError


@contextmanager
def own_stdout() -> Iterator[int]:
    """A file descriptor of what was standard output; what else is printed meanwhile, by C++ too, goes to stderr."""
    frames = os.dup(1)
    os.dup2(2, 1)
    try:
        yield frames
    finally:
        os.dup2(frames, 1)
        os.close(frames)


def upscale_stream(
    upscaler: Upscaler,
    width: int,
    height: int,
    jobs: int,
    source: int,
    target: int,
    tile: int | None = None,
    frugal: bool = False,
) -> int:
    """Reads frames, (height, width, 3) uint8 each, and writes them upscaled, in order, as images would be.

    A thread reads, others run, this one writes. No more than ``jobs + 2`` frames are held.

    Args:
        upscaler: unusable afterwards if this raises.
        jobs: frames that run at a time.
        source, target: file descriptors.
        tile, frugal: of :class:`MemoryBound`.

    Returns:
        How many frames there were.

    Raises:
        UserError: the stream ends inside a frame, after all before it are written; memory is short, or the network does
            not run on frames of this size.
        OSError: of reading or writing; BrokenPipeError where the reader is gone.
    """
    frames: Queue[Future[np.ndarray] | Exception | None] = Queue(jobs)
    count = 0
    with settings(upscaler, jobs, frugal), ThreadPoolExecutor(jobs) as threads:

        def read() -> None:
            try:
                while (frame := _frame(source, width, height)) is not None:
                    frames.put(threads.submit(upscaler.upscale, frame, tile=tile))
                frames.put(None)
            except Exception as error:  # of reading; or the threads are shut down, and nobody asks for it
                frames.put(error)

        try:
            Thread(target=read, daemon=True).start()  # daemon: it may wait for its source for ever
            while (item := frames.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                _write(target, item.result())
                count += 1
        except BaseException as error:
            upscaler.cancel()
            threads.shutdown(cancel_futures=True)
            if isinstance(error, MemoryError):
                raise UserError(
                    f'--raw: {width}x{height}: needs more memory than is available; accepted: --jobs 1, '
                    f'{upscaler.less_memory}, or smaller frames'
                ) from error
            if isinstance(error, RefusedSizeError):
                raise UserError(
                    f'--raw: the network does not run on {width}x{height} pixels ({error}); accepted: a size that it '
                    'takes'
                ) from error
            raise
    return count


def _frame(source: int, width: int, height: int) -> np.ndarray | None:
    """The next frame; None at the end of the stream.

    Raises:
        UserError: the stream ends inside it.
    """
    frame = np.empty((height, width, 3), np.uint8)
    content, found = frame.data.cast('B'), 0
    while found < len(content):
        read = os.readv(source, [content[found:]])
        if not read:
            break
        found += read
    if found == len(content):
        return frame
    if found == 0:
        return None
    raise UserError(
        f'--raw: the stream ends inside a frame, after {found} of {len(content)} bytes; accepted: whole frames of '
        f'{width}x{height} pixels in rgb24'
    )


def _write(target: int, frame: np.ndarray) -> None:
    content = frame.data.cast('B')
    while content:
        content = content[os.write(target, content) :]
