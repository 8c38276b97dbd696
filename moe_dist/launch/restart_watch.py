"""Tells of a training's restarts while it runs, and records what each of them cost; from the training's files alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moe_dist.record.restarts import Restart, Survived, read_attempts, restart
from moe_dist.terminal import Show, duration
from moe_dist.train.log import last_metrics


class RestartWatch:
    """The restarts of one training as its driver sees them: call `look` now and then, and `ended` at the end.

    of: what is trained, in words. workers: by how many it is to be trained; where it is by others, that is told.
    last_fault: the clause of the newest fault, which may have ended the training.
    """

    def __init__(
        self,
        show: Show,
        training: Path,
        of: str,
        workers: int,
        survived: Survived,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._show, self._training, self._of, self._survived, self._clock = show, training, of, survived, clock
        self._workers = workers
        self._read = len(read_attempts(training))
        self._newest: dict[str, Any] | None = None
        self._heard = clock()
        self._lost: tuple[Restart, int, float] | None = None
        """The restart that is not caught up with: its record, the step to reach again, and the moment of that step."""
        self.last_fault = ""

    def look(self) -> None:
        """Read what is new, tell of it and record it."""
        attempts = read_attempts(self._training)  # before the log, which an attempt cuts back before it is noted
        for line in attempts[self._read :]:
            if "what" in line:
                self._fault(line)
            elif "from_step" in line:
                self._begun(line)
        self._read = len(attempts)
        newest = last_metrics(self._training / "metrics.jsonl")
        if newest is None or newest == self._newest:
            return
        self._newest, self._heard = newest, self._clock()
        if self._lost is not None:
            record, step, _ = self._lost
            if record["from_step"] is not None and newest["step"] >= step:
                self._caught_up(self._heard)

    def ended(self) -> None:
        """Take the last lines; a restart that was not caught up with by then has cost the time until now."""
        self.look()
        if self._lost is not None:
            self._caught_up(self._clock())

    def _fault(self, line: dict[str, Any]) -> None:
        self.last_fault = f"{line['what']}, after step {line['step']}"
        if line["final"]:
            return
        step, since = line["step"], self._heard
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
