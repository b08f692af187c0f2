"""Graceful shutdown: signals that end a run with everything saved."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from facd_basicsr.errors import Stopped

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # SLURM announces preemption by SIGUSR1
ONE = 1.0  # seconds: what arrives sooner is the same signal, from the terminal and from torchrun for example


def worker_ignore_signals(worker_id: int) -> None:
    """For DataLoader's workers: Ctrl-C and SLURM signal all of a job's processes, and the main one still needs them.

    SIGTERM is accepted from the main process alone, which ends its workers by it.
    """
    signal.set_wakeup_fd(-1)
    for signum in STOPPING[1:]:
        signal.signal(signum, signal.SIG_IGN)
    heeded: Sequence[signal.Signals] = STOPPING
    if hasattr(signal, 'sigwaitinfo'):  # not on macOS, where SIGTERM from anyone ends a worker
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, daemon=True).start()
        heeded = STOPPING[1:]
    signal.pthread_sigmask(signal.SIG_UNBLOCK, heeded)


def _end_with_parent() -> None:
    parent = os.getppid()
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Blocks signals until its end. Processes that are started inside inherit the mask."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def stop_on_signal() -> Iterator[None]:
    """During set-up there is nothing to save: a signal ends the process as soon as Python handles it.

    Raises:
        Stopped: a signal has come.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(signum: int, _: object) -> None:
        raise Stopped(f'{signal.Signals(signum).name}: stopped; the same command with --auto_resume continues.')

    before = {signum: signal.signal(signum, end) for signum in STOPPING}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


class StopSignals:
    """While entered, the first SIGTERM, SIGINT or SIGUSR1 sets ``requested``; a later second one ends the process.

    The second one works at once, whatever the main thread is waiting for, since a thread of its own receives them:
    Python runs handlers only between the main thread's instructions, and one may hang in a collective forever.

    Outside the main thread, where Python accepts no handlers, it does nothing.

    Attributes:
        requested: the first signal that came.
    """

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self._entered = False

    def __enter__(self) -> 'StopSignals':
        if threading.current_thread() is not threading.main_thread():
            return self
        self._entered = True
        self._received, sent = socket.socketpair()
        sent.setblocking(False)
        self._sent = sent
        self._before = {signum: signal.signal(signum, lambda *_: None) for signum in STOPPING}
        self._wakeup_before = signal.set_wakeup_fd(sent.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._receive, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._entered:
            return
        signal.set_wakeup_fd(self._wakeup_before)
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._sent.close()  # which ends the thread

    def _receive(self) -> None:
        first = None
        with self._received:
            while signums := self._received.recv(1):
                if signums[0] not in STOPPING:
                    continue
                if first is None:
                    first = time.monotonic()
                    self.requested = signal.Signals(signums[0])
                elif time.monotonic() - first > ONE:
                    os._exit(128 + signums[0])
