"""The figures of a grid's table, as numbers: means over seeds, intervals, and differences from the row of comparison.

They follow from the record alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from moe_dist.grid.record import Record, right_images
from moe_dist.grid.state import NOT_RUN, UNFINISHED
from moe_dist.metrics.classification import Interval, mean_interval
from moe_dist.metrics.paired import Paired, mcnemar, paired_over_seeds
from moe_dist.places import FAILED, FINISHED
from moe_dist.settings.grid import SEED

T_INTERVAL, WILSON, PAIRED_T, MCNEMAR = "t", "wilson", "paired t", "mcnemar"


UNLIKE_FINISHED = (FAILED, UNFINISHED, NOT_RUN)
"""How a cell without figures ended, the most telling first."""


@dataclass(frozen=True)
class Figure:
    """One metric at one place of the table, over all seeds.

    at: the names on all axes but the seed; cells: how each seed's run ended, by seed; values: the metric by seed, where
    there is one; interval and interval_kind: of the mean by Student's t over seeds, of a single seed's top-1 Wilson's
    over test images; difference and difference_kind: from the row of comparison, by Student's paired t over the seeds
    that both have, or, of a single seed's top-1, by McNemar's test over test images; printed: what a paper has there.
    """

    at: Mapping[str, str]
    metric: str
    cells: Mapping[str, str]
    values: Mapping[str, float]
    interval: Interval | None = None
    interval_kind: str = ""
    difference: Paired | None = None
    difference_kind: str = ""
    printed: Mapping[str, str] | None = None

    @property
    def mean(self) -> float | None:
        """The mean over the seeds that have a value."""
        return sum(self.values.values()) / len(self.values) if self.values else None

    @property
    def status(self) -> str:
        """`finished`, or how the cells ended: the first of failed, unfinished and not run that occurs."""
        return next((status for status in UNLIKE_FINISHED if status in self.cells.values()), FINISHED)


def figures_of(record: Record) -> dict[tuple[str, ...], dict[str, Figure]]:
    """Every figure of the table, by its names on the axes (seed excepted) and by metric; left-out cells have none."""
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for cell in record["cells"]:
        groups.setdefault(_key(record, cell["at"]), []).append(cell)
    found: dict[tuple[str, ...], dict[str, Figure]] = {}
    for key, cells in groups.items():
        theirs = groups.get(_key(record, {**cells[0]["at"], **record["against"]}), []) if record["against"] else []
        compared = theirs if theirs and theirs is not cells else []
        found[key] = {metric: _figure(metric, cells, compared) for metric in record["metrics"]}
    return found


def combinations(record: Record, axes: Sequence[str]) -> list[tuple[str, ...]]:
    """The names on these axes that occur together in a cell, in the axes' order."""
    there = {tuple(cell["at"][axis] for axis in axes) for cell in record["cells"]}
    return [names for names in product(*(record["axes"][axis] for axis in axes)) if names in there]


def _key(record: Record, at: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(at[axis] for axis in record["axes"] if axis != SEED)


def _figure(metric: str, cells: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> Figure:
    """The figure of the cells of one place; theirs: those of the row of comparison, none where there is no such."""
    values = _values(metric, cells)
    interval, kind = None, ""
    if len(values) >= 2:
        interval, kind = mean_interval([*values.values()])[1], T_INTERVAL
    elif values and metric == "top1":
        (metrics,) = [cell["metrics"] for cell in cells if metric in cell.get("metrics", {})]
        interval, kind = Interval(metrics["top1_low"], metrics["top1_high"]), WILSON
    difference, difference_kind = _difference(metric, cells, theirs)
    at = {axis: name for axis, name in cells[0]["at"].items() if axis != SEED}
    return Figure(
        at=at,
        metric=metric,
        cells={cell["at"][SEED]: cell["status"] for cell in cells},
        values=values,
        interval=interval,
        interval_kind=kind,
        difference=difference,
        difference_kind=difference_kind,
        printed=cells[0]["paper"].get(metric),
    )


def _values(metric: str, cells: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The metric by seed, of the cells that have it."""
    return {cell["at"][SEED]: cell["metrics"][metric] for cell in cells if metric in cell.get("metrics", {})}


def _difference(
    metric: str, cells: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]
) -> tuple[Paired | None, str]:
    """The difference of the cells from theirs over the seeds that both have, and how it was tested."""
    ours, other = _values(metric, cells), _values(metric, theirs)
    seeds = [seed for seed in ours if seed in other]
    if not seeds:
        return None, ""
    if len(seeds) > 1 or metric != "top1":
        paired = paired_over_seeds([ours[seed] for seed in seeds], [other[seed] for seed in seeds])
        return paired, PAIRED_T if len(seeds) > 1 else ""
    one, another = (next(cell for cell in group if cell["at"][SEED] == seeds[0]) for group in (cells, theirs))
    right, their_right = right_images(one), right_images(another)
    if right is None or their_right is None or one["test_split"] != another["test_split"]:
        return paired_over_seeds([ours[seeds[0]]], [other[seeds[0]]]), ""
    return mcnemar(right, their_right), MCNEMAR
