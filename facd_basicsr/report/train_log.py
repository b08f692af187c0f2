"""What the log files of a training say, put together over its interruptions."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from statistics import median
from typing import Any

from facd_basicsr.report.logged_options import parsed

RECORD = re.compile(r'^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) ([A-Z]+): ', re.MULTILINE)
BEGIN = re.compile(r'Python \S+, torch ')  # engine/logs.py: versions()
MACHINE = 'Machine: '
RESUMED = re.compile(r'Resuming from .*: epoch \d+, iter (\d+)\.$')
ITERATION = re.compile(r'\[epoch: *\d+, iter: *([\d,]+), lr:\(([^)]*)\)\] (?:\[eta: .*?\(.*?\): .*?\)\] )?(.*)')
VALIDATION = re.compile(r'Validation (.*)')
METRIC = re.compile(r'\t # (\S+): (\S+)')
END = 'End of training.'
FINISHED = 'finished'
STOPPED = 'stopped after iteration'

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
        end: how it ended, in words; empty where the log does not say, of one that still goes on or was killed.
        validated: by set, the iteration of its last validation.
    """

    began: datetime
    ended: datetime
    versions: str
    machine: str = ''
    options: str = ''
    first: int = 0
    last: int = 0
    end: str = ''
    validated: dict[str, int] = field(default_factory=dict)


@dataclass
class TrainLog:
    """All sessions of a training, as if there had been one.

    Attributes:
        sessions: in the order of time.
        curves: by name what the lines of progress have, ``l_*``, ``alpha``, ``r_*`` ..., and the learning rate, ``lr``,
            of several groups of parameters ``lr_1``, ``lr_2`` ....
        validation: by set and metric.
        complaints: warnings and errors, each a time, a level and a message.
        seconds_per_iter: the median between neighbouring lines; None where there are too few.
    """

    sessions: list[Session] = field(default_factory=list)
    curves: dict[str, Curve] = field(default_factory=dict)
    validation: dict[str, dict[str, Curve]] = field(default_factory=dict)
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


def read_log(text: str) -> TrainLog:
    """The log of a training.

    What came after the state that a later session resumed from is left out: that was done again.

    Args:
        text: its log files, one after the other in the order of time. A last line without its end is not read.
    """
    log = TrainLog()
    lines: list[tuple[datetime, int]] = []
    for time, level, message in _records(text):
        if BEGIN.match(message):
            log.sessions.append(Session(time, time, message))
            lines.append((time, 0))  # no time between two lines is of two sessions
        if not log.sessions:
            continue
        session = log.sessions[-1]
        session.ended = time
        if level != 'INFO':
            log.complaints.append((time, level, message))
        if level == 'ERROR':
            session.end = ' '.join(dict.fromkeys(message.splitlines()[:: max(1, message.count('\n'))]))
        elif message.startswith(MACHINE):
            session.machine = message.removeprefix(MACHINE).rstrip('.')
        elif message.startswith('\n  ') and not session.options:
            session.options = message
        elif found := RESUMED.match(message):
            session.first = session.last = int(found[1])
            _forget_after(session.first, log)
        elif found := ITERATION.search(message):
            iteration = int(found[1].replace(',', ''))
            if session.first == session.last == 0:
                _forget_after(0, log)
            session.last, session.end = iteration, ''
            lines.append((time, iteration))
            for name, value in _values(found[2], found[3]):
                log.curves.setdefault(name, {})[iteration] = value
        elif message.startswith(END):
            session.last, session.end = _total(session), FINISHED
        elif found := VALIDATION.match(message):
            _add_validation(found[1], dict(METRIC.findall(message)), session, log)
        elif STOPPED in message:
            session.end = message
            session.last = int(message.partition(STOPPED)[2].split(',')[0])
    rates = [
        (later - earlier).total_seconds() / (iteration - before)
        for (earlier, before), (later, iteration) in pairwise(lines)
        if 0 < before < iteration
    ]
    log.seconds_per_iter = median(rates) if rates else None
    return log


def _records(text: str) -> Iterator[tuple[datetime, str, str]]:
    """Time, level and message of every record, without what a full disk cut short."""
    heads = list(RECORD.finditer(text.rpartition('\n')[0] + '\n'))
    ends = [head.start() for head in heads[1:]] + [text.rfind('\n')]
    for head, end in zip(heads, ends):
        time = datetime.strptime(head[1], '%Y-%m-%d %H:%M:%S,%f')
        yield time, head[2], text[head.end() : end].rstrip()


def _values(rates: str, terms: str) -> Iterator[tuple[str, float]]:
    groups = [float(rate) for rate in rates.split(',') if rate]
    for number, rate in enumerate(groups, start=1):
        yield 'lr' if len(groups) == 1 else f'lr_{number}', rate
    words = terms.split()
    for name, value in zip(words[::2], words[1::2]):
        yield name.removesuffix(':'), float(value)


def _add_validation(name: str, metrics: dict[str, str], session: Session, log: TrainLog) -> None:
    """A validation does not name its iteration: it is the next multiple of ``val.val_freq``, the last one of all after
    the end of training."""
    if session.end == FINISHED:
        iteration = session.last
    else:
        frequency = _whole(parsed(session.options).get('val', {}).get('val_freq', 1))
        following = session.validated[name] // frequency + 1 if name in session.validated else 1
        iteration = max(-(-session.last // frequency), following) * frequency
    session.validated[name] = iteration
    curves = log.validation.setdefault(name, {})
    for metric, value in metrics.items():
        curves.setdefault(metric, {})[iteration] = float(value)


def _forget_after(iteration: int, log: TrainLog) -> None:
    for curves in (log.curves, *log.validation.values()):
        for curve in curves.values():
            for later in [step for step in curve if step > iteration]:
                del curve[later]


def _total(session: Session) -> int:
    return _whole(parsed(session.options).get('train', {}).get('total_iter', session.last))


def _whole(value: Any) -> int:
    return int(float(value))
