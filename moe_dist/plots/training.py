"""Figures of values that change with the epochs of a training or the trials of a search, inside style.style()."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from moe_dist.plots.style import ACCENT, COLOURS, MUTED, new_figure

Log = Sequence[Mapping[str, Any]]
"""The records of a training's log: stage, epoch, step and values by name."""


def training_curves(heading: str, log: Log) -> Figure:
    """Loss terms (mean over each epoch's logged steps), validation loss and validation scores, by epoch.

    Without a validation the loss terms stand alone. Epochs are counted through all stages, and a dotted line marks
    where a stage ends.
    """
    epochs = epochs_of(log)
    terms = sorted({key for record in log for key in record if key.startswith("loss/")})
    scores = sorted({key for record in log for key in record if key.startswith("val/") and key != "val/loss"})
    figure = new_figure(heading, 3.6)
    losses, *beside = figure.subplots(1, 2 if scores else 1, squeeze=False)[0]
    for number, key in enumerate(terms):
        line = epoch_means(log, epochs, key)
        alone = "o" if len(line[0]) == 1 else ""  # a single epoch makes no line
        losses.plot(*line, color=COLOURS[number % len(COLOURS)], marker=alone, label=key.removeprefix("loss/"))
    if any("val/loss" in record for record in log):
        losses.plot(*epoch_means(log, epochs, "val/loss"), color=MUTED, linestyle="--", label="validation")
    losses.set_title("Loss")
    if all(value > 0 for line in losses.lines for value in np.asarray(line.get_ydata())):
        _log_scale(losses)
    losses.legend()
    for axes in beside:
        for number, key in enumerate(scores):
            look: Any = {"color": ACCENT if len(scores) == 1 else COLOURS[number % len(COLOURS)], "markersize": 3}
            axes.plot(*epoch_means(log, epochs, key), marker="o", label=key.removeprefix("val/"), **look)
        axes.set_title(f"{_words(scores)} on the validation split")
        if len(scores) > 1:
            axes.legend()
    for axes in (losses, *beside):
        mark_stages(axes, [stage for stage, _ in epochs])
    return figure


def curves_of_models(heading: str, models: Mapping[str, Log]) -> Figure:
    """Training and validation of every model by epoch: losses on the left, its score on validation on the right.

    models: logs by the models' titles. A whole line is the objective, a broken one the validation loss. Without a
    validation the losses stand alone.
    """
    scored = [key for key in map(score_of, models.values()) if key]
    figure = new_figure(heading, 3.8)
    losses, *beside = figure.subplots(1, 2 if scored else 1, squeeze=False)[0]
    for number, (title, log) in enumerate(models.items()):
        epochs = epochs_of(log)
        colour = COLOURS[number % len(COLOURS)]
        objective = epoch_means(log, epochs, "loss")
        losses.plot(*objective, color=colour, marker="o" if len(objective[0]) == 1 else "", label=title)
        losses.plot(*epoch_means(log, epochs, "val/loss"), color=colour, linestyle="--", linewidth=1.4)
        for axes in beside:
            if key := score_of(log):
                axes.plot(*epoch_means(log, epochs, key), color=colour, marker="o", markersize=3)
    losses.set_title("Loss: training (whole line), validation (broken line)" if scored else "Loss")
    for axes in beside:
        axes.set_title(f"{_words(scored)} on the validation split")
    if all(value > 0 for line in losses.lines for value in np.asarray(line.get_ydata())):
        _log_scale(losses)
    for axes in (losses, *beside):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside lower left", ncols=min(5, len(models)))
    return figure


def epochs_of(log: Log) -> list[tuple[str, int]]:
    """The epochs (stage, epoch) of a log in their order."""
    return list(dict.fromkeys((record["stage"], record["epoch"]) for record in log))


def score_of(log: Log) -> str | None:
    """The key of the score on validation that a log is looked at by: top-1 where it is there; None without any."""
    keys = sorted({key for record in log for key in record if key.startswith("val/") and key != "val/loss"})
    return "val/top1" if "val/top1" in keys else next(iter(keys), None)


def _words(scores: Sequence[str]) -> str:
    """The name of the scores, of `val/NAME` each, if it is one."""
    if set(scores) == {"val/top1"}:
        return "Top-1 accuracy"
    return scores[0].removeprefix("val/").replace("_", " ").capitalize() if len(set(scores)) == 1 else "Scores"


def _log_scale(axes: Axes) -> None:
    """Make the y axis logarithmic, labelled with plain numbers: several even if the values span less than a decade."""
    axes.set_yscale("log")
    values = [value for line in axes.lines for value in np.asarray(line.get_ydata())]
    wide = max(values, default=1) > 1000 * min(values, default=1)
    axes.yaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())


def epoch_means(log: Log, epochs: Sequence[tuple[str, int]], key: str) -> tuple[list[int], list[float]]:
    """The numbers, from 1, of those `epochs` (stage, epoch) whose records have `key`, and its mean in each of them.

    A step that is logged twice counts once.
    """
    steps: dict[tuple[str, int], dict[int, float]] = {}
    for record in log:
        if key in record:
            steps.setdefault((record["stage"], record["epoch"]), {})[record["step"]] = record[key]
    known = [(number, steps[epoch]) for number, epoch in enumerate(epochs, 1) if epoch in steps]
    return [number for number, _ in known], [float(np.mean(list(values.values()))) for _, values in known]


def mark_stages(axes: Axes, stages: Sequence[str]) -> None:
    """Draw a dotted line between two stages, with their names on either side. stages: the stage of every epoch."""
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(stages) == 1:
        axes.set_xticks([1])
    look: Any = {"va": "top", "transform": axes.get_xaxis_transform(), "color": MUTED, "fontsize": 8}
    for number, (stage, following) in enumerate(pairwise(stages), 1):
        if stage != following:
            axes.axvline(number + 0.5, color=MUTED, linestyle=":", linewidth=1.2)
            axes.text(number + 0.5, 1.0, f"{stage} ", ha="right", **look)
            axes.text(number + 0.5, 1.0, f" {following}", ha="left", **look)


def score_curves(heading: str, along: str, curves: Sequence[tuple[list[int], list[float]]]) -> Figure:
    """The scores of several studies as thin lines, and their median as a thick one.

    curves: places on the horizontal axis, which `along` names, and the scores there. The median is drawn at the places
    that all curves have.
    """
    figure = new_figure(heading, 3.4)
    axes = figure.subplots()
    for places, scores in curves:
        axes.plot(places, scores, color=MUTED, alpha=0.45, linewidth=0.8)
    common = sorted(set.intersection(*(set(places) for places, _ in curves)))
    median = [float(np.median([scores[places.index(place)] for places, scores in curves])) for place in common]
    axes.plot(common, median, color=ACCENT, linewidth=2.2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(along)
    axes.set_ylabel("score")
    return figure
