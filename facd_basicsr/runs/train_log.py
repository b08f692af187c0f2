"""The log files of a run, merged over its sessions."""

import ast
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

from facd_basicsr.options.schema import DERIVED

LINE = re.compile(r'^( +)([^ :\[][^:]*):(\[$| ?)(.*)$')
# What facd_basicsr.options.parse makes of the run's folder.
LOGGED_FOLDERS = {'experiments_root', 'log', 'models', 'training_states', 'visualization'}


def parsed(text: str) -> dict[str, Any]:
    """What BasicSR's ``dict2str`` has written: nested dicts, whose values are left as text.

    Other lines are skipped: a text with line breaks loses all but its first line. Of a text
    that ends within a block there is nothing.
    """
    result: dict[str, Any] = {}
    blocks = [result]
    for line in text.split('\n'):
        indent = len(line) - len(line.lstrip(' '))
        depth = indent // 2
        if line.strip() == ']' and depth == len(blocks) - 1:
            blocks.pop()
            continue
        found = LINE.match(line)
        if not found or depth != len(blocks):
            continue
        _, key, kind, value = found.groups()
        if kind == '[':
            blocks[-1][key] = {}
            blocks.append(blocks[-1][key])
        else:
            blocks[-1][key] = value
    return result if len(blocks) == 1 else {}


def as_run(file: dict[str, Any], logged: dict[str, Any]) -> dict[str, Any]:
    """The options of a run, from its option file and its log.

    Args:
        file: what the file holds.
        logged: from :func:`parsed`; what the file has too and is written alike has the file's type, other values are
            read as Python writes them.
    """
    result = {}
    for key, value in logged.items():
        own = file.get(key, ...)
        if isinstance(value, dict):
            result[key] = as_run(own if isinstance(own, dict) else {}, value)
        else:
            result[key] = own if str(own) == value and own is not ... else _literal(value)
    return result


def changes(file: dict[str, Any], opt: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """What the command line changed: (key, the file's value or ``...``, the run's value or ``...``).

    Args:
        file: what the file holds.
        opt: from :func:`as_run`.
    """
    ours, theirs = dict(_leaves(_without_filled_in(opt))), dict(_leaves(file))
    keys = [*ours, *(key for key in theirs if key not in ours)]
    found = [('.'.join(key), theirs.get(key, ...), ours.get(key, ...)) for key in keys]
    return [change for change in found if change[1] != change[2]]


def _without_filled_in(opt: dict[str, Any]) -> dict[str, Any]:
    """Without what no option file says."""
    result = {key: value for key, value in opt.items() if key not in DERIVED or key == 'scale'}
    result['path'] = {key: value for key, value in opt.get('path', {}).items() if key not in LOGGED_FOLDERS}
    result['datasets'] = {
        name: {key: value for key, value in block.items() if key not in DERIVED}
        for name, block in opt.get('datasets', {}).items()
    }
    return result


def _leaves(opt: dict[str, Any], where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in opt.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*where, str(key)))
        else:
            yield (*where, str(key)), value


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


LOG_RECORD = re.compile(r'^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) ([A-Z]+): ', re.MULTILINE)
FINISHED = 'finished'

Curve = dict[int, float]  # iteration: value


@dataclass
class Session:
    """One start of train.py: the first, or one that resumed.

    Attributes:
        began, ended: times of its first and last line.
        versions: of what a result depends on.
        machine: the GPU or processor; empty in logs of earlier versions of this package.
        options: the option dict as it is logged, with what the command line changed.
        first, last: iterations that were done when it began, and at its last line that says so.
        end: how it ended, in words; empty where the log does not say, of one that still continues or was killed.
    """

    began: datetime
    ended: datetime
    versions: str
    machine: str = ''
    options: str = ''
    first: int = 0
    last: int = 0
    end: str = ''


