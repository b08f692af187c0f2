"""Work on many files: in threads, where Pillow, OpenCV and zlib release the GIL, and in processes."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import cv2

from facd_basicsr.environment import processors
from facd_basicsr.errors import UserError
from facd_basicsr.progress import ProgressBar

THREADS = processors()

Item = TypeVar('Item')


def in_threads(work: Callable[[Item], object], items: Sequence[Item], title: str) -> int:
    """Calls ``work`` with every item, under a progress bar. Returns their number."""
    with ThreadPoolExecutor(THREADS) as pool, ProgressBar(total=len(items), desc=title, unit='image') as bar:
        for first in range(0, len(items), 64 * THREADS):  # map submits all that it is given at once
            for _ in pool.map(work, items[first : first + 64 * THREADS]):
                bar.update()
    return len(items)


Result = TypeVar('Result')


@contextmanager
def in_processes(calls: Mapping[str, Callable[[], Result]], workers: int) -> Iterator[Iterator[tuple[str, Result]]]:
    """(key, result) of every call in their order, a few of them made ahead by ``workers`` processes.

    Args:
        calls: without arguments and, if ``workers`` is more than 1, picklable.
        workers: 1: this process alone.

    Raises:
        UserError: a worker was killed, or none can be started.
    """
    if workers == 1 or len(calls) < 2:
        yield ((key, call()) for key, call in calls.items())
        return
    # spawn: forking a process that has used torch's or OpenCV's threads can hang
    try:
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context('spawn'), initializer=_start_worker)
    except OSError as error:
        raise UserError(
            f'--workers: {workers}: no process can be started ({error.strerror}); perhaps /dev/shm is full, in which '
            'processes share memory; accepted: 1, which needs none'
        ) from error

    def results() -> Iterator[tuple[str, Result]]:
        ahead: deque = deque()
        for key, call in calls.items():
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:  # a process that this starts inherits it: Ctrl-C is for the main one alone
                ahead.append((key, pool.submit(call)))
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            if len(ahead) > 2 * workers:  # all at once would fill the memory
                first, future = ahead.popleft()
                yield first, future.result()
        for key, future in ahead:
            yield key, future.result()

    try:
        yield results()
    except BrokenExecutor as error:
        raise UserError(
            '--workers: a worker process was killed, by lack of memory perhaps; the same command with fewer continues'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """No worker outlives the main process, however that ends."""
    cv2.setNumThreads(1)
    main = multiprocessing.parent_process()

    def follow() -> None:
        main.join()  # type: ignore[union-attr]  # a worker has a parent
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
