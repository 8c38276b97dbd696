"""Images/s and bytes at 1, 2 and 4 workers, and whether the step time of points that were held out can be predicted.

    python -m benchmarks.scaling [--workers 1 2 4] [--rounds 4]

Fitted are: what one process computes, at two batch sizes and beside as many others as there are workers (five cases:
scaling_cases.py); each kind of collective at two sizes of messages; and a step of ranks that each hold all experts, for
how much the slowest of several is behind. From these, the formula of step_time.py predicts what was held out: other
sizes of messages and batches, ranks over which experts are spread, and the same over connections that the kernel
throttles (SO_MAX_PACING_RATE, for which nobody needs to be root). What is sent is computed as `moe-dist show` computes
it, and counted beside that.

All take turns in a round. A time is that of the slowest rank, the least of the repeats in a round; a point is the least
of its rounds, since other programs on the machine can only add to it, and its spread goes to the largest. Four workers
share two cores (oversubscribed) on the machine that the committed results are of.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.machine import machine
from benchmarks.scaling_cases import (
    CASES,
    batches_of_the_busiest,
    method_of,
    refresh_exchanges,
)
from benchmarks.scaling_ranks import PROBES, UNLIMITED, Member, sent_bytes, serve
from benchmarks.step_time import Exchange, Layout, Line, Link, Work, computing_seconds, step_seconds
from benchmarks.traffic import busiest_share, exchanges

RESULTS = Path(__file__).parent / "results" / "scaling.json"
REFRESH = "edcwrn"
KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "gather", "broadcast")
FITTED_BYTES, HELD_BYTES = (2**15, 2**20), (2**17, 2**19)
"""Sizes of a rank's tensor in a collective."""
FITTED_SAMPLES, HELD_SAMPLES = (2048, 8192), 4096
"""Sizes of the set that EDCWRN's target is refreshed of."""
THROTTLE = 20_000_000
"""Bytes a second over a throttled connection."""
ON_THE_WIRE = {"reduce_scatter": 2}
"""How often gloo sends what a collective needs once: it makes a reduce-scatter of an all-reduce."""
GOAL = 0.2
FEWEST, MOST, ENOUGH_SECONDS = 3, 12, 0.5
"""Repeats in a round, and what they need not take longer than together."""
Seconds = dict[str, list[float]]
"""Of every point by its name, the seconds of each round."""


class Point(NamedTuple):
    """A measured step, and what predicts it."""

    case: str
    layout: Layout
    batch: int
    throttled: bool = False

    @property
    def name(self) -> str:
        """The name under which its seconds are kept."""
        spread = f"{self.layout.ranks} ranks in groups of {self.layout.group}"
        return f"{self.case}: {spread}, {self.batch} samples" + (", throttled" if self.throttled else "")


