"""Memory shared by the processes of one node, freed when they end, also when they are killed."""

import ctypes
import mmap
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from facd_basicsr.errors import UserError, one_line
from facd_basicsr.runtime.processes import Ranks

Address = tuple[int, int, int]  # a process, its file descriptor, bytes
CLOSE_ON_EXEC = 1  # MFD_CLOEXEC


class SharedBlock:
    """Bytes, zero to begin with. A forked process has them as they are, another attaches itself when it unpickles them.

    Attributes:
        bytes: uint8 (size,). Of a block that was attached they cannot be written.
        address: by which other processes of this machine find it, as long as the one that made it lives; None where
            the system has no anonymous files (other systems than Linux).
    """

    def __init__(self, content: np.ndarray, address: Address | None, tensor: torch.Tensor | None = None) -> None:
        self.bytes = content
        self.address = address
        self._tensor = tensor  # the same bytes, where torch is to share them

    def __reduce__(self) -> tuple[Callable[..., 'SharedBlock'], tuple[Any, ...]]:
        return (_of_tensor, (self._tensor,)) if self.address is None else (attach, (self.address,))


def new_block(size: int) -> SharedBlock:
    """A block of this process.

    An anonymous file: it has no name that could be left behind, and containers do not limit it as they do /dev/shm.

    Raises:
        OSError: the system refuses that much.
    """
    descriptor = _anonymous_file()
    if descriptor is None:
        return _of_tensor(torch.zeros(size, dtype=torch.uint8).share_memory_())
    try:
        os.ftruncate(descriptor, size)
        content = np.frombuffer(mmap.mmap(descriptor, size), np.uint8)
    except OSError:
        os.close(descriptor)
        raise
    block = SharedBlock(content, (os.getpid(), descriptor, size))
    weakref.finalize(block, os.close, descriptor)
    return block


def attach(address: Address) -> SharedBlock:
    """The block that another process of this machine has made.

    Raises:
        OSError: the process has ended, or the system keeps its files from this one.
    """
    process, number, size = address
    descriptor = os.open(f'/proc/{process}/fd/{number}', os.O_RDONLY)
    try:
        content = np.frombuffer(mmap.mmap(descriptor, size, access=mmap.ACCESS_READ), np.uint8)
    finally:
        os.close(descriptor)
    return SharedBlock(content, address)


def create_once_per_node(make: Callable[[], SharedBlock], ranks: Ranks) -> SharedBlock:
    """Creates a block on the first rank of each node and attaches it on the others. To be called by all ranks.

    Raises:
        UserError: what a rank's ``make`` raised, or what the system did; on every rank.
    """
    places = ranks.gather(_place(ranks.rank))
    first = places.index(places[ranks.rank])
    block, complaint = None, None
    if first == ranks.rank:
        try:
            block = make()
        except (UserError, OSError, MemoryError) as error:
            complaint = one_line(error)
    answers = ranks.gather((complaint, None if block is None else block.address))
    for complaint, _ in answers:
        if complaint is not None:
            raise UserError(complaint)
    address = answers[first][1]
    if block is not None or address is None:
        return block or make()
    try:
        return attach(address)
    except OSError:  # another user's, for example
        return make()


def _of_tensor(tensor: torch.Tensor) -> SharedBlock:
    return SharedBlock(tensor.numpy(), None, tensor)


def _anonymous_file() -> int | None:
    """A descriptor; None where there is no such thing."""
    try:
        return os.memfd_create('facd_basicsr')
    except AttributeError:
        pass
    try:  # conda's Python is built with an older C library than the system's
        descriptor = ctypes.CDLL(None).memfd_create(b'facd_basicsr', CLOSE_ON_EXEC)
    except (AttributeError, TypeError):  # macOS, Windows
        return None
    return None if descriptor < 0 else descriptor


def _place(rank: int) -> tuple[str, int] | int:
    """The same for processes that see each other; where that cannot be told, the rank."""
    try:
        return Path('/proc/sys/kernel/random/boot_id').read_text(), Path('/proc/self/ns/pid').stat().st_ino
    except OSError:
        return rank
