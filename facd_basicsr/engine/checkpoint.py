"""Checkpoints: their content, the order in which they are written, and which are kept."""

import errno
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facd_basicsr.data.loaders import ResumableSampler
from facd_basicsr.errors import UserError, reraise
from facd_basicsr.files.atomic import atomic_torch_save, atomic_write
from facd_basicsr.files.download import sha256_of
from facd_basicsr.models.safe_model import SafeModel
from facd_basicsr.runtime.processes import Ranks
from facd_basicsr.runtime.rng import rng_state

LATEST = 'latest'  # a file in training_states with the name of the state that was written last
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ROOM = 'there is room (logger.keep_last bounds the number of checkpoints)'
NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)  # by now


@dataclass
class Position:
    """Progress of a run.

    Attributes:
        iteration: iterations done.
        epoch: the current epoch.
        batches: its batches that are done, on each rank.
    """

    iteration: int = 0
    epoch: int = 0
    batches: int = 0


class Checkpoints:
    """Writes what a run resumes from: networks first, then the state that names them, then ``latest``.

    So an existing state has its networks, whenever the process is killed. All files are BasicSR's, with their
    names; the state has more entries. docs/reliability.md lists them.

    Args:
        opt: from :func:`facd_basicsr.options.parse_options`; ``logger.keep_last`` is the number of checkpoints that
            stay, all without it.
        ranks: the processes; the first one writes.
        sampler: of the training data.
    """

    def __init__(self, opt: dict[str, Any], ranks: Ranks, sampler: ResumableSampler) -> None:
        self._states = Path(opt['path']['training_states'])
        self._models = Path(opt['path']['models'])
        self._keep_last = opt['logger']['keep_last']
        self._ranks = ranks
        self._data = sampler.settings()

    def save(self, model: SafeModel, position: Position) -> None:
        """Saves networks and state. To be called by all ranks.

        Raises:
            OSError: of a full disk, for :func:`reraise_disk_full`; the checkpoints before this one are as they were.
        """
        random, pool = self._ranks.gather(rng_state()), model.pool_state()
        pools = {} if pool is None else {'pools': self._ranks.to_first(pool)}
        if self._ranks.rank != 0:
            return
        model.save(position.epoch, position.iteration)
        state = {
            'epoch': position.epoch,
            'iter': position.iteration,
            'batches': position.batches,
            'data': self._data,
            'random': random,
            'networks': {path.name: sha256_of(path) for path in self._models.glob(f'net_*_{position.iteration}.pth')},
            'saved': time.time(),
            **pools,
            **model.training_state(),
        }
        path = self._states / f'{position.iteration}.state'
        atomic_torch_save(state, path)
        atomic_write(self._states / LATEST, f'{path.name}\n'.encode())
        self.remove_old(position.iteration)

    def save_networks(self, model: SafeModel, position: Position, name: int | str) -> None:
        """Saves the networks alone, as ``net_*_NAME.pth``; -1 is ``latest`` as in BasicSR."""
        if self._ranks.rank == 0:
            model.save(position.epoch, name)

    def remove_old(self, iteration: int) -> None:
        """Removes all but the newest up to ``iteration``, the states first, so that none is left without its networks.

        States later than ``iteration`` belong to another continuation of the run, and stay.
        """
        if self._keep_last is None or self._ranks.rank != 0:
            return
        earlier = sorted((n for n in state_iterations(self._states) if n <= iteration), reverse=True)
        kept = set(earlier[: self._keep_last])
        for old in earlier[self._keep_last :]:
            (self._states / f'{old}.state').unlink()
        for path in self._models.glob('net_*.pth'):
            number = path.stem.rpartition('_')[2]
            if number.isdigit() and int(number) <= iteration and int(number) not in kept:
                path.unlink()


def reraise_disk_full(states: Path) -> AbstractContextManager[None]:
    """Turns the errors of a full disk, or of one that cannot be written, into one that names the newest checkpoint;
    others stay. ``states`` is the folder of the training states.

    Raises:
        UserError: the disk is full or cannot be written.
    """

    def translated(error: OSError) -> UserError | None:
        # the last is BasicSR's for an image of a validation, which does not say why
        if error.errno not in FULL + NOT_WRITABLE and 'Failed in writing images' not in str(error):
            return None
        latest = states / LATEST
        left = 'there is no checkpoint yet, and the same command starts over'
        if latest.is_file():
            name = latest.read_text(encoding='utf-8', errors='replace').strip()
            left = f'{name} and its networks are complete, and --auto_resume resumes from there'
        fixed = 'it can be written' if error.errno in NOT_WRITABLE else ROOM
        return UserError(f'{error.filename or states.parent}: {error.strerror or error}; {left} once {fixed}')

    return reraise(OSError, translated)


def state_iterations(folder: Path) -> list[int]:
    """The iterations whose ``<iteration>.state`` is in ``folder``."""
    return [int(path.stem) for path in folder.glob('*.state') if path.stem.isdigit()]
