"""The folder of a run, ``experiments/NAME``: its options, log and newest checkpoint."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from facd_basicsr.errors import UserError
from facd_basicsr.options.parse import read_options
from facd_basicsr.runs.train_log import FINISHED, TrainLog, as_run, changes, parsed, read_logs

RUN_FOLDER_ACCEPTED = 'accepted: the folder that train.py made, experiments/NAME'
NEEDED = ('name', 'scale', 'model_type', 'network_g', 'datasets', 'path', 'train')
# The time and the command line that train.py puts before the option file that it keeps; BasicSR's says what they are.
OPTION_FILE_HEADER = re.compile(r'# (?:GENERATE TIME: )?([^\n]*)\n(?:# CMD:\n)?# ([^\n]*)\n')
NUMBERED = re.compile(r'net_g_(\d+)\.pth')  # beside it a user may have files of any name


@dataclass(frozen=True)
class RunFolder:
    """A run, read from its folder.

    Attributes:
        path: the folder.
        option_file: the complete option file that train.py kept there last, and its text.
        command: how train.py was called, from the file's first lines; empty where they do not say.
        file: the options as the file has them.
        opt: the options as they were run: as the log has them, with what the command line changed; the file's where no
            log has them.
        log: its log files together.
        checkpoint: of the student, the newest; None where there is none yet.
        iteration: at which the checkpoint was saved; None where the log does not say.
    """

    path: Path
    option_file: Path
    option_text: str
    command: str
    file: dict[str, Any]
    opt: dict[str, Any]
    log: TrainLog
    checkpoint: Path | None
    iteration: int | None

    @property
    def changes(self) -> list[tuple[str, Any, Any]]:
        """What the run changed in the file: (key, the file's value, the run's value), ``...`` for none."""
        return [] if self.opt is self.file else changes(self.file, self.opt)


def read_run_folder(folder: Path, where: str = 'RUN_DIR') -> RunFolder:
    """Reads options and log. Networks are not loaded.

    Args:
        folder: ``experiments/NAME``, wherever it is now.
        where: what names it, for messages.

    Raises:
        UserError: there is no such folder, it is not that of a run, or its command line changed options and the
            log that has them is not there.
    """
    if not folder.is_dir():
        raise UserError(f'{where}: no such folder: {folder}; {RUN_FOLDER_ACCEPTED}')
    option_file = _kept_last(_option_files(folder), where)
    if option_file is None:
        raise UserError(f'{where}: {folder} has no option file; {RUN_FOLDER_ACCEPTED}')
    file = read_options(str(option_file), [])
    text = option_file.read_text(encoding='utf-8')
    kept = OPTION_FILE_HEADER.match(text)
    command = kept[2] if kept else ''
    log = read_logs(sorted(folder.glob('train_*.log')))  # the time is in their names
    logged = _logged_options(log)
    if not logged and '--force_yml' in command:
        raise UserError(
            f'{where}: {folder} has no log with the options of its run, which --force_yml changed; accepted: with its '
            'train_*.log'
        )
    opt = as_run(file, logged) if logged else file
    for key in NEEDED:
        if key not in opt:
            raise UserError(f'{option_file}: {key}: missing; {RUN_FOLDER_ACCEPTED}')
    checkpoint, iteration = _newest(folder / 'models', log)
    return RunFolder(folder, option_file, text, command, file, opt, log, checkpoint, iteration)


def run_of(checkpoint: Path, where: str) -> RunFolder | None:
    """The run of ``experiments/NAME/models/FILE``; None for a file that lies elsewhere.

    Raises:
        UserError: as of :func:`read_run_folder`.
    """
    models = checkpoint.resolve().parent
    if models.name != 'models' or not _option_files(models.parent):
        return None
    return read_run_folder(models.parent, where)


def _option_files(folder: Path) -> list[Path]:
    return sorted((*folder.glob('*.yml'), *folder.glob('*.yaml')))


def _kept_last(option_files: Sequence[Path], where: str) -> Path | None:
    """The one whose header has the latest time: modification times change when a folder is copied."""
    if len(option_files) < 2:
        return option_files[0] if option_files else None
    times = {path: _kept_at(path) for path in option_files}
    known = {path: time for path, time in times.items() if time is not None}
    if not known:
        raise UserError(
            f'{where}: {option_files[0].parent} has {len(option_files)} option files, and none says in its first line '
            "when train.py kept it; accepted: the run's own alone"
        )
    return max(known, key=known.__getitem__)


def _kept_at(option_file: Path) -> datetime | None:
    kept = OPTION_FILE_HEADER.match(option_file.read_text(encoding='utf-8', errors='replace'))
    try:
        return datetime.strptime(kept[1], '%a %b %d %H:%M:%S %Y') if kept else None
    except ValueError:
        return None


def _logged_options(log: TrainLog) -> dict[str, Any]:
    """Those of the last session with complete options: a full disk may have cut them."""
    for session in reversed(log.sessions):
        logged = parsed(session.options)
        if logged.keys() >= set(NEEDED):
            return logged
    return {}


def _newest(models: Path, log: TrainLog) -> tuple[Path | None, int | None]:
    """The student's newest checkpoint. ``latest`` is that of the end; of a run that continues it is an older end's."""
    latest = models / 'net_g_latest.pth'
    finished = bool(log.sessions) and log.sessions[-1].end == FINISHED
    if finished and latest.is_file():
        return latest, log.iteration
    found = [(NUMBERED.fullmatch(path.name), path) for path in models.glob('net_g_*.pth')]
    numbered = {int(name[1]): path for name, path in found if name}
    if numbered:
        return numbered[max(numbered)], max(numbered)
    return (latest, None) if latest.is_file() else (None, None)


def psnr_of(checkpoint: Path) -> dict[str, float]:
    """{set: PSNR-Y in dB} of ``experiments/NAME/models/net_g_*.pth``, as far as the run's log determines it.

    Of ``net_g_latest`` and ``net_g_best`` it has their validation. Of a numbered checkpoint it has the iteration if it
    is a set's best so far. Empty for other files, where no metric of the run is ``calculate_psnr`` with
    ``test_y_channel``, and where the run cannot be read. Values that are not finite are left out.
    """
    try:
        run = run_of(checkpoint, 'CHECKPOINT')
    except UserError:
        return {}
    metric = None if run is None else _psnr_y(run.opt)
    if run is None or metric is None:
        return {}
    name = checkpoint.stem.removeprefix('net_g_')
    if name.isdecimal():
        bests = {set_name: figures.get(metric, (math.nan, None)) for set_name, figures in run.log.best.items()}
        found = {set_name: value for set_name, (value, iteration) in bests.items() if iteration == int(name)}
    else:
        saved = run.log.saved.get(name, {})
        found = {set_name: figures[metric] for set_name, figures in saved.items() if metric in figures}
    return {set_name: value for set_name, value in found.items() if math.isfinite(value)}


def _psnr_y(opt: Mapping[str, Any]) -> str | None:
    """The name of the metric that is PSNR-Y; the first if there are several."""
    metrics = (opt.get('val') or {}).get('metrics') or {}
    found = (name for name, opt in metrics.items() if opt.get('type') == 'calculate_psnr' and opt.get('test_y_channel'))
    return next(found, None)
