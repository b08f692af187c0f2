"""Console, log file, ``metrics.jsonl`` and TensorBoard, without a half-written folder when the set-up fails."""

import contextlib
import json
import logging
import logging.handlers
import math
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from basicsr.utils import get_root_logger, get_time_str, init_wandb_logger

from facd_basicsr.engine.checkpoint import Position
from facd_basicsr.errors import PeerFailedError, Stopped, UserError, one_line
from facd_basicsr.files.atomic import atomic_write

FORMAT = '%(asctime)s %(levelname)s: %(message)s'


Log = TypeVar('Log', bound='DeferredLog')


class _File(logging.FileHandler):
    """Ends the run when the disk is full, where ``logging`` prints a traceback for every line."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's name
        raise


class DeferredLog:
    """BasicSR's logger, on the console at once and in a file from :meth:`write_to` on, with all earlier lines.

    BasicSR opens its log file first, and so has moved the previous experiment aside before it notices that the
    teacher does not load. Here folders are made when networks and data are known to be good.

    Use as a context manager; the file is closed at its end, with the traceback of what ended it. Only rank 0 logs.
    """

    def __init__(self, rank: int, console: bool = True) -> None:
        self.logger = get_root_logger()
        self._rank = rank
        self._console_level = logging.NOTSET if console else logging.CRITICAL
        self._held = logging.handlers.MemoryHandler(capacity=100_000, flushLevel=logging.CRITICAL + 1)
        self._file: logging.FileHandler | None = None
        self._handlers: list[logging.Handler] = [self._held]
        self._levels: dict[logging.Handler, int] = {}  # of the handlers that were there, to be restored

    def __enter__(self: Log) -> Log:
        if self._rank == 0:
            self.logger.setLevel(logging.INFO)
        self._levels = {handler: handler.level for handler in self.logger.handlers}
        for handler in self._levels:
            handler.setLevel(self._console_level)
        self.logger.addHandler(self._held)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, (Exception, Stopped)):
            known = (PeerFailedError, Stopped, UserError)
            with contextlib.suppress(OSError):  # the disk may be full
                self._write_last(error, None if isinstance(error, known) else traceback)
        for handler, level in self._levels.items():
            handler.setLevel(level)
        for handler in self._handlers:
            self.logger.removeHandler(handler)
            with contextlib.suppress(OSError):
                handler.close()

    def _write_last(self, error: BaseException, traceback: TracebackType | None) -> None:
        """To the file alone: the entry point writes it to the console."""
        if self._file is None:
            return
        message = 'The run has crashed.' if traceback else str(error)
        cause = (type(error), error, traceback) if traceback else None
        level = logging.INFO if isinstance(error, Stopped) else logging.ERROR
        self._file.emit(self.logger.makeRecord(self.logger.name, level, __file__, 0, message, (), cause))

    def info(self, message: str) -> None:
        self.logger.info(message)

    def warning(self, message: str) -> None:
        self.logger.warning(message)

    def write_to(self, path: Path) -> None:
        """Starts the log file."""
        if self._rank == 0:
            self._file = _File(path, 'a', encoding='utf-8')  # one that was started in the same second is kept
            self._file.setFormatter(logging.Formatter(FORMAT))
            self._add(self._file)
        self.logger.removeHandler(self._held)

    def _add(self, handler: logging.Handler) -> None:
        """Adds a handler, which gets all earlier lines first."""
        self._handlers.append(handler)
        for record in self._held.buffer:
            if record.levelno >= handler.level:
                handler.emit(record)
        self.logger.addHandler(handler)


METRICS_FILE = 'metrics.jsonl'
# Of an event of a run: what is said of it, or how it has ended.
WARNING, BEST, FINISHED, STOPPED, ERROR = 'warning', 'best', 'finished', 'stopped', 'error'


class RunLog(DeferredLog):
    """The log of a run, with its ``metrics.jsonl`` and TensorBoard's curves from :meth:`start` on.

    A line of ``metrics.jsonl`` is a JSON object with ``iter`` and ``timestamp``, and one of

    - ``epoch``, ``lr`` (of several groups of parameters ``lr_1``, ``lr_2``, ...), ``time`` and ``data_time`` (seconds
      of an iteration, and of it waiting for data) and every term of the loss: of an iteration;
    - ``set``, ``metric``, ``value``: of a validation;
    - ``event``, ``message``: a warning, networks that were saved as the best, or how the process has ended.

    A value that is not finite is null.

    Attributes:
        tb_logger: TensorBoard's writer; None without one.
        position: where the run is; the loop of a stage puts its own here, and advances it.
        started: the time of :meth:`start`, in seconds.
    """

    def __init__(self, rank: int, console: bool = True) -> None:
        super().__init__(rank, console)
        self.tb_logger: Any = None
        self._metrics: Path | None = None
        self.position = Position()
        self.started = 0.0

    def start(self, opt: dict[str, Any], position: Position) -> None:
        """Starts log file, metrics and TensorBoard, without the iterations after the position: they are done again."""
        self.started = time.time()
        if self._rank == 0:
            folder = Path(opt['path']['experiments_root'])
            self.position, self._metrics = position, folder / METRICS_FILE
            atomic_write(self._metrics, ''.join(_kept_lines(self._metrics, opt, position.iteration)))
            self._add(_Warnings(self))
            self.tb_logger = _tensorboard(opt, position.iteration)
        self.write_to(Path(opt['path']['log'], f'train_{opt["name"]}_{get_time_str()}.log'))

    def iteration(self, epoch: int, lrs: list[float], values: Mapping[str, float]) -> None:
        """Records an iteration: its learning rates, and its seconds and loss terms by name."""
        names = ['lr'] if len(lrs) == 1 else [f'lr_{number}' for number in range(1, len(lrs) + 1)]
        self._append(epoch=epoch, **dict(zip(names, lrs)), **{name: float(value) for name, value in values.items()})

    def validation(self, name: str, metrics: Mapping[str, float]) -> None:
        """Records the metrics of a set."""
        for metric, value in metrics.items():
            self._append(set=name, metric=metric, value=float(value))

    def event(self, event: str, message: str = '') -> None:
        """Records an event."""
        self._append(event=event, message=message)

    def _append(self, **values: Any) -> None:
        if self._metrics is None:
            return
        line = {'iter': self.position.iteration, 'timestamp': timestamp(), **values}
        finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in line.items()}
        with self._metrics.open('a', encoding='utf-8') as file:
            file.write(json.dumps(finite) + '\n')

    def _write_last(self, error: BaseException, traceback: TracebackType | None) -> None:
        super()._write_last(error, traceback)
        self.event(STOPPED if isinstance(error, Stopped) else ERROR, one_line(error) if traceback else str(error))


class _Warnings(logging.Handler):
    def __init__(self, log: RunLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.event(WARNING, record.getMessage())


def timestamp() -> str:
    """Now, with milliseconds and time zone: ``2026-11-27T16:42:47.123+00:00``."""
    return datetime.now().astimezone().isoformat(timespec='milliseconds')


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; none without the file. What a killed process or a full disk has cut is left
    out."""
    lines = path.read_text(encoding='utf-8', errors='replace').splitlines() if path.is_file() else []
    for text in lines:
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict) and 'iter' in line and 'timestamp' in line:
                yield line


