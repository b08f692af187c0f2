"""The states of Python's, NumPy's and torch's random number generators.

As numbers, which processes can send each other and ``weights_only`` loading accepts; tensors cannot be sent as objects.
"""

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch


def rng_state() -> dict[str, Any]:
    """The generators' states: Python's, NumPy's, torch's, and that of this process's GPU if it has used one."""
    name, keys, *rest = cast('tuple[str, np.ndarray, int, int, float]', np.random.get_state())
    state: dict[str, Any] = {'python': random.getstate(), 'numpy': (name, keys.tolist(), *rest)}
    state['torch'] = torch.get_rng_state().tolist()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state['cuda'] = torch.cuda.get_rng_state().tolist()
    return state


def restore_rng_state(state: dict[str, Any]) -> None:
    """Sets the generators to what :func:`rng_state` gave."""
    random.setstate(state['python'])
    name, keys, *rest = state['numpy']
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
    torch.set_rng_state(torch.tensor(state['torch'], dtype=torch.uint8))
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.tensor(state['cuda'], dtype=torch.uint8))


def seed_rng(seed: int) -> None:
    """Seeds Python's, NumPy's and torch's generators, and that of this process's GPU if it has used one."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would start CUDA's too, in every worker
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)


def seed_for(seed: int, purpose: str) -> int:
    """A seed for ``purpose`` alone, of a sample's, by which its crop is drawn."""
    return int(np.random.SeedSequence([seed, zlib.crc32(purpose.encode())]).generate_state(1, np.uint64)[0])


@contextmanager
def preserve_rng_state() -> Iterator[None]:
    """Leaves the generators as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def seeded_rng(seed: int) -> Iterator[None]:
    """What is drawn inside depends on ``seed`` alone; leaves the generators as they were."""
    with preserve_rng_state():
        seed_rng(seed)
        yield
