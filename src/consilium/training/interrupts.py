"""Signals that end a training: the step under way is finished and a checkpoint left."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from typing import Any

AGAIN = 2.0  # seconds; torchrun and Slurm pass on a signal that the terminal has sent already
# Ctrl-C; a cluster that ends a job; a terminal that is lost; the warning of a scheduler before it ends a job.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class StoppedWaiting(BaseException):
    """A signal came while a training waited for data, when no step was under way."""


class Interruption:
    """The signal that came, if any; ``alone``: no other process waits for this one."""

    def __init__(self, *, alone: bool) -> None:
        self.name: str | None = None
        self._alone = alone
        self._moment = 0.0
        self._waits = False

    def note(self, number: int, _: Any) -> None:
        """The handler of the signals; one that comes again later interrupts at once."""
        if self.name is None:
            self._moment = time.monotonic()
            self.name = signal.Signals(number).name
            if self._waits:
                raise StoppedWaiting
        elif time.monotonic() - self._moment > AGAIN:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Work that is left at once when a signal comes, with StoppedWaiting: what it waits for may never come.

        Several processes stop together, after a step.
        """
        self._waits = self._alone
        try:
            if self._waits and self.name is not None:
                raise StoppedWaiting
            yield
        finally:
            self._waits = False


@contextlib.contextmanager
def interruptible(*, alone: bool) -> Iterator[Interruption]:
    """Notes signals instead of ending; one that was ignored before (as under nohup) stays ignored."""
    interruption = Interruption(alone=alone)
    old = {}
    try:
        for number in ENDING:
            if signal.getsignal(number) != signal.SIG_IGN:
                old[number] = signal.signal(number, interruption.note)
    except ValueError:  # not in the main thread: signals are somebody else's
        pass
    try:
        yield interruption
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
