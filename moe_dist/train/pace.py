"""Where the time of a stretch of steps goes: how long a step takes, and how much of that it waits for its batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class Pace:
    """Times the steps between two lines of the log. On a GPU the steps run ahead, until the line waits for them."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._steps, self._waited, self._since = 0, 0.0, clock()

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches, one after another; the time that each takes to come counts as waiting."""
        self._steps, self._waited, self._since = 0, 0.0, self._clock()
        following = iter(batches)
        while True:
            asked = self._clock()
            try:
                batch = next(following)
            except StopIteration:
                return
            self._waited += self._clock() - asked
            self._steps += 1
            yield batch

    def take(self) -> dict[str, float]:
        """step_seconds and data_wait_seconds, means over the steps since the last call. At least one was made."""
        now = self._clock()
        means = {
            "step_seconds": (now - self._since) / self._steps,
            "data_wait_seconds": self._waited / self._steps,
        }
        self._steps, self._waited, self._since = 0, 0.0, now
        return means
