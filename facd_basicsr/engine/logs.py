"""Console and file logging, without a half-written experiment folder when the set-up fails."""

import contextlib
import logging
import logging.handlers
from pathlib import Path
from types import TracebackType
from typing import Any

from basicsr.utils import get_root_logger, init_wandb_logger
from basicsr.utils.dist_util import master_only

from facd_basicsr.errors import PeerFailedError, Stopped, UserError

FORMAT = '%(asctime)s %(levelname)s: %(message)s'


class _File(logging.FileHandler):
    """Ends the run when the disk is full, where ``logging`` prints a traceback for every line."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's name
        raise


class DeferredLog:
    """BasicSR's logger, on the console at once and in a file from :meth:`write_to` on, with all earlier lines.

    BasicSR opens its log file first, and so has moved the previous experiment aside before it notices that the
    teacher does not load. Here folders are made when networks and data are known to be good.

    Use as a context manager; the file is closed at its end, with the traceback of what ended it.

    Args:
        rank: this process's rank; only rank 0 logs.
        console: whether to log to the console as well.
    """

    def __init__(self, rank: int, console: bool = True) -> None:
        self.logger = get_root_logger()
        self._rank = rank
        self._console_level = logging.NOTSET if console else logging.CRITICAL
        self._held = logging.handlers.MemoryHandler(capacity=100_000, flushLevel=logging.CRITICAL + 1)
        self._file: logging.FileHandler | None = None

    def __enter__(self) -> 'DeferredLog':
        if self._rank == 0:
            self.logger.setLevel(logging.INFO)
        for handler in self.logger.handlers:
            handler.setLevel(self._console_level)
        self.logger.addHandler(self._held)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None and isinstance(error, (Exception, Stopped)):
            known = (PeerFailedError, Stopped, UserError)
            self._write_last(self._file, error, None if isinstance(error, known) else traceback)
        for handler in (self._held, self._file):
            if handler is not None:
                self.logger.removeHandler(handler)
                with contextlib.suppress(OSError):  # the disk may be full
                    handler.close()

    def _write_last(self, file: logging.FileHandler, error: BaseException, traceback: TracebackType | None) -> None:
        """To the file alone: the entry point writes it to the console. Errors are ignored, as the disk may be full."""
        message = 'The run has crashed.' if traceback else str(error)
        cause = (type(error), error, traceback) if traceback else None
        level = logging.INFO if isinstance(error, Stopped) else logging.ERROR
        record = self.logger.makeRecord(self.logger.name, level, __file__, 0, message, (), cause)
        with contextlib.suppress(OSError):
            file.emit(record)

    def info(self, message: str) -> None:
        self.logger.info(message)

    def warning(self, message: str) -> None:
        self.logger.warning(message)

    def write_to(self, path: Path) -> None:
        """Starts the log file."""
        if self._rank == 0:
            self._file = _File(path, 'a', encoding='utf-8')  # one that was started in the same second is kept
            self._file.setFormatter(logging.Formatter(FORMAT))
            self._held.setTarget(self._file)
            self._held.flush()
            self.logger.addHandler(self._file)
        self.logger.removeHandler(self._held)
        self._held.setTarget(None)


@master_only
def tensorboard(opt: dict[str, Any], start_iter: int) -> Any:
    """BasicSR's ``init_tb_loggers``, but purges what an earlier process logged after ``start_iter``.

    Without that a run which was killed after its last checkpoint has two values for every iteration since then.
    """
    if 'debug' in opt['name']:
        return None
    if (opt['logger'].get('wandb') or {}).get('project'):
        init_wandb_logger(opt)  # before TensorBoard, to follow it
    if not opt['logger']['use_tb_logger']:
        return None
    from torch.utils.tensorboard import SummaryWriter  # a slow import, for those who use it

    return SummaryWriter(str(Path(opt['root_path'], 'tb_logger', opt['name'])), purge_step=start_iter + 1)
