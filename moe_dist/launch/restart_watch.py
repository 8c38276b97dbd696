"""Tells of a training's restarts while it runs, and records what each of them cost; from the training's files alone.

Faults are taken before attempts, whose lines may arrive later, and have the clock of another node.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from moe_dist.launch.heard import Heard
from moe_dist.record.restarts import Restart, Survived, restart
from moe_dist.terminal import Show, duration


class RestartWatch:
    """The restarts of one training as its driver sees them: call `look` now and then, and `ended` at the end.

    of: what is trained, in words. workers: by how many it is to be trained; where it is by others, that is told.
    last_fault: the clause of the newest fault, which may have ended the training.
    """

    def __init__(
        self,
        show: Show,
        heard: Heard,
        of: str,
        workers: int,
        survived: Survived,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._show, self._heard, self._of, self._survived, self._clock = show, heard, of, survived, clock
        self._workers = workers
        self._faults, self._attempts = len(heard.faults()), len(heard.attempts())
        self._newest: dict[str, Any] | None = None
        self._since = clock()
        self._lost: tuple[Restart, int, float] | None = None
        """The restart that is not caught up with: its record, the step to reach again, and the moment of that step."""
        self.last_fault = ""

    def look(self) -> None:
        """Read what is new, tell of it and record it."""
        faults, attempts = self._heard.faults(), self._heard.attempts()  # before the log, which an attempt cuts back
        for line in faults[self._faults :]:
            self._fault(line)
        for line in attempts[self._attempts :]:
            if "from_step" in line:
                self._begun(line)
        self._faults, self._attempts = len(faults), len(attempts)
        newest = self._heard.newest()
        if newest is None or newest == self._newest:
            return
        self._newest, self._since = newest, self._clock()
        if self._lost is not None:
            record, step, _ = self._lost
            if record["from_step"] is not None and newest["step"] >= step:
                self._caught_up(self._since)

    def ended(self) -> None:
        """Take the last lines; a restart that was not caught up with by then has cost the time until now."""
        self.look()
        if self._lost is not None:
            self._caught_up(self._clock())

    def _fault(self, line: dict[str, Any]) -> None:
        self.last_fault = f"{line['what']}, after step {line['step']}"
        if line["final"]:
            return
        step, since = line["step"], self._since
        if self._lost is not None:  # hit again before it was caught up with: the two do not count the same seconds
            earlier, earlier_step, earlier_since = self._lost
            earlier["seconds_lost"] = since - earlier_since
            self._survived(earlier)
            step = max(step, earlier_step)
        record = restart(
            self._of, line["kind"], line["what"], ranks=line["ranks"], step=line["step"], time=line["time"]
        )
        self._lost = record, step, since
        self._show.notice(f"{self.last_fault} of {self._of}; it is started again from its last checkpoint")
        self._survived(record)

    def _begun(self, line: dict[str, Any]) -> None:
        """Take down from where an attempt goes on, and with how many workers."""
        if self._lost is not None:
            self._lost[0].update(from_step=line["from_step"], workers=line["workers"])
        if line["workers"] != self._workers:
            self._workers = line["workers"]
            s = "s" if self._workers > 1 else ""
            self._show.aside(f"{self._of} has {self._workers} worker{s} from step {line['from_step']} on")

    def _caught_up(self, moment: float) -> None:
        assert self._lost is not None
        record, step, since = self._lost
        record["seconds_lost"] = moment - since
        self._lost = None
        self._survived(record)
        whence = f"from step {record['from_step']}" if record["from_step"] else "from the beginning"
        self._show.aside(f"step {step} is reached again, {whence}: {duration(record['seconds_lost'])} lost")