@dataclass
class TrainLog:
    """All sessions of a run, as if there had been one.

    Attributes:
        sessions: in the order of time.
        curves: by name what the lines of progress have, ``l_*``, ``alpha``, ``r_*`` ..., and the learning rate, ``lr``,
            of several groups of parameters ``lr_1``, ``lr_2`` ....
        validation: by set and metric.
        saved: of the networks saved last as ``latest`` and as ``best``, the metrics of their validation, by set and
            metric; those that are certain.
        best: by set and metric, the best value at the last validation, and its iteration.
        complaints: warnings and errors, each a time, a level and a message.
        seconds_per_iter: the median between neighboring lines; None where there are too few.
    """

    sessions: list[Session] = field(default_factory=list)
    curves: dict[str, Curve] = field(default_factory=dict)
    validation: dict[str, dict[str, Curve]] = field(default_factory=dict)
    saved: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    best: dict[str, dict[str, tuple[float, int]]] = field(default_factory=dict)
    complaints: list[tuple[datetime, str, str]] = field(default_factory=list)
    seconds_per_iter: float | None = None

    @property
    def duration(self) -> timedelta:
        """Of all sessions together, with their set-up and validation."""
        return sum((session.ended - session.began for session in self.sessions), timedelta())

    @property
    def iteration(self) -> int:
        """How far it has come."""
        return self.sessions[-1].last if self.sessions else 0


def read_logs(paths: Sequence[Path]) -> TrainLog:
    """As :func:`read_log`, of files in the order of time. Of each, a last line without its end is not read."""
    texts = (path.read_text(encoding='utf-8', errors='replace') for path in paths)
    return read_log(''.join(text[: text.rfind('\n') + 1] for text in texts))


def read_log(text: str) -> TrainLog:
    """The log of a run.

    What came after the state that a later session resumed from is left out: that was done again.

    Args:
        text: its log files, one after the other in the order of time. A last line without its end is not read.
    """
    reader = _Reader()
    for time, level, message in _records(text):
        reader.read(time, level, message)
    reader.log.seconds_per_iter = median(reader.rates) if reader.rates else None
    return reader.log


def _records(text: str) -> Iterator[tuple[datetime, str, str]]:
    """Time, level and message of every record, without what a full disk cut short."""
    heads = list(LOG_RECORD.finditer(text.rpartition('\n')[0] + '\n'))
    ends = [head.start() for head in heads[1:]] + [text.rfind('\n')]
    for head, end in zip(heads, ends):
        time = datetime.strptime(head[1], '%Y-%m-%d %H:%M:%S,%f')
        yield time, head[2], text[head.end() : end].rstrip()


