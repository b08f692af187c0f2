"""The one exception for mistakes a user can fix, and what entry points do with it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeVar

import lmdb


class UserError(ValueError):
    """An option file, path, checkpoint or image is not what it should be.

    Its message is one line: the option key or file, the value found, what is accepted, and where that helps the
    command or page that provides it. What is called ``where`` in signatures is the key or file that a message begins
    with.
    """

    def __init__(self, message: str) -> None:
        super().__init__(' '.join(message.splitlines()))  # what a user wrote, a key or a name, may have a line break


SAVED = 75  # sysexits.h: EX_TEMPFAIL, "try again later"


class PeerFailedError(Exception):
    """Another process of the group has ended, and says itself why; here nothing is wrong."""


class Stopped(BaseException):  # as KeyboardInterrupt: nothing went wrong, and nothing should take it for an error
    """A signal has ended the run, which is saved; its message says how it continues."""


def run_command(command: Callable[[], object]) -> None:
    """Runs an entry point.

    A :class:`UserError` becomes one line on stderr and exit code 2, :class:`PeerFailedError` one line and 1,
    :class:`Stopped` the exit code ``SAVED``, Ctrl-C 130.
    """
    try:
        command()
    except UserError as error:
        _say(f'error: {error}')
        sys.exit(2)
    except PeerFailedError as error:
        _say(f'error: {error}')
        sys.exit(1)
    except Stopped as stopped:
        _say(str(stopped))
        sys.exit(SAVED)
    except KeyboardInterrupt:
        _say('interrupted')
        sys.exit(130)


def _say(line: str) -> None:
    """At once, or several processes get between each other's lines and their ends; as the last line, where stdout and
    stderr are one file, after what BasicSR has printed."""
    sys.stdout.flush()
    sys.stderr.write(f'{line}\n')


def one_line(error: BaseException, length: int | None = None) -> str:
    """What an error says in one line, by default all of it; its class, if it says nothing."""
    return (' '.join(str(error).split()) or type(error).__name__)[:length]


Raised = TypeVar('Raised', bound=Exception)


@contextmanager
def reraise(
    errors: type[Raised] | tuple[type[Raised], ...], translated: Callable[[Raised], Exception | None]
) -> Iterator[None]:
    """Turns errors of others into one of this package. A :class:`UserError` stays as it is.

    Args:
        translated: gives the error to raise instead, or None for one that stays.
    """
    try:
        yield
    except UserError:
        raise
    except errors as error:
        other = translated(error)
        if other is None:
            raise
        raise other from error


@contextmanager
def locating(where: str | Path) -> Iterator[None]:
    """Begins the line of a :class:`UserError` with the file or key that it is about; none if empty."""
    try:
        yield
    except UserError as error:
        raise UserError(f'{where}: {error}' if where else str(error)) from error


@contextmanager
def advising(advice: str) -> Iterator[None]:
    """Ends the line of a :class:`UserError` in what else can be done."""
    try:
        yield
    except UserError as error:
        raise UserError(f'{error}; {advice}') from error


def reraise_data_errors() -> AbstractContextManager[None]:
    """Turns what BasicSR's datasets say about their data, assertions mostly, into a :class:`UserError`."""
    return reraise(
        (AssertionError, ValueError, OSError, lmdb.Error),
        lambda error: UserError(f'datasets: {one_line(error)}; datasets/README.md describes the layout'),
    )


def reraise_disk_errors() -> AbstractContextManager[None]:
    """Turns what the disk says, that it is full or not writable, into a :class:`UserError`."""

    def translated(error: Exception) -> UserError:
        if isinstance(error, OSError):
            reason = f'{error.filename}: {error.strerror}' if error.filename else str(error)
        else:  # LMDB, which for a full disk may say no more than input/output error
            reason = f'{error} (a full disk?)'
        return UserError(f'{reason}; once that is fixed, give the same command again')

    return reraise((OSError, lmdb.Error), translated)