class Team:
    """Processes that measure together (scaling_ranks.py)."""

    def __init__(self, size: int, together: bool, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._barrier = context.Barrier(size)  # kept: with its last reference it would go
        self._pipes, self._processes = [], []
        for number in range(size):
            ours, theirs = context.Pipe()
            arguments = (Member(number, size, together), theirs, self._barrier, str(folder))
            self._processes.append(context.Process(target=serve, args=arguments, daemon=True))
            self._pipes.append(ours)
        for process in self._processes:
            process.start()

    def ready(self) -> None:
        """Wait until all have begun."""
        for pipe in self._pipes:
            assert pipe.recv() == "ready"

    def ask(self, kind: str, *arguments: Any, repeats: int = 0) -> list[Any]:
        """Every process's answer."""
        for pipe in self._pipes:
            pipe.send((kind, arguments, repeats))
        return [pipe.recv() for pipe in self._pipes]

    def seconds(self, kind: str, *arguments: Any) -> float:
        """The least of the repeats, each that of the slowest process; there are more of what is short."""
        found: list[float] = []
        while len(found) < FEWEST or (len(found) < MOST and sum(found) < ENOUGH_SECONDS):
            found += [max(repeat) for repeat in zip(*self.ask(kind, *arguments, repeats=FEWEST))]
        return min(found)

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            with contextlib.suppress(BrokenPipeError):
                pipe.send(None)
        for process in self._processes:
            process.join(20)
            process.kill()


def main() -> None:
    """Measure, print and write results/scaling.json: a section for each number of workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", choices=(1, 2, 4), default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    content = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for workers in options.workers:
        about = machine() | {"rounds": options.rounds}
        started = time.time()
        with tempfile.TemporaryDirectory() as folder, teams(workers, Path(folder)) as (alone, ranks):
            section = measure(alone, ranks, workers, options.rounds)
        content[str(workers)] = about | section | {"took_seconds": round(time.time() - started)}
        RESULTS.write_text(json.dumps(content, indent=1) + "\n")
        show(workers, section)


@contextmanager
def teams(workers: int, folder: Path) -> Iterator[tuple[Team, Team | None]]:
    """As many processes alone beside each other as there are workers, and the workers."""
    with ExitStack() as stack:
        made = [Team(workers, together, folder) for together in ((False, True) if workers > 1 else (False,))]
        for team in made:
            stack.callback(team.close)
            team.ready()
        yield made[0], made[1] if workers > 1 else None


def measure(alone: Team, ranks: Team | None, workers: int, rounds: int) -> dict[str, Any]:
    """All rounds, and what they say."""
    points, seconds = held_points(workers), Seconds()
    for number in range(rounds + 1):  # the first one warms up
        found = fitted(alone, ranks) | held(alone, ranks, points)
        if number:
            for name, value in found.items():
                seconds.setdefault(name, []).append(value)
    least = {name: min(values) for name, values in seconds.items()}
    links = links_of(least, workers) if ranks else {}
    section = {"points": [told(point, predicted(point, least, links), seconds[point.name]) for point in points]}
    if ranks is not None:
        section["messages"] = [
            told_message(kind, size, links[kind], workers, seconds) for kind in KINDS for size in HELD_BYTES
        ]
        section["links"] = {kind: vars(link) for kind, link in links.items()}
        section["bytes"] = [bytes_beside(ranks, point) for point in points if not point.throttled]
    return section | {"fitted_ms": {name: rounded(values) for name, values in seconds.items() if "fit" in name}}


def held_points(workers: int) -> list[Point]:
    """The steps that are predicted."""
    points = []
    for name, case in CASES.items():
        if workers == 1:
            points.append(Point(name, Layout(1, 1), case.batches.between))
            continue
        spread = Layout(workers, case.group_of_four if workers == 4 else 2)
        points += [Point(name, Layout(workers, 1), case.batches.between), Point(name, spread, case.batches.between)]
        points += [Point(name, spread, case.batches.many), Point(name, spread, case.batches.many, throttled=True)]
    refreshed = [HELD_SAMPLES] if workers == 1 else [HELD_SAMPLES, FITTED_SAMPLES[1]]
    points += [Point(REFRESH, Layout(workers, 1), samples) for samples in refreshed]
    return points + ([Point(REFRESH, Layout(workers, 1), HELD_SAMPLES, throttled=True)] if workers > 1 else [])


def fitted(alone: Team, ranks: Team | None) -> dict[str, float]:
    """Seconds of one round of what the formula is fitted to."""
    found = {}
    for name, case in CASES.items():
        for batch in (case.batches.few, case.batches.many):
            found[f"fit: {name}, {batch} samples"] = alone.seconds("step", name, 1, batch)
            found[f"fit: {name}, {batch} samples, experts"] = alone.seconds("experts", name, batch)
    for samples in FITTED_SAMPLES:
        found[f"fit: {REFRESH}, {samples} samples, encoding"] = alone.seconds("encode", samples)
        found[f"fit: {REFRESH}, {samples} samples, alone"] = alone.seconds("on_the_first", samples)
    if ranks is not None:
        for name, case in CASES.items():
            found[f"fit: {name}, replicated"] = ranks.seconds("step", name, 1, case.batches.many)
        for kind in KINDS:
            for size in FITTED_BYTES:
                found[f"fit: {kind}, {size} bytes"] = ranks.seconds("probe", kind, size) / PROBES
    return found


def held(alone: Team, ranks: Team | None, points: Sequence[Point]) -> dict[str, float]:
    """Seconds of one round of what is predicted."""
    team, found = ranks or alone, {}
    for point in points:
        if point.throttled:
            team.ask("pace", THROTTLE)
        if point.case == REFRESH:
            found[point.name] = team.seconds("refresh", point.batch)
        else:
            found[point.name] = team.seconds("step", point.case, point.layout.group, point.batch)
        if point.throttled:
            team.ask("pace", UNLIMITED)
    if ranks is not None:
        for kind in KINDS:
            for size in HELD_BYTES:
                found[f"{kind}, {size} bytes"] = ranks.seconds("probe", kind, size) / PROBES
    return found


def links_of(least: dict[str, float], workers: int) -> dict[str, Link]:
    """Each kind's link, through its two fitted sizes of messages."""
    return {
        kind: Link.through(
            *((sent_bytes(kind, size, workers), least[f"fit: {kind}, {size} bytes"]) for size in FITTED_BYTES)
        )
        for kind in KINDS
    }


def predicted(point: Point, least: dict[str, float], links: dict[str, Link]) -> float:
    """The seconds of a point by the formula."""
    if point.throttled:
        links = {kind: link.throttled(THROTTLE / ON_THE_WIRE.get(kind, 1)) for kind, link in links.items()}
    if point.case == REFRESH:
        work, samples = work_of_refresh(point, least)
        return step_seconds(work, point.layout, samples, busiest=1, exchanges=exchanges_of(point), links=links)
    work = work_of(point.case, least)
    if point.layout.ranks > 1:
        work = replace(work, waiting=waiting(point, work, least, links))
    return by_formula(point, work, links)


def by_formula(point: Point, work: Work, links: dict[str, Link]) -> float:
    """The seconds of a training step."""
    busiest = busiest_share(method_of(point.case), point.layout, point.batch)
    return step_seconds(work, point.layout, point.batch, busiest=busiest, exchanges=exchanges_of(point), links=links)


def work_of(case: str, least: dict[str, float]) -> Work:
    """What one process computes of a case, through two sizes of batches."""
    sizes = CASES[case].batches[:2]
    experts, whole = (
        Line.through(*((batch, least[f"fit: {case}, {batch} samples{part}"]) for batch in sizes))
        for part in (", experts", "")
    )
    return Work(Line(whole.fixed - experts.fixed, whole.each - experts.each), experts)


def waiting(point: Point, work: Work, least: dict[str, float], links: dict[str, Link]) -> float:
    """By how much the slowest rank is behind, from a step of ranks that each hold all experts."""
    alike = Point(point.case, Layout(point.layout.ranks, 1), CASES[point.case].batches.many)
    computing = computing_seconds(work, alike.layout, alike.batch, 1.0)
    return max(0.0, (least[f"fit: {point.case}, replicated"] - by_formula(alike, work, links)) / computing)


def work_of_refresh(point: Point, least: dict[str, float]) -> tuple[Work, float]:
    """What one process computes of a refresh, and its samples, as if all ranks had as many batches as the busiest."""
    encoded, first = (
        [least[f"fit: {REFRESH}, {samples} samples, {part}"] for samples in FITTED_SAMPLES]
        for part in ("encoding", "alone")
    )
    encoding = Line.through(*zip(FITTED_SAMPLES, encoded))
    samples = batches_of_the_busiest(point.batch, point.layout.ranks) * point.batch * point.layout.ranks
    return Work(encoding, alone=power_law(FITTED_SAMPLES, first)(point.batch)), samples


def exchanges_of(point: Point) -> list[Exchange]:
    """What a point sends, by formula."""
    if point.layout.ranks == 1:
        return []
    if point.case == REFRESH:
        return refresh_exchanges(point.batch, point.layout.ranks)
    return exchanges(method_of(point.case), point.layout, point.batch)


def power_law(sizes: tuple[int, int], seconds: Sequence[float]) -> Callable[[float], float]:
    """Through two points: finding neighbours takes more than twice as long for twice as many samples."""
    exponent = math.log(seconds[1] / seconds[0]) / math.log(sizes[1] / sizes[0])
    return lambda samples: seconds[0] * (samples / sizes[0]) ** exponent


def bytes_beside(ranks: Team, point: Point) -> dict[str, Any]:
    """Calls and megabytes of a step of the rank that sends most, computed and counted."""
    if point.case == REFRESH:
        counts = ranks.ask("count_refresh", point.batch)
    else:
        counts = ranks.ask("count", point.case, point.layout.group, point.batch)
    computed = exchanges_of(point)
    return {
        "point": point.name,
        "computed_mb": round(sum(each.sent for each in computed) / 1e6, 3),
        "counted_mb": round(max(sum(sent for _, sent in count.values()) for count in counts) / 1e6, 3),
        "computed_calls": round(sum(each.calls for each in computed)),
        "counted_calls": max(sum(calls for calls, _ in count.values()) for count in counts),
        "counted_by_kind": counts[0],
    }


def told(point: Point, foretold: float, rounds: list[float]) -> dict[str, Any]:
    """A point's predicted and measured milliseconds, and whether the prediction holds."""
    about = {"case": point.case, "ranks": point.layout.ranks, "group": point.layout.group, "batch": point.batch}
    about |= {"throttled": point.throttled, "images_per_second": round(point.batch / min(rounds), 1)}
    return about | judged(foretold, rounds)


def told_message(kind: str, size: int, link: Link, workers: int, seconds: Seconds) -> dict[str, Any]:
    """The same of a message of a size that was not fitted."""
    foretold = link.latency + sent_bytes(kind, size, workers) / link.bytes_per_second
    return {"kind": kind, "bytes": size} | judged(foretold, seconds[f"{kind}, {size} bytes"])


def judged(foretold: float, rounds: list[float]) -> dict[str, Any]:
    """Milliseconds. holds: within 20 % of the least round; within_spread: between the least and the largest round."""
    error = foretold / min(rounds) - 1
    return {
        "predicted_ms": round(1e3 * foretold, 2),
        "measured_ms": round(1e3 * min(rounds), 2),
        "rounds_ms": rounded(rounds),
        "error": round(error, 3),
        "holds": abs(error) <= GOAL,
        "within_spread": min(rounds) <= foretold <= max(rounds),
    }


def rounded(seconds: Sequence[float]) -> list[float]:
    """In milliseconds."""
    return [round(1e3 * each, 2) for each in seconds]


def show(workers: int, section: dict[str, Any]) -> None:
    """Print the points as a table."""
    print(f"\n{workers} workers" + " " * 39 + "predicted ms  measured ms  rounds to ms   error")
    for row in [*section["points"], *section.get("messages", [])]:
        what = (
            f"{row['case']}, group {row['group']}, {row['batch']}"
            if "case" in row
            else f"{row['kind']}, {row['bytes']}"
        )
        what += ", throttled" if row.get("throttled") else ""
        verdict = "" if row["holds"] else ("  within its spread" if row["within_spread"] else "  MISSED")
        most = max(row["rounds_ms"])
        print(f"{what:<48}{row['predicted_ms']:>12}{row['measured_ms']:>13}{most:>14}{row['error']:>+8.1%}{verdict}")
    for row in section.get("bytes", []):
        print(f"{row['point']:<60} {row['computed_mb']} MB computed, {row['counted_mb']} counted")


if __name__ == "__main__":
    main()