class _Reader:
    """Puts a log together, record by record."""

    def __init__(self) -> None:
        self.log = TrainLog()
        self.rates: list[float] = []  # seconds an iteration, between neighboring lines of a session
        self._taken_up = False  # whether the session has come to where it begins
        self._validated: dict[str, int] = {}  # by set, the iteration of the session's last validation
        self._line: tuple[datetime, int] | None = None  # of progress, the session's last
        self._in_a_row: dict[str, dict[str, float]] = {}  # by set and metric, validations with nothing between them

    def read(self, time: datetime, level: str, message: str) -> None:
        self._keep_figures(message)
        if VERSIONS.match(message):
            self.log.sessions.append(Session(time, time, message))
            self._taken_up, self._validated, self._line = False, {}, None
        if not self.log.sessions:
            return
        self._session.ended = time
        if level != 'INFO':
            self.log.complaints.append((time, level, message))
        if level == 'ERROR':  # a traceback's last line is what went wrong
            self._session.end = ' '.join(dict.fromkeys(message.splitlines()[:: max(1, message.count('\n'))]))
        for pattern, take in TAKEN:
            found = pattern.match(message)
            if found:
                take(self, found)

    def _keep_figures(self, message: str) -> None:
        """The loop validates right after it has saved the networks as ``latest``, and right before as ``best``."""
        found = VALIDATION.match(message)
        if found:
            metrics = METRIC_LINE.findall(message)
            self._in_a_row[found[1]] = {metric: float(value) for metric, value, _, _ in metrics}
            self.log.best[found[1]] = {metric: (float(best), int(at)) for metric, _, best, at in metrics if best}
            return
        if message.startswith(SAVED_BEST):
            self.log.saved['best'] = self._in_a_row
        self._in_a_row = {}
        if message.startswith(SAVED_LATEST):
            self.log.saved['latest'] = self._in_a_row  # which the validations that follow fill

    @property
    def _session(self) -> Session:
        return self.log.sessions[-1]

    def _machine(self, found: re.Match) -> None:
        self._session.machine = found[1]

    def _options(self, found: re.Match) -> None:
        self._session.options = self._session.options or found[0]

    def _resumed(self, found: re.Match) -> None:
        self._session.first = self._session.last = int(found[1])
        self._take_up()

    def _progress(self, found: re.Match) -> None:
        self._take_up()
        iteration, time = int(found[1].replace(',', '')), self._session.ended
        self._session.last, self._session.end = iteration, ''
        if self._line is not None and self._line[1] < iteration:
            self.rates.append((time - self._line[0]).total_seconds() / (iteration - self._line[1]))
        self._line = time, iteration
        rates = [rate for rate in found[2].split(',') if rate]
        names = ['lr'] if len(rates) == 1 else [f'lr_{number}' for number in range(1, len(rates) + 1)]
        for name, value in [*zip(names, rates), *TERM.findall(found[3])]:
            self.log.curves.setdefault(name, {})[iteration] = float(value)

    def _end(self, found: re.Match) -> None:
        total = _block(self._session, 'train').get('total_iter', self._session.last)
        self._session.last, self._session.end = int(total), FINISHED

    def _stopped(self, found: re.Match) -> None:
        self._session.last, self._session.end = int(found[1]), found[0]

    def _validation(self, found: re.Match) -> None:
        """A validation does not name its iteration: it is the next multiple of ``val.val_freq``, that of the end of
        training the last one."""
        self._take_up()
        name, session = found[1], self._session
        iteration = session.last
        if session.end != FINISHED:
            frequency = int(_block(session, 'val').get('val_freq', 1))
            following = self._validated[name] // frequency + 1 if name in self._validated else 1
            iteration = max(-(-session.last // frequency), following) * frequency
        self._validated[name] = iteration
        curves = self.log.validation.setdefault(name, {})
        for metric, value, _, _ in METRIC_LINE.findall(found.string):
            curves.setdefault(metric, {})[iteration] = float(value)

    def _take_up(self) -> None:
        """Once, where a session begins, forgets what is later than that: it will be done again."""
        if self._taken_up:
            return
        self._taken_up = True
        for curves in (self.log.curves, *self.log.validation.values()):
            for curve in curves.values():
                for later in [step for step in curve if step > self._session.first]:
                    del curve[later]


def _block(session: Session, name: str) -> dict[str, Any]:
    block = parsed(session.options).get(name)
    return block if isinstance(block, dict) else {}


VERSIONS = re.compile(r'Python \S+, torch ')  # engine/logs.py
# As they are formatted: what a full disk cut, and the next record continues with, is none of them
TERM = re.compile(r'(\S+): (-?\d\.\d{4}e[-+]\d{2,3}|nan|-?inf)(?!\S)')
FIGURE = r'-?\d+\.\d{4}|nan|-?inf'
VALIDATION = re.compile(r'Validation (.*)')
METRIC_LINE = re.compile(rf'\t # (.+): ({FIGURE})(?:\tBest: ({FIGURE}) @ (\d+) iter)?$', re.MULTILINE)
SAVED_LATEST, SAVED_BEST = 'Save the latest model.', 'Saving the best models:'  # engine/loop.py
# What train.py and BasicSR's MessageLogger and SRModel write, and who takes it.
TAKEN: tuple[tuple[re.Pattern, Callable[[_Reader, re.Match], None]], ...] = (
    (re.compile(r'Machine: (.*)\.'), _Reader._machine),
    (re.compile(r'\n  .*', re.DOTALL), _Reader._options),
    (re.compile(r'Resuming from .*: epoch \d+, iter (\d+)\.$'), _Reader._resumed),
    (
        re.compile(r'\[.*\[epoch: *\d+, iter: *([\d,]+), lr:\(([-+.e,\d]*)\)\] (?:\[eta: .*?\(.*?\): .*?\)\] )?(.*)'),
        _Reader._progress,
    ),
    (re.compile(r'End of training\.'), _Reader._end),
    (re.compile(r'.*: stopped after iteration (\d+)'), _Reader._stopped),
    (VALIDATION, _Reader._validation),
)
