"""The seconds of a training step on several ranks, from what one rank computes and what the ranks send each other.

    computing = dense(B / R) + busiest x experts(B p / R)
    step = computing x (1 + waiting) + alone + sum over exchanges of (calls x latency + bytes / rate)

Letters: R ranks, in expert-parallel groups of p; B samples of the global batch. dense and experts are straight lines
through the seconds of two batch sizes in one process. The same formula predicts what benchmarks/scaling.py measures on
one machine, and what benchmarks/projection.py tells of many GPUs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """Seconds of n samples: fixed + each * n."""

    fixed: float
    each: float

    @staticmethod
    def through(few: tuple[float, float], many: tuple[float, float]) -> Line:
        """The line through two points (samples, seconds). Noise that makes it fall or begin below 0 is cut off."""
        each = max(0.0, (many[1] - few[1]) / (many[0] - few[0]))
        return Line(max(0.0, few[1] - each * few[0]), each)

    def __call__(self, samples: float) -> float:
        return self.fixed + self.each * samples


@dataclass(frozen=True)
class Link:
    """What an exchange takes: seconds of a call however little is sent, and bytes that a rank sends in a second."""

    latency: float
    bytes_per_second: float

    @staticmethod
    def through(few: tuple[float, float], many: tuple[float, float]) -> Link:
        """The link through two points (bytes, seconds of a call)."""
        line = Line.through(few, many)
        return Link(line.fixed, 1 / max(line.each, 1e-15))

    def throttled(self, bytes_per_second: float) -> Link:
        """The same link where something on the way lets no more through."""
        return Link(self.latency, min(self.bytes_per_second, bytes_per_second))


@dataclass(frozen=True)
class Exchange:
    """Collectives of one kind in a step: their number, and the bytes that the busiest rank sends in all of them."""

    kind: str
    calls: float
    sent: float


@dataclass(frozen=True)
class Layout:
    """ranks in expert-parallel groups of `group`, which divides them."""

    ranks: int
    group: int


@dataclass(frozen=True)
class Work:
    """What one process computes in a step, in seconds.

    dense: without its experts, of B samples; experts: all experts of B samples; alone: what one rank computes while
    the others wait; waiting: by how much the slowest of ranks that meet in every step is behind, as a share.
    """

    dense: Line
    experts: Line = Line(0.0, 0.0)
    alone: float = 0.0
    waiting: float = 0.0


def computing_seconds(work: Work, layout: Layout, batch: float, busiest: float) -> float:
    """Until the slowest rank has computed; busiest: its share of its group's experts, by their cost."""
    own = batch / layout.ranks
    computing = work.dense(own) + busiest * work.experts(own * layout.group)
    return computing * (1 + work.waiting) + work.alone


def exchange_seconds(exchanges: Sequence[Exchange], links: Mapping[str, Link]) -> float:
    """What a step's exchanges take, one after another; links by kind of exchange."""
    return sum(
        each.calls * links[each.kind].latency + each.sent / links[each.kind].bytes_per_second for each in exchanges
    )


def step_seconds(
    work: Work,
    layout: Layout,
    batch: float,
    *,
    busiest: float,
    exchanges: Sequence[Exchange],
    links: Mapping[str, Link],
) -> float:
    """A step of `batch` samples over all ranks."""
    return computing_seconds(work, layout, batch, busiest) + exchange_seconds(exchanges, links)


def ring_bytes(ranks: int, tensor_bytes: float) -> float:
    """What each rank sends in an all-reduce of so many bytes, to its neighbour on a ring: both halves of it."""
    return 2 * (ranks - 1) / ranks * tensor_bytes
