"""What a run survived: workers and nodes that were lost, what was started again, and what that cost.

A training keeps its attempts in its folder, a JSON object a line: rank 0 tells in attempts.jsonl where an attempt
begins and how long its steps waited for each checkpoint, the launcher in faults.jsonl which fault ended it. Of a run at
a URL these are files of different nodes. The driver reads both, tells the user, and records the restarts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from moe_dist.files import read_json_lines

ATTEMPTS, FAULTS = "attempts.jsonl", "faults.jsonl"

Restart = dict[str, Any]
"""A restart as run.json keeps it: time (seconds since 1970), of (what was started again, in words), kind (see
launch/faults.py), what (a clause that says what happened), ranks, step (the last one that was heard of, or None),
from_step (that of the checkpoint that it went on from, 0 for the beginning, or None), workers (how many it went on
with, or None), seconds_lost (from that last step until it was done again; None if it never was)."""
Survived = Callable[[Restart], None]
"""Records a restart, or what became known of it since."""


def forget(restart: Restart) -> None:
    """Record nothing, where there is no run to record it in."""


def restart(of: str, kind: str, what: str, **known: Any) -> Restart:
    """A restart with what is known of it so far; a field that is not given is None."""
    unknown: Restart = {"ranks": [], "step": None, "from_step": None, "workers": None, "seconds_lost": None}
    return {"time": time.time(), "of": of, "kind": kind, "what": what} | unknown | known


def note_attempt(training: Path, line: dict[str, Any]) -> None:
    """Append a line of rank 0 to the attempts of the training in a folder."""
    _append(training / ATTEMPTS, line)


def note_fault(training: Path, line: dict[str, Any]) -> None:
    """Append a line of the launcher to the faults of the training in a folder."""
    _append(training / FAULTS, line)


def read_attempts(training: Path) -> list[dict[str, Any]]:
    """What rank 0 told of the attempts of the training in a folder."""
    return read_json_lines(training / ATTEMPTS)


def saves(training: Path) -> list[float]:
    """The seconds that steps waited for each checkpoint of the training in a folder, in all its attempts."""
    return [line["seconds"] for line in read_attempts(training) if "saved" in line]


def seconds_lost(restarts: Sequence[Restart]) -> float:
    """The seconds that restarts cost in all, as far as they are known."""
    return sum(each["seconds_lost"] or 0.0 for each in restarts)


def _append(path: Path, line: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"time": time.time()} | line) + "\n")
