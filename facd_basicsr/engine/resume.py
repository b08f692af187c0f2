"""Finds an intact training state and resumes from it."""

import pickle
import struct
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from facd_basicsr.data.loaders import ResumableSampler
from facd_basicsr.engine.checkpoint import LATEST, Position, state_iterations
from facd_basicsr.errors import UserError, one_line
from facd_basicsr.files.atomic import verify_checksums
from facd_basicsr.files.download import sha256_of
from facd_basicsr.runtime.processes import Ranks
from facd_basicsr.runtime.rng import restore_rng_state

torch.serialization.add_safe_globals([Counter])  # BasicSR's schedulers keep their milestones in one

UNREADABLE_STATE = (
    *(OSError, EOFError, RuntimeError, KeyError, TypeError, ValueError, NotImplementedError, struct.error, zlib.error),
    *(pickle.UnpicklingError, zipfile.BadZipFile),
)


def load_resume_state(opt: dict[str, Any], ranks: Ranks, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """The state to resume from, or None for a fresh start. Points ``opt['path']['resume_state']`` at it.

    BasicSR's looks below the working directory whatever the experiment's folder, needs CUDA, and starts over when it
    finds nothing.

    Args:
        opt: from :func:`facd_basicsr.options.parse_options`; ``auto_resume`` takes the newest intact state of the
            experiment's own folder, else ``path.resume_state`` names one.
        warn: called for each damaged state that is skipped.

    Raises:
        UserError: the state that is named is damaged, or none of the existing states is intact, or the experiment
            has been trained and its states are gone.
    """
    source, path, state = '--auto_resume', None, None
    if opt['auto_resume']:
        if ranks.rank == 0:
            path, state = _newest_intact(opt, warn)
        path = ranks.from_first(path)
    if path is None:  # with --auto_resume: no own state yet, so it starts where the option file says
        source, path = 'path.resume_state', _named(opt['path']['resume_state'])
    if path is None:
        return None
    try:
        state = state or read_state(path, Path(opt['path']['models']))  # rank 0 may have read it in choosing
    except DamagedStateError as error:
        raise UserError(
            f'{source}: {path} {error}; accepted: an intact .state file next to its networks (--auto_resume finds the '
            'newest)'
        ) from error
    opt['path']['resume_state'] = str(path)
    return state


class DamagedStateError(Exception):
    """A state or one of its networks cannot be used; the message says why."""


def read_state(path: Path, models: Path) -> dict[str, Any]:
    """Reads a training state, after comparing every byte of it and of its networks in ``models`` with their checksums.

    Raises:
        DamagedStateError: it or a network is missing, cut short or altered, or carries code.
    """
    try:
        verify_checksums(path)
        state = torch.load(path, map_location='cpu', weights_only=True)
        iteration, *_ = (state[key] for key in ('iter', 'epoch', 'optimizers', 'schedulers'))
        networks = state.get('networks', {})
    except UNREADABLE_STATE as error:
        reason = one_line(error, 100)
        raise DamagedStateError(f'is no readable training state ({reason})') from error
    if not networks:  # by BasicSR, which does not say which networks there are
        networks = dict.fromkeys((file.name for file in models.glob(f'net_*_{iteration}.pth')), None)
        networks.setdefault(f'net_g_{iteration}.pth', None)
    for name, digest in networks.items():
        file = models / name
        if not file.is_file():
            raise DamagedStateError(f'needs {file}, which is missing')
        if digest is not None and sha256_of(file) != digest:
            raise DamagedStateError(f'needs {file}, which is not what was saved with it')
    return state


def _newest_intact(opt: dict[str, Any], warn: Callable[[str], None]) -> tuple[Path | None, dict[str, Any] | None]:
    """The newest intact state's file and content; (None, None) if the run has saved none yet."""
    folder, models = Path(opt['path']['training_states']), Path(opt['path']['models'])
    damaged = []
    for path in newest_first(folder):
        try:
            return path, read_state(path, models)
        except DamagedStateError as error:
            damaged.append(path)
            warn(f'--auto_resume: {path} {error}; skipped.')
    if damaged:
        raise UserError(
            f'--auto_resume: none of the {len(damaged)} states in {folder} is intact; accepted: the same command '
            'without --auto_resume, which moves the experiment aside and starts over'
        )
    if list(models.glob('net_*_latest.pth')) or (folder / LATEST).is_file():
        raise UserError(
            f'--auto_resume: {models} has the networks of an earlier run, but {folder} no state to resume from; '
            'accepted: the same command without --auto_resume, which moves the experiment aside and starts over'
        )
    return None, None


def newest_first(folder: Path) -> Iterator[Path]:
    """The ``<iteration>.state`` files of a folder, the one written last first.

    That is the one which ``latest`` names, unless the process was killed between the two files; after it go those with
    the highest iterations. The highest may be older, left by an abandoned continuation.
    """
    ordered = [folder / f'{iteration}.state' for iteration in sorted(state_iterations(folder), reverse=True)]
    latest = folder / LATEST
    if latest.is_file():
        named = folder / latest.read_text(encoding='utf-8', errors='replace').strip()
        if named in ordered:
            written = latest.stat().st_mtime_ns
            later = [path for path in ordered[: ordered.index(named)] if path.stat().st_mtime_ns > written]
            ordered = [*later, named, *(path for path in ordered if path != named and path not in later)]
    yield from ordered


def _named(value: str | None) -> Path | None:
    """``path.resume_state``, which may be a file ``latest``."""
    if value is None:
        return None
    path = Path(value)
    return path.with_name(path.read_text(encoding='utf-8', errors='replace').strip()) if path.name == LATEST else path


def resumed_position(
    state: dict[str, Any], sampler: ResumableSampler, begins: bool = False
) -> tuple[Position, list[str]]:
    """Where a run resumes, and in which respects it will differ from an uninterrupted one. A stage that ``begins`` with
    the state has the data from the next epoch on."""
    if begins:
        return Position(state['iter'], state['epoch'] + 1), []
    position = Position(state['iter'], state['epoch'])
    then, now = state.get('data'), sampler.settings()
    if then is None:
        return position, ['the state does not say where in the epoch it was, which is started again']
    differences = [
        f'{name} was {then.get(name)} and is {value}' for name, value in now.items() if then.get(name) != value
    ]
    if then['samples'] == now['samples']:
        done = state['batches'] * then['batch_size'] * then['world_size']
        position.batches = min(done // (now['batch_size'] * now['world_size']), sampler.batches)
    return position, differences


def resume_rng(state: dict[str, Any], ranks: Ranks) -> None:
    """Restores this rank's generators, if the state has them and as many ranks as there are now."""
    random = state.get('random', [])
    if len(random) == ranks.size:
        restore_rng_state(random[ranks.rank])


def describe_resume(state: dict[str, Any], path: str, position: Position) -> str:
    """What is resumed, in a line."""
    saved = f' (saved {time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(state["saved"]))})' if 'saved' in state else ''
    return f'Resuming from {path}{saved}: epoch {position.epoch}, iter {position.iteration}.'
