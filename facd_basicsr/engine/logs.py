"""Console and file logging, without a half-written experiment folder when the set-up fails."""

import logging
import logging.handlers
import platform
from pathlib import Path

import basicsr.version
import torch
import torchvision
from basicsr.utils import get_root_logger

FORMAT = '%(asctime)s %(levelname)s: %(message)s'


class DeferredLog:
    """BasicSR's logger, on the console at once and in a file from :meth:`write_to` on, with all that came before.

    BasicSR opens its log file first, and so has moved the previous experiment aside before it notices that the
    teacher does not load. Here folders are made when networks and data are known to be good.

    Use as a context manager; the file is closed at its end.

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

    def __exit__(self, *_: object) -> None:
        for handler in (self._held, self._file):
            if handler is not None:
                self.logger.removeHandler(handler)
                handler.close()

    def info(self, message: str) -> None:
        self.logger.info(message)

    def write_to(self, path: Path) -> None:
        """Starts the log file."""
        if self._rank == 0:
            self._file = logging.FileHandler(path, 'w', encoding='utf-8')
            self._file.setFormatter(logging.Formatter(FORMAT))
            self._held.setTarget(self._file)
            self._held.flush()
            self.logger.addHandler(self._file)
        self.logger.removeHandler(self._held)
        self._held.setTarget(None)


def versions() -> str:
    """The versions a result depends on, in one line."""
    return (
        f'Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}, '
        f'basicsr {basicsr.version.__version__}'
    )
