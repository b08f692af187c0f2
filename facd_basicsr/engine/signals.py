"""Signals that end a training with everything saved."""

import os
import signal
import socket
import threading
import time

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # SLURM announces preemption by SIGUSR1
ONE = 1.0  # seconds: what arrives sooner is the same signal, from the terminal and from torchrun for example


def leave_to_the_main_process(worker_id: int) -> None:
    """For DataLoader's workers: Ctrl-C and SLURM signal all of a job's processes, and the main one still needs them."""
    signal.set_wakeup_fd(-1)
    for signum in STOPPING:
        signal.signal(signum, signal.SIG_IGN)


class StopSignals:
    """While entered, the first SIGTERM, SIGINT or SIGUSR1 sets ``requested``; a later second one ends the process.

    The second one works at once, whatever the main thread is waiting for, since a thread of its own receives them:
    Python runs handlers only between the main thread's instructions, and one may hang in a collective for ever.

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
