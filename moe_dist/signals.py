"""SIGTERM and Ctrl-C: a command unwinds, says how to go on, and ends with the exit code that shells have for it.

The first signal raises KeyboardInterrupt (or its kind, Terminated) wherever the main thread is, so that every `finally`
on the way up is run. What unwinds may take seconds: then a second Ctrl-C ends the process at once, and a second SIGTERM
is left alone, because some senders (timeout, Slurm) send it twice and SIGKILL is theirs if they tire of waiting.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from moe_dist.errors import Terminated

GO_ON = "MOE_DIST_GO_ON"
"""The environment variable in which a submitted job is told the command that submits it again, to go on."""

_arrived: list[signal.Signals] = []


class Stopped(Exception):
    """A signal ended the command; the sentence says which one, and how to go on."""

    def __init__(self, go_on: str) -> None:
        by = "SIGTERM" if _first() is signal.SIGTERM else "Ctrl-C"
        super().__init__(f"stopped by {by}; go on with: {go_on}")


def catch_signals() -> None:
    """From now on SIGTERM and Ctrl-C unwind this process. Only the main thread may call it, and only a command does."""
    signal.signal(signal.SIGTERM, _raise)
    signal.signal(signal.SIGINT, _raise)


def exit_code() -> int:
    """The exit code of a process that the signal ended: 143 after SIGTERM, 130 after Ctrl-C."""
    return 128 + _first()


@contextmanager
def stoppable(go_on: Callable[[], str]) -> Iterator[None]:
    """Raise Stopped where a signal ends the block; `go_on` is asked then for the command that goes on.

    Whatever comes up after a signal came of it, a KeyboardInterrupt that Ray has made of our own or a failure of what
    was being shut down.
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
def keeping_handlers() -> Iterator[None]:
    """Give SIGTERM and Ctrl-C back to whoever has them now when the block ends, in which a library takes them.

    The library's way to end by SIGTERM, which is Ray's, is SystemExit with its number; it counts as the signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    terminated = False
    try:
        yield
    except SystemExit as end:
        terminated = end.code == signal.SIGTERM
        raise
    finally:
        if _arrived:
            _unwinding()
        else:
            for number, handler in before.items():
                signal.signal(number, handler)
        if terminated:
            signal.raise_signal(signal.SIGTERM)


def _raise(number: int, frame: FrameType | None) -> None:
    _arrived.append(signal.Signals(number))
    _unwinding()
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def _unwinding() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _first() -> signal.Signals:
    return _arrived[0] if _arrived else signal.SIGINT
