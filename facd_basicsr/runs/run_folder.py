"""The folder of a run, ``experiments/NAME``, read back: options, metrics, sessions and newest checkpoint."""

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

from facd_basicsr.engine.logs import BEST, ERROR, FINISHED, METRICS_FILE, STOPPED, WARNING, read_metrics
from facd_basicsr.errors import UserError
from facd_basicsr.options.option_files import RUN, load_yaml
from facd_basicsr.options.parse import OPTIONS_FILE, read_options

RUN_FOLDER_ACCEPTED = 'accepted: the folder that train.py made, experiments/NAME'
NEEDED = ('name', 'scale', 'model_type', 'network_g', 'datasets', 'path', 'train')
NUMBERED = re.compile(r'net_g_(\d+)\.pth')  # beside it a user may have files of any name

Curve = dict[int, float]  # iteration: value


@dataclass(frozen=True)
class Event:
    """A line of ``metrics.jsonl`` with ``event``: what happened, and after which iteration."""

    time: datetime
    iteration: int
    event: str
    message: str


@dataclass
class Session:
    """One start of train.py: the first, or one that resumed.

    Attributes:
        began, ended: times of its start and of its last line in ``metrics.jsonl``.
        first, last: iterations that were done when it began, and at its last line.
        end: how it ended, in words; empty of one that still continues or was killed.
        facts: what ``options.yml`` says of it: ``command``, ``option_file``, ``versions``, ``machine`` and so on.
    """

    began: datetime
    ended: datetime
    first: int = 0
    last: int = 0
    end: str = ''
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Metrics:
    """What ``metrics.jsonl`` holds, all sessions together as if there had been one.

    Attributes:
        curves: by name every term of the loss, and the learning rate, ``lr``, of several groups of parameters ``lr_1``,
            ``lr_2`` ....
        validation: by set and metric.
        events: in the order of time.
        steps: (iteration, seconds of one from there to the next line), of neighboring lines.
    """

    curves: dict[str, Curve] = field(default_factory=dict)
    validation: dict[str, dict[str, Curve]] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    steps: list[tuple[int, float]] = field(default_factory=list)

    @property
    def seconds_per_iter(self) -> float | None:
        """The median between neighboring lines; None where there are too few."""
        return median(seconds for _, seconds in self.steps) if self.steps else None

    @property
    def warnings(self) -> list[Event]:
        """Warnings and errors."""
        return [event for event in self.events if event.event in (WARNING, ERROR)]


@dataclass(frozen=True)
class RunFolder:
    """A run, read from its folder.

    Attributes:
        path: the folder.
        opt: the options as they were run, complete with defaults.
        options_text: ``options.yml``.
        sessions: in the order of time; one at least.
        metrics: of the whole run.
        checkpoint: of the student, the newest; None where there is none yet.
        checkpoint_iteration: at which it was saved; None where nothing says so.
    """

    path: Path
    opt: dict[str, Any]
    options_text: str
    sessions: list[Session]
    metrics: Metrics
    checkpoint: Path | None
    checkpoint_iteration: int | None

    @property
    def iteration(self) -> int:
        """How far it has come."""
        return self.sessions[-1].last

    @property
    def duration(self) -> timedelta:
        """Of all sessions together, with their validation."""
        return sum((session.ended - session.began for session in self.sessions), timedelta())


def param_key_of(opt: Mapping[str, Any]) -> str:
    """The entry of a run's checkpoints with the weights that are validated: the moving average if there is one."""
    stages = [opt['train'], *opt['train'].get('stages', [])]  # where one has none, a reader takes the other entry
    return 'params_ema' if any(stage.get('ema_decay', 0) > 0 for stage in stages) else 'params'


def read_run_folder(folder: Path, where: str = 'RUN_DIR') -> RunFolder:
    """Reads options and metrics. Networks are not loaded.

    Args:
        folder: ``experiments/NAME``, wherever it is now.

    Raises:
        UserError: there is no such folder, or it is not that of a run.
    """
    if not folder.is_dir():
        raise UserError(f'{where}: no such folder: {folder}; {RUN_FOLDER_ACCEPTED}')
    path = folder / OPTIONS_FILE
    if not path.is_file():
        raise UserError(
            f'{where}: {folder} has no {OPTIONS_FILE}; {RUN_FOLDER_ACCEPTED}, of a version after 0.2.0 (train.py '
            '--auto_resume with the option file of an older run writes it)'
        )
    opt, text = read_options(str(path), []), path.read_text(encoding='utf-8')
    for key in NEEDED:
        if key not in opt:
            raise UserError(f'{path}: {key}: missing; accepted: the file as train.py wrote it')
    lines = list(read_metrics(folder / METRICS_FILE))
    sessions = _sessions(load_yaml(text, str(path)).get(RUN), lines, path)
    metrics = _metrics(lines, sessions)
    checkpoint, iteration = _newest(folder / 'models', sessions)
    return RunFolder(folder, opt, text, sessions, metrics, checkpoint, iteration)


