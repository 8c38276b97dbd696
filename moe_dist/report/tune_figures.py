"""The figures of a search: the learning curves of the best trials, and the best score so far against trials."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from moe_dist.plots.charts import WIDTH
from moe_dist.plots.style import ACCENT, MUTED
from moe_dist.report.drawing import Drawing
from moe_dist.report.run import RunDirectory
from moe_dist.report.tune import SearchRecord, searches

HEIGHT = 3.4


def draw_searches(run: RunDirectory) -> Iterator[Drawing]:
    """The figures of every search of a run that ended; none for other kinds of job."""
    for record in searches(run):
        if any(study["best"] is not None for study in record.content["studies"].values()):
            yield _learning_curves(run, record)
            yield _best_so_far(run, record)


def _learning_curves(run: RunDirectory, record: SearchRecord) -> Drawing:
    heading = f"Learning curves of the best trials (validation split of {run.record['dataset']})"
    studies = [study for study in record.content["studies"].values() if study["best"] is not None]
    curves = [study["trials"][study["best"]]["curve"] for study in studies]
    return Drawing(
        f"{record.label}_search_curves",
        heading,
        f"One thin line for the best trial of each of {len(studies)} studies, the thick line is their median.",
        _lines(heading, "epoch", [([point[0] for point in curve], [point[1] for point in curve]) for curve in curves]),
    )


def _best_so_far(run: RunDirectory, record: SearchRecord) -> Drawing:
    heading = f"Best score so far (validation split of {run.record['dataset']})"
    lines = [_running_best(study) for study in record.content["studies"].values()]
    return Drawing(
        f"{record.label}_search_progress",
        heading,
        "The best score among the first trials of a study, a thin line each; the thick line is their median. The first "
        "trials are the job's own configuration and Table 1's trend, where the search began with them.",
        _lines(heading, "trials", lines),
    )


def _running_best(study: Mapping[str, Any]) -> tuple[list[int], list[float]]:
    """Trials so far, and the best score of those that were trained to the last epoch: 0 before there is one."""
    scores = [trial["curve"][-1][1] if trial["state"] == "finished" else 0.0 for trial in study["trials"]]
    return list(range(1, len(scores) + 1)), list(accumulate(scores, max))


def _lines(heading: str, along: str, lines: list[tuple[list[int], list[float]]]) -> Figure:
    figure = Figure(figsize=(WIDTH, HEIGHT))
    figure.suptitle(heading, x=0.01, ha="left")
    axes: Axes = figure.subplots()
    for places, values in lines:
        axes.plot(places, values, color=MUTED, alpha=0.45, linewidth=0.8)
    common = sorted(set.intersection(*(set(places) for places, _ in lines)))
    median = [float(np.median([values[places.index(place)] for places, values in lines])) for place in common]
    axes.plot(common, median, color=ACCENT, linewidth=2.2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(along)
    axes.set_ylabel("score")
    return figure
