"""The table over several runs of one job that differ in their seed: means and their confidence intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from moe_dist.errors import UserError
from moe_dist.metrics.classification import mean_interval
from moe_dist.plots.tables import ABSENT, Column, Row, Table
from moe_dist.report.run import RunDirectory
from moe_dist.report.tables import SECTIONS, Metrics, within_bounds

WHERE_DATA_IS = {"source", "shards", "decode", "hold", "loader_workers", "remote"}
"""Fields of a job's `data` that do not change a result (hold: what decode is called in older runs)."""


def seeds_table(runs: Sequence[tuple[RunDirectory, Metrics]]) -> Table:
    """The mean and its 95 % t interval of each metric over runs of one job that differ in their seed.

    Raises UserError for fewer than two runs, for runs of different jobs and for a seed that occurs twice.
    """
    _require_one_job([run for run, _ in runs])
    first = runs[0][0]
    rows = [
        Row(
            heading,
            tuple(
                _mean_cell([metrics.get(f"{model}/{key}") for _, metrics in runs], key, write) for model in first.models
            ),
        )
        for lines in SECTIONS
        for key, heading, write in lines
    ]
    return Table(
        title=f"{first.job['name']}: mean over {len(runs)} seeds, test split of {first.record['dataset']}",
        columns=tuple(Column(model.title, "") for model in first.models.values()),
        rows=tuple(row for row in rows if set(row.cells) != {ABSENT}),
        notes=(
            f"Seeds {', '.join(str(run.job['seed']) for run, _ in runs)}; in brackets the 95 % Student-t interval of "
            "the mean, cut where the metric ends.",
            *_gains(runs),
        ),
        corner="Metric",
    )


def _gains(runs: Sequence[tuple[RunDirectory, Metrics]]) -> list[str]:
    """Sentences on how much better the first model is than each other one, seed by seed, if all runs evaluated both."""
    models = runs[0][0].models
    first, *others = models
    lines = []
    for other in others:
        if not all({f"{first}/top1", f"{other}/top1"} <= metrics.keys() for _, metrics in runs):
            continue
        gains = [metrics[f"{first}/top1"] - metrics[f"{other}/top1"] for _, metrics in runs]
        mean, interval = mean_interval(gains)
        lines.append(
            f"Top-1 of {models[first].title} minus {models[other].title}, seed by seed: {100 * mean:+.2f} points "
            f"({100 * interval.low:+.2f} to {100 * interval.high:+.2f})."
        )
    return lines


def _require_one_job(runs: Sequence[RunDirectory]) -> None:
    """Raise UserError unless the runs are of one job and differ in their seed, and in nothing that changes a result."""

    def settings(run: RunDirectory) -> dict[str, Any]:
        data = {field: value for field, value in run.job["data"].items() if field not in WHERE_DATA_IS}
        return {"data": data, "method": run.job.get("method"), "methods": run.job.get("methods")}

    names = {run.job["name"] for run in runs}
    seeds = [run.job["seed"] for run in runs]
    if len(runs) < 2 or len(names) > 1 or len(set(seeds)) < len(seeds):
        raise UserError(
            f"a table over seeds needs two or more runs of one job, each with its own seed; "
            f"given: jobs {', '.join(sorted(names))}, seeds {', '.join(map(str, seeds))}"
        )
    for run in runs[1:]:
        ours, theirs = settings(run), settings(runs[0])
        other = [field for field in ours if ours[field] != theirs[field]]
        if other:
            raise UserError(
                f"{run.path} and {runs[0].path}: their jobs differ in {', '.join(other)}, not in the seed alone; "
                "compare their job.yaml, and give runs of equal settings"
            )


def _mean_cell(values: Sequence[float | None], key: str, write: Callable[[float], str]) -> str:
    """The mean and its interval as `write` formats them; the mark of an absent figure if a run lacks the value."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return ABSENT
    mean, whole = mean_interval(known)
    interval = within_bounds(whole, key, write)
    return f"{write(mean)} ({write(interval.low)} to {write(interval.high)})"
