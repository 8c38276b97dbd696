"""Processes of this machine (Linux) told apart and ended exactly, so that cluster/local.py stops only its own."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process by its id and its start (clock ticks after the machine's), which a later one of the same id has not."""

    pid: int
    started: int


def process_of(pid: int) -> Process | None:
    """The living process with this id, or None."""
    found = _parent_and_start(pid)
    return None if found is None else Process(pid, found[1])


def is_alive(process: Process) -> bool:
    """Whether this very process still runs; a zombie does not."""
    found = _parent_and_start(process.pid)
    return found is not None and found[1] == process.started


def descendants(roots: list[Process]) -> list[Process]:
    """The roots that are alive and all processes below them, also workers and drivers in sessions of their own."""
    parents: dict[int, int] = {}
    processes: dict[int, Process] = {}
    for entry in Path("/proc").iterdir():
        found = _parent_and_start(int(entry.name)) if entry.name.isdigit() else None
        if found is not None:
            pid = int(entry.name)
            parents[pid], processes[pid] = found[0], Process(pid, found[1])
    below = {root.pid for root in roots if processes.get(root.pid) == root}
    grown = True
    while grown:
        children = {pid for pid, parent in parents.items() if parent in below} - below
        below |= children
        grown = bool(children)
    return [processes[pid] for pid in sorted(below)]


def end(leaders: list[Process], patience_seconds: float) -> None:
    """Send the leaders SIGTERM, in order, and later kill what is left of them and of their descendants."""
    ours = descendants(leaders)
    for process in leaders:
        _signal(process, signal.SIGTERM)
    deadline = time.monotonic() + patience_seconds
    while any(is_alive(process) for process in ours) and time.monotonic() < deadline:
        time.sleep(0.2)
    for process in ours:
        _signal(process, signal.SIGKILL)


def _signal(process: Process, which: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it may end between the look and the signal
        if is_alive(process):
            os.kill(process.pid, which)


def _parent_and_start(pid: int) -> tuple[int, int] | None:
    """Parent and start time from /proc/<pid>/stat (fields 4 and 22), or None if no process of this id is alive."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name before it may hold blanks
    return None if fields[0] == "Z" else (int(fields[1]), int(fields[19]))
