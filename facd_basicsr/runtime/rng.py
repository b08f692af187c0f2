"""The states of Python's, NumPy's and torch's random number generators.

As numbers, which processes can send each other and ``weights_only`` loading accepts; tensors cannot be sent as objects.
"""

import random
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
