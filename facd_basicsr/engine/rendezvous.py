"""Before the process group: whether every process that torchrun has started gets as far as that.

One that ends before, since its node lacks the data for example, is waited for by those on other nodes: torchrun tells
them nothing, and torch's own patience is half an hour.
"""

import os
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from facd_basicsr.errors import PeerFailedError

JOINED, ENDED = b'joined', b'ended'
TO_TELL = timedelta(seconds=10)
_joined: list[int] = []  # this process's rank, once it has


def join() -> dict[str, Any]:
    """Waits until every process is here.

    Returns:
        What ``init_process_group`` is to be given, so that there is no second connection to torchrun's store.

    Raises:
        PeerFailedError: one has ended before.
    """
    if not _by_torchrun():
        return {}
    store, rank, size = next(dist.rendezvous('env://'))
    store.set(_key(rank), JOINED)
    _joined.append(rank)
    for other in range(size):
        if store.get(_key(other)) == ENDED:
            raise PeerFailedError(f'another rank, {other}, has ended before the first iteration')
    return {'store': store, 'rank': rank, 'world_size': size}


def end_before_joining() -> None:
    """Tells those who wait, or will, that this process does not come."""
    if _by_torchrun() and not _joined:
        with suppress(RuntimeError, ValueError):  # nobody is there
            store, rank, _ = next(dist.rendezvous('env://', timeout=TO_TELL))
            store.set(_key(rank), ENDED)
            store.get(_key(rank))  # so that it has arrived before this process ends


def _by_torchrun() -> bool:
    return 'TORCHELASTIC_RUN_ID' in os.environ


def _key(rank: int) -> str:
    return f'facd_basicsr/{os.environ["TORCHELASTIC_RESTART_COUNT"]}/{rank}'