def _kept_lines(path: Path, opt: dict[str, Any], iteration: int) -> Iterator[str]:
    """The lines up to an iteration, and all events. The loop repeats the iteration's own validation if it is due."""
    val_freq, end = (opt['val'] or {}).get('val_freq', math.inf), opt['stage_begin'] + opt['train']['total_iter']
    is_repeated = iteration % val_freq == 0 or iteration >= end
    for line in read_metrics(path):
        until = iteration - is_repeated if 'set' in line else iteration
        if 'event' in line or line['iter'] <= until:
            yield json.dumps(line) + '\n'


def _tensorboard(opt: dict[str, Any], start_iter: int) -> Any:
    """BasicSR's ``init_tb_loggers``, but purges what an earlier process logged after ``start_iter``.

    Without that a run which was killed after its last checkpoint has two values for every iteration since then.
    """
    if 'debug' in opt['name']:
        return None
    if (opt['logger']['wandb'] or {}).get('project'):
        init_wandb_logger(opt)  # before TensorBoard, to follow it
    if not opt['logger']['use_tb_logger']:
        return None
    from torch.utils.tensorboard import SummaryWriter  # a slow import, for those who use it

    return SummaryWriter(str(Path(opt['root_path'], 'tb_logger', opt['name'])), purge_step=start_iter + 1)
