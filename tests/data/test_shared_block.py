import os
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest

from facd_basicsr.data import shared_block
from facd_basicsr.data.shared_block import SharedBlock, attach, create_once_per_node, new_block
from facd_basicsr.errors import UserError


def open_files() -> int:
    return len(list(Path('/proc/self/fd').iterdir()))


def test_a_block_is_zero_and_is_seen_as_it_is_written_under_its_address():
    block = new_block(10_000)
    assert block.bytes.shape == (10_000,) and block.bytes.dtype == np.uint8 and not block.bytes.any()
    other = attach(block.address)
    block.bytes[1234] = 56
    assert other.bytes[1234] == 56 and attach(other.address).bytes[1234] == 56
    with pytest.raises(ValueError, match='read-only'):
        other.bytes[0] = 1


def test_a_block_is_pickled_as_its_address():
    block = new_block(10_000_000)
    content = pickle.dumps(block)
    block.bytes[-1] = 7
    assert len(content) < 1000 and pickle.loads(content).bytes[-1] == 7


def test_a_block_is_gone_with_its_last_reference():
    before = open_files()
    block = new_block(5000)
    address = block.address
    assert open_files() > before
    del block
    assert open_files() == before
    with pytest.raises(OSError, match='No such file'):
        attach(address)


def test_without_anonymous_files_torch_shares_the_memory(monkeypatch):
    monkeypatch.setattr(shared_block, '_anonymous_file', lambda: None)
    block = new_block(5000)
    assert block.address is None and not block.bytes.any()
    other = pickle.loads(ForkingPickler.dumps(block))
    block.bytes[3] = 9
    assert other.bytes[3] == 9 and other.bytes.shape == (5000,)


def test_a_python_that_does_not_know_them_makes_anonymous_files_by_the_c_library(monkeypatch):
    monkeypatch.delattr(os, 'memfd_create')
    block = new_block(5000)
    block.bytes[3] = 9
    assert attach(block.address).bytes[3] == 9


class Group:
    """Ranks that are threads."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=20)
        self.values = [None] * size


class ThreadRanks:
    def __init__(self, rank: int, group: Group) -> None:
        self.rank, self._group = rank, group

    def gather(self, value: object) -> list:
        self._group.values[self.rank] = value
        self._group.barrier.wait()
        values = list(self._group.values)
        self._group.barrier.wait()
        return values


def on_ranks(size: int, make: Callable[[int], SharedBlock]) -> list:
    """What every rank gets, or the UserError that it raises."""
    group = Group(size)

    def work(rank: int) -> SharedBlock | UserError:
        try:
            return create_once_per_node(lambda: make(rank), ThreadRanks(rank, group))
        except UserError as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(work, range(size)))


@pytest.fixture
def two_machines(monkeypatch) -> None:
    """Ranks 0, 2 and 3 are on one, 1 and 4 on another."""
    monkeypatch.setattr(shared_block, '_place', lambda rank: ('one', 1) if rank in (0, 2, 3) else ('other', 1))


def marked(rank: int) -> SharedBlock:
    block = new_block(100)
    block.bytes[:] = rank + 1
    return block


def test_the_first_rank_of_each_machine_makes_the_block_of_all_of_them(two_machines):
    made = []

    def make(rank: int) -> SharedBlock:
        made.append(rank)
        return marked(rank)

    blocks = on_ranks(5, make)
    assert sorted(made) == [0, 1]
    assert [int(block.bytes[5]) for block in blocks] == [1, 2, 1, 1, 2]


@pytest.mark.parametrize('hidden', [True, False])
def test_a_rank_that_can_not_see_the_first_ones_block_makes_its_own(two_machines, monkeypatch, hidden):
    def refuse(address: object) -> None:
        raise PermissionError

    if hidden:
        monkeypatch.setattr(shared_block, 'attach', refuse)
    else:
        monkeypatch.setattr(shared_block, '_anonymous_file', lambda: None)
    assert [int(block.bytes[5]) for block in on_ranks(5, marked)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize('error', [UserError, OSError, MemoryError])
def test_what_one_rank_complains_of_ends_all_of_them(two_machines, error):
    def make(rank: int) -> SharedBlock:
        if rank == 1:
            raise error('it does not fit')
        return new_block(10)

    assert [str(answer) for answer in on_ranks(5, make)] == ['it does not fit'] * 5


def test_ranks_of_one_machine_and_container_find_that_they_are():
    assert shared_block._place(0) == shared_block._place(1) != 0