def run_of(checkpoint: Path, where: str) -> RunFolder | None:
    """The run of ``experiments/NAME/models/FILE``; None for a file that lies elsewhere.

    Raises:
        UserError: as of :func:`read_run_folder`.
    """
    models = checkpoint.resolve().parent
    if models.name != 'models' or not (models.parent / OPTIONS_FILE).is_file():
        return None
    return read_run_folder(models.parent, where)


def _sessions(starts: Any, lines: list[dict[str, Any]], path: Path) -> list[Session]:
    try:
        sessions = [
            Session(began, began, start['iter'], start['iter'], facts=start)
            for start in starts
            for began in [datetime.fromisoformat(start['start'])]
        ]
        sessions[0]
    except (TypeError, KeyError, ValueError, IndexError) as error:
        raise UserError(f'{path}: {RUN}: does not say when the run started; accepted: as train.py wrote it') from error
    for line in lines:
        session = _session_of(line, sessions)
        session.ended, session.last = _time(line), max(session.last, line['iter'])
        if line.get('event') in (FINISHED, STOPPED, ERROR):
            session.end = line['message'] or line['event']
    return sessions


def _session_of(line: Mapping[str, Any], sessions: list[Session]) -> Session:
    return next((session for session in reversed(sessions) if session.began <= _time(line)), sessions[0])


def _time(line: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(line['timestamp'])


def _metrics(lines: list[dict[str, Any]], sessions: list[Session]) -> Metrics:
    result = Metrics()
    of_iterations = [line for line in lines if 'epoch' in line]
    for line in of_iterations:
        for name, value in line.items():
            if name not in ('iter', 'timestamp', 'epoch', 'time', 'data_time'):
                result.curves.setdefault(name, {})[line['iter']] = _number(value)
    for line in lines:
        if 'set' in line:
            curves = result.validation.setdefault(line['set'], {})
            curves.setdefault(line['metric'], {})[line['iter']] = _number(line['value'])
        elif 'event' in line:
            result.events.append(Event(_time(line), line['iter'], line['event'], line['message']))
    result.steps = [
        (earlier['iter'], (_time(later) - _time(earlier)).total_seconds() / (later['iter'] - earlier['iter']))
        for earlier, later in itertools.pairwise(of_iterations)
        if _session_of(earlier, sessions) is _session_of(later, sessions) and later['iter'] > earlier['iter']
    ]
    return result


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _newest(models: Path, sessions: list[Session]) -> tuple[Path | None, int | None]:
    """The student's newest checkpoint. ``latest`` is that of the end; of a run that continues it is an older end's."""
    latest = models / 'net_g_latest.pth'
    if sessions[-1].end == FINISHED and latest.is_file():
        return latest, sessions[-1].last
    found = [(NUMBERED.fullmatch(path.name), path) for path in models.glob('net_g_*.pth')]
    numbered = {int(name[1]): path for name, path in found if name}
    if numbered:
        return numbered[max(numbered)], max(numbered)
    return (latest, None) if latest.is_file() else (None, None)


def psnr_of(checkpoint: Path) -> dict[str, float]:
    """{set: PSNR-Y in dB} of ``experiments/NAME/models/net_g_*.pth``, by the run's validation at its iteration.

    Empty for other files, where no metric of the run is ``calculate_psnr`` with ``test_y_channel``, and where the run
    cannot be read. Values that are not finite are left out.
    """
    try:
        run = run_of(checkpoint, 'CHECKPOINT')
    except UserError:
        return {}
    if run is None:
        return {}
    name = checkpoint.stem.removeprefix('net_g_')
    event = {'latest': FINISHED, 'best': BEST}.get(name)
    saved_at = [happened.iteration for happened in run.metrics.events if happened.event == event]
    iteration = int(name) if name.isdecimal() else saved_at[-1] if saved_at else -1
    metrics = (run.opt['val'] or {}).get('metrics') or {}
    psnr_y = (key for key, opt in metrics.items() if opt['type'] == 'calculate_psnr' and opt['test_y_channel'])
    metric = next(psnr_y, '')  # the first, if there are several
    found = {set_name: curves.get(metric, {}).get(iteration) for set_name, curves in run.metrics.validation.items()}
    return {set_name: value for set_name, value in found.items() if value is not None and math.isfinite(value)}
