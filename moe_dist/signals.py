"""SIGTERM and Ctrl-C: a command cleans up, says how to resume, and ends with the usual exit code.

The first signal raises KeyboardInterrupt (or its subclass Terminated) in the main thread, so that every `finally` runs.
This may take seconds, in which a second Ctrl-C ends the process at once. A second SIGTERM is ignored, because some
senders (timeout, Slurm) send it twice, and SIGKILL if the process does not end in time.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from moe_dist.errors import Terminated

GO_ON = "MOE_DIST_GO_ON"
"""Environment variable of a submitted job: the command that submits it again to resume it."""

SOON = 0.02
"""Seconds after which a dropped signal is sent again."""

_arrived: list[signal.Signals] = []


class Stopped(Exception):
    """A signal ended the command. The message says which signal, and how to resume."""

    def __init__(self, go_on: str) -> None:
        by = "SIGTERM" if _first() is signal.SIGTERM else "Ctrl-C"
        super().__init__(f"stopped by {by}; go on with: {go_on}")


def catch_signals() -> None:
    """Handle SIGTERM and Ctrl-C from now on. Call it in the main thread of a command."""
    signal.signal(signal.SIGTERM, _raise)
    signal.signal(signal.SIGINT, _raise)
    sys.unraisablehook = _raise_again


def exit_code() -> int:
    """The exit code of a process that a signal ended: 143 after SIGTERM, 130 after Ctrl-C."""
    return 128 + _first()


def stopping() -> bool:
    """Whether a signal has arrived: whatever fails from then on may have failed because of it."""
    return bool(_arrived)


@contextmanager
def stoppable(go_on: Callable[[], str]) -> Iterator[None]:
    """Raise Stopped if a signal ends the block. go_on: returns the command that resumes it.

    Any exception after a signal counts as caused by it, because Ray may replace KeyboardInterrupt by another exception,
    or fail while it is shut down.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        raise Stopped(go_on()) from stop
    except Exception as error:
        if not _arrived or isinstance(error, Stopped):
            raise
        raise Stopped(go_on()) from error


@contextmanager
def deferring_signals() -> Iterator[None]:
    """Let SIGTERM and Ctrl-C take effect only after the block, in which a library would be left half started.

    The library's own handlers are not installed: Ray's would end the process at once. A second Ctrl-C does.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    deferred: list[int] = []
    install = signal.signal

    def defer(number: int, frame: FrameType | None) -> None:
        deferred.append(number)
        install(signal.SIGINT, signal.SIG_DFL)

    before = {number: install(number, defer) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal = lambda number, handler: signal.getsignal(number)  # type: ignore[assignment]
    try:
        yield
    finally:
        signal.signal = install  # type: ignore[assignment]
        for number, handler in before.items():
            install(number, handler)
        if deferred:
            signal.raise_signal(deferred[0])


def _raise(number: int, frame: FrameType | None) -> None:
    _arrived.append(signal.Signals(number))
    _unwinding()
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def _raise_again(lost: sys.UnraisableHookArgs) -> None:
    """Send the signal again if Python has dropped its exception, as it does in a `__del__` or a weak reference."""
    if not isinstance(lost.exc_value, KeyboardInterrupt) or not _arrived:
        sys.__unraisablehook__(lost)
        return
    signal.signal(signal.SIGTERM, _raise)
    signal.signal(signal.SIGINT, _raise)
    threading.Timer(SOON, os.kill, (os.getpid(), _first())).start()  # not here, where it would be dropped again


def _unwinding() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _first() -> signal.Signals:
    return _arrived[0] if _arrived else signal.SIGINT
