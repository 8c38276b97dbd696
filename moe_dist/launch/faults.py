"""What ended an attempt of a training, in words, from the errors of its ranks.

Letters: a fault has a *kind*, of which the first one in KINDS explains the others: when a rank dies, the ranks that
wait for it fail as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

KINDS = (
    "preempted",
    "node died",
    "out of memory",
    "worker died",
    "silent",
    "hung",
    "error",
    "more room",
    "connection lost",
)
MEMORY_RAN_OUT = (
    "; give workers more memory, or lower batch_size or the number of workers on a node (resources.cpus_per_worker)"
)
_LOST = re.compile(r"[Cc]onnection (closed|reset|refused)|[Bb]roken pipe|[Ss]ocket closed|communicator was aborted")


@dataclass(frozen=True)
class Place:
    """Where a rank runs: its machine and its process."""

    host: str
    process: int

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"


@dataclass(frozen=True)
class Failure:
    """The failure of one rank: its kind, and what was said."""

    kind: str
    said: str = ""


@dataclass(frozen=True)
class Fault:
    """What ended an attempt: its kind, the ranks it began with, and a clause that says so."""

    kind: str
    ranks: tuple[int, ...]
    what: str


def fault_of(failures: Mapping[int, Failure], places: Mapping[int, Place]) -> Fault:
    """The fault that explains the failures of ranks; places: of all ranks of the training."""
    kind = min((failure.kind for failure in failures.values()), key=KINDS.index)
    ranks = tuple(sorted(rank for rank, failure in failures.items() if failure.kind == kind))
    others = tuple(rank for rank in sorted(places) if rank not in ranks)
    said = " ".join(failures[ranks[0]].said.split())
    of, s = f"of {_at(ranks, places)}", "s" if len(ranks) > 1 else ""
    if kind == "hung":
        waited_for = _ranks(others) if others else "each other"
        return Fault(kind, others or ranks, f"{_ranks(ranks)} waited {said} for {waited_for}")
    if kind == "preempted" and not others:  # all ranks saved a checkpoint and ended, whosever node it is
        return Fault(kind, (), "a node of the training will be taken away")
    if kind == "more room":
        return Fault(kind, (), f"the cluster has room for {said} workers instead of {len(places)}")
    if kind == "connection lost" and len(others) == 1:  # it died, and Ray does not know it yet
        return Fault(kind, others, f"{_ranks(ranks)} lost the connection to {_at(others, places)}")
    what = {
        "preempted": f"the node{s} {of} will be taken away",
        "node died": f"the node{s} {of} died",
        "out of memory": f"the worker{s} {of} ended because memory ran out{MEMORY_RAN_OUT}",
        "worker died": f"the worker{s} {of} died",
        "silent": f"the worker{s} {of} did not answer for {said}",
        "error": f"the worker{s} {of} failed: {said}",
        "connection lost": f"{_at(ranks, places)} lost the connection to another rank",
    }
    return Fault(kind, ranks, what[kind])


def kind_of_error(error: BaseException) -> str:
    """The kind of an error that a rank's own code raised: a consequence of another rank's end, or an error."""
    return "connection lost" if _LOST.search(str(error)) else "error"


def _ranks(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"


def _at(ranks: Sequence[int], places: Mapping[int, Place]) -> str:
    """Ranks and where they run."""
    where = "; ".join(str(places[rank]) for rank in ranks if rank in places)
    return _ranks(ranks) + (f" ({where})" if where else "")
