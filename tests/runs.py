"""What the tests of whole training runs share."""

import socket
import subprocess
from pathlib import Path

import torch
from conftest import run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def torchrun(*command: str | Path, cwd: Path, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Runs an entry point on several processes of this machine, as a user would."""
    launcher = ('-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}')
    return run(*launcher, *command, '--launcher', 'pytorch', cwd=cwd)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


def result(root: Path, iteration: int, name: str = 'tiny') -> dict:
    """All that a run has left at an iteration: the state, with the digests of its networks, but for the time."""
    state = torch.load(root / f'experiments/{name}/training_states/{iteration}.state', weights_only=True)
    del state['saved']
    return state


def scalars(root: Path, name: str = 'tiny') -> dict[str, dict[int, float]]:
    """What TensorBoard shows, by tag and iteration, file by file: of one second they may be read in any order."""
    found: dict[str, dict[int, float]] = {}
    for path in sorted((root / 'tb_logger' / name).iterdir(), key=lambda path: path.stat().st_mtime_ns):
        events = EventAccumulator(str(path))
        events.Reload()
        for tag in events.Tags()['scalars']:
            found.setdefault(tag, {}).update({event.step: event.value for event in events.Scalars(tag)})
    return found


def assert_same(found: object, expected: object, where: str = '') -> None:
    """Equality to the last bit, naming the first entry that differs."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_same(found[key], expected[key], f'{where}.{key}')
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for index, (one, other) in enumerate(zip(found, expected)):
            assert_same(one, other, f'{where}[{index}]')
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    else:
        assert found == expected, where
