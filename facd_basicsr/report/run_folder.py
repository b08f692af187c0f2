"""What a training has left in ``experiments/NAME``."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facd_basicsr.errors import UserError
from facd_basicsr.options import load_yaml
from facd_basicsr.report.logged_options import as_run, changes, parsed
from facd_basicsr.report.train_log import FINISHED, TrainLog, read_log

ACCEPTED = 'accepted: the folder that train.py made, experiments/NAME'
NEEDED = ('name', 'scale', 'model_type', 'network_g', 'datasets', 'path', 'train')


@dataclass(frozen=True)
class RunFolder:
    """A training, as its folder shows it.

    Attributes:
        path: the folder.
        option_file: the complete option file that train.py kept there, and its text.
        command: how train.py was called, from the file's first lines; empty where they do not say.
        opt: the options as they were run.
        changes: what the command line changed in the file: (key, the file's value, the run's value), ``...`` for none.
        log: its log files together.
        checkpoint: of the student, the newest; None where there is none yet.
        iteration: at which the checkpoint was saved; None where the log does not say.
    """

    path: Path
    option_file: Path
    option_text: str
    command: str
    opt: dict[str, Any]
    changes: list[tuple[str, Any, Any]]
    log: TrainLog
    checkpoint: Path | None
    iteration: int | None


def read_run_folder(folder: Path) -> RunFolder:
    """Reads options and log. Networks are not loaded.

    Raises:
        UserError: there is no such folder, or it is not that of a training.
    """
    if not folder.is_dir():
        raise UserError(f'RUN_DIR: no such folder: {folder}; {ACCEPTED}')
    option_files = sorted((*folder.glob('*.yml'), *folder.glob('*.yaml')), key=lambda path: path.stat().st_mtime_ns)
    logs = sorted(folder.glob('train_*.log'))  # the time is in their names
    for found, what in ((logs, 'train_*.log'), (option_files, 'option file')):
        if not found:
            raise UserError(f'RUN_DIR: {folder} has no {what}; {ACCEPTED}')
    log = read_log('\n'.join(path.read_text(encoding='utf-8', errors='replace') for path in logs))
    option_file = option_files[-1]
    try:
        text = option_file.read_text(encoding='utf-8')
    except ValueError as error:
        raise UserError(f'{option_file}: not text; {ACCEPTED}') from error
    file = load_yaml(text, str(option_file))
    if not isinstance(file, dict):
        raise UserError(f'{option_file}: holds no option keys; {ACCEPTED}')
    logged = parsed(log.sessions[-1].options) if log.sessions else {}
    opt = as_run(file, logged) if logged else file
    for key in NEEDED:
        if key not in opt:
            raise UserError(f'{option_file}: {key}: missing; {ACCEPTED}')
    checkpoint, iteration = _newest(folder / 'models', log)
    called = re.match(r'# [^\n]*\n# ([^\n]*)\n', text)
    return RunFolder(
        folder,
        option_file,
        text,
        called[1] if called else '',
        opt,
        changes(file, opt) if logged else [],
        log,
        checkpoint,
        iteration,
    )


def _newest(models: Path, log: TrainLog) -> tuple[Path | None, int | None]:
    """The student's newest checkpoint. ``latest`` is that of the end; of a run that goes on it is an older end's."""
    latest = models / 'net_g_latest.pth'
    finished = bool(log.sessions) and log.sessions[-1].end == FINISHED
    if finished and latest.is_file():
        return latest, log.iteration
    numbered = {int(path.stem.rpartition('_')[2]): path for path in models.glob('net_g_*[0-9].pth')}
    if numbered:
        return numbered[max(numbered)], max(numbered)
    return (latest, None) if latest.is_file() else (None, None)
