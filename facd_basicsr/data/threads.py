"""Work on many files in threads: reading them, and what Pillow, OpenCV and zlib do outside the interpreter's lock."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from tqdm import tqdm

THREADS = os.cpu_count() or 1

Item = TypeVar('Item')


def in_threads(work: Callable[[Item], object], items: Sequence[Item], title: str) -> int:
    """Calls ``work`` with every item, under a progress bar if there is a terminal. Returns their number."""
    with ThreadPoolExecutor(THREADS) as pool, tqdm(total=len(items), desc=title, unit='image', disable=None) as bar:
        for batch in _batches(items, 64 * THREADS):  # map submits all that it is given at once
            for _ in pool.map(work, batch):
                bar.update()
    return len(items)


def _batches(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
