"""What ends a process before its work is done: TERM and USR1, as schedulers send them, become an exception.

So a run that is stopped saves its state like one that is interrupted by Ctrl-C, and the command ends with exit code 75:
run again to go on.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
EXIT_CODE = 75


class Stopped(BaseException):
    """The process was told to end. No Exception, like KeyboardInterrupt, so that nothing takes it for a failed run."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)


_received: list[int] = []


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, TERM and USR1 raise Stopped in the main thread; elsewhere than there nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _receive) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received.clear()


def check() -> None:
    """Raise Stopped if a signal came; Python drops an exception that a handler raises while an object is collected."""
    if _received:
        raise Stopped(_received[0])


def _receive(number: int, frame: FrameType | None) -> None:
    _received.append(number)
    if len(_received) == 1:  # schedulers repeat themselves, and the state is being saved
        raise Stopped(number)
