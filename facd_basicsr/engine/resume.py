"""Finding and reading a training state."""

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from basicsr.utils.misc import check_resume

from facd_basicsr.errors import UserError

torch.serialization.add_safe_globals([Counter])  # BasicSR's schedulers keep their milestones in one


def load_resume_state(opt: dict[str, Any]) -> dict[str, Any] | None:
    """The state to resume from, or None for a fresh start. Points ``opt['path']`` at its networks.

    BasicSR's looks below the working directory whatever the experiment's folder, and needs CUDA.

    Args:
        opt: from :func:`facd_basicsr.options.parse_options`; ``auto_resume`` takes the newest state of the
            experiment's own folder, else ``path.resume_state`` names one.

    Raises:
        UserError: the state can't be read, or a network saved with it is missing.
    """
    if opt['auto_resume']:
        source, path = '--auto_resume', newest_state(Path(opt['path']['training_states']))
    else:
        source, path = 'path.resume_state', opt['path'].get('resume_state')
    if path is None:
        return None
    opt['path']['resume_state'] = str(path)
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
        iteration = state['iter']
    except (OSError, EOFError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise UserError(
            f'{source}: {path} is no readable training state; accepted: a whole .state file (remove a damaged one)'
        ) from error
    check_resume(opt, iteration)
    for key, value in opt['path'].items():
        if key.startswith('pretrain_network') and value is not None and not Path(value).is_file():
            raise UserError(f'{source}: {path} needs {value}, which is missing')
    return state


def newest_state(folder: Path) -> Path | None:
    """The ``<iteration>.state`` with the highest iteration in ``folder``, or None."""
    states = [path for path in folder.glob('*.state') if path.stem.isdigit()]
    return max(states, key=lambda path: int(path.stem), default=None)
