"""Figures of classes, clusters and gates. Call the functions, and save their figures, inside style.style().

Letters: N test images, C classes, E experts. `heading` stands above the figure: what is seen, of which data, and n.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from moe_dist.plots.style import (
    ACCENT,
    COLOURS,
    FULL,
    GRID,
    INK,
    MARKERS,
    MUTED,
    ON_ACCENT,
    SEQUENTIAL,
    WIDTH,
    class_ticks,
    new_figure,
)

ROWS_PER_PANEL = 24
LARGEST_ANNOTATED = 12
"""Largest number of classes whose counts are written into the figure; more are shown by colour or height alone."""


def precision_by_class(heading: str, names: Sequence[str], models: Mapping[str, np.ndarray]) -> Figure:
    """DFCP-MoE's Figure 1 as a dot plot: the precision of each class, for every model.

    models: precision [C] by the model's title, NaN for a class that it never predicts, which becomes a cross at the
    left. Many classes are divided over up to three panels.
    """
    panels = min(3, math.ceil(len(names) / ROWS_PER_PANEL))
    rows = math.ceil(len(names) / panels)
    figure = new_figure(heading, 1.4 + rows * (0.13 + 0.07 * len(models)))
    known = np.concatenate([precision[~np.isnan(precision)] for precision in models.values()])
    left = max(0.0, math.floor(20 * known.min() - 0.5) / 20) if len(known) else 0.0
    parts = np.array_split(np.arange(len(names)), panels)
    for axes, classes in zip(figure.subplots(1, panels, squeeze=False)[0], parts):
        _precision_panel(axes, classes, models, left)
        class_ticks(axes, [names[c] for c in classes], "y")
        axes.set_xlim(left - 0.02 * (1 - left), 1 + 0.02 * (1 - left))
        axes.set_xlabel("precision")
        axes.set_ylim(len(classes) - 0.5, -0.5)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=len(models))
    return figure


def _precision_panel(axes: Axes, classes: np.ndarray, models: Mapping[str, np.ndarray], left: float) -> None:
    """Draw the marks of `classes` into a panel, the models set apart within a row so that equal ones stay visible."""
    for row in range(0, len(classes), 2):
        axes.axhspan(row - 0.5, row + 0.5, color=GRID, alpha=0.4, linewidth=0)
    axes.grid(axis="y", visible=False)
    offsets = (np.arange(len(models)) - (len(models) - 1) / 2) * 0.24
    for number, (title, precision) in enumerate(models.items()):
        values, rows = precision[classes], np.arange(len(classes)) + offsets[number]
        colour = COLOURS[number % len(COLOURS)]
        look: Any = {"s": 22, "color": colour, "zorder": 3, "clip_on": False}
        axes.scatter(values, rows, marker=MARKERS[number % len(MARKERS)], label=title, **look)
        never = np.isnan(values)
        axes.scatter(np.full(never.sum(), left), rows[never], marker="x", **look)


def radius_scan(
    heading: str, scan: Sequence[Mapping[str, Any]], chosen: float | None, stage1_davies_bouldin: float
) -> Figure:
    """Davies-Bouldin index (lower is better), coverage and purity against the radius of the second stage.

    scan: radius, davies_bouldin, coverage and purity of each radius. None is a gap in the line: the index where a
    radius leaves a single cluster, the purity where no true label is known. chosen: the radius that was taken, None if
    the first stage was kept.
    """
    figure = new_figure(heading, 3.6)
    index_axes, share_axes = figure.subplots(1, 2)
    radii = [row["radius"] for row in scan]
    index = [math.nan if row["davies_bouldin"] is None else row["davies_bouldin"] for row in scan]
    index_axes.plot(radii, index, marker="o", color=COLOURS[0], label="second stage")
    index_axes.axhline(stage1_davies_bouldin, color=MUTED, linestyle="--", linewidth=1.2, label="first stage")
    index_axes.set_title("Davies-Bouldin index (lower is better)")
    for number, name in enumerate(("coverage", "purity")):
        values = [math.nan if row[name] is None else row[name] for row in scan]
        share_axes.plot(radii, values, marker=MARKERS[number], color=COLOURS[number + 1], label=name)
    share_axes.set_title("Coverage and purity")
    share_axes.set_ylim(-0.03, 1.03)
    for axes in (index_axes, share_axes):
        axes.set_xlabel("radius")
        axes.set_xticks(radii)
        if chosen is not None:
            axes.axvline(chosen, color=MUTED, linestyle=":", linewidth=1.4, label=f"chosen: {chosen:g}")
        axes.legend()
    return figure


def class_bars(heading: str, counts: np.ndarray, names: Sequence[str], along: str) -> Figure:
    """The images [C] of every class as bars with the classes' `names`; `along` says what they are the classes of."""
    figure = new_figure(heading, 3.2)
    axes = figure.subplots()
    bars = axes.bar(range(len(counts)), counts, color=ACCENT, width=0.75)
    if len(counts) <= LARGEST_ANNOTATED:
        axes.bar_label(bars, [f"{count:,}" for count in counts], fontsize=8, color=MUTED, padding=2)
    class_ticks(axes, list(names), "x")
    axes.grid(axis="x", visible=False)
    axes.set_xlim(-0.6, len(counts) - 0.4)
    axes.set_xlabel(along)
    axes.set_ylabel("images")
    return figure


def confusion(
    heading: str, counts: np.ndarray, names: Sequence[str], columns: str, column_names: Sequence[str] | None = None
) -> Figure:
    """A confusion matrix [C, columns] of counts, coloured by the shares of each row, which is a true class.

    The colour follows the square root of the share, so that a single error in a hundred can be seen. columns: what the
    matrix's columns are, written below them; column_names: their names, by default those of the classes.
    """
    width = 5.6 if len(names) <= 20 else WIDTH
    figure = new_figure(heading, 0.87 * width, width)
    axes = figure.subplots()
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    image = axes.imshow(shares, cmap=SEQUENTIAL, norm=PowerNorm(0.5, 0, 1))
    if len(names) <= LARGEST_ANNOTATED:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = ON_ACCENT if shares[row, column] > FULL else INK
                axes.text(column, row, f"{count:,}", ha="center", va="center", fontsize=8, color=colour)
    _matrix_axes(axes, names)
    class_ticks(axes, list(names if column_names is None else column_names), "x")
    axes.set_xlabel(columns)
    axes.set_ylabel("true class")
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class", ticks=[0, 0.01, 0.1, 0.25, 0.5, 1])
    return figure


def _matrix_axes(axes: Axes, names: Sequence[str]) -> None:
    """Name the classes down the side of a heat map, and draw no grid lines over it."""
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    class_ticks(axes, list(names), "y")


def gate_load(heading: str, gate: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Figure:
    """The mean gate weight of each expert, over all test images (above) and over those of each class (below).

    gate: weights [N, E]; labels: classes [N]. A class without a test image is an empty row.
    """
    experts = gate.shape[1]
    rows = len(names)
    by_class = np.full((rows, experts), np.nan)
    for c in np.unique(labels):
        by_class[c] = gate[labels == c].mean(axis=0)
    figure = new_figure(heading, 2.6 + max(2.6, min(6.5, 0.28 * rows)))
    bars, heat = figure.subplots(2, 1, sharex=True, height_ratios=[1, max(2.5, min(5.0, 0.2 * rows))])
    bars.bar(range(experts), gate.mean(axis=0), color=ACCENT, width=0.75)
    bars.axhline(1 / experts, color=MUTED, linestyle="--", linewidth=1.2, label=f"equal load, 1/{experts}")
    bars.legend(loc="upper right", fontsize=8)
    bars.margins(y=0.35)
    bars.set_ylabel("mean weight")
    bars.grid(axis="x", visible=False)
    image = heat.imshow(by_class, cmap=SEQUENTIAL, norm=PowerNorm(0.5, 0, 1), aspect="auto")
    _matrix_axes(heat, names)
    class_ticks(heat, [str(expert) for expert in range(experts)], "x")
    heat.set_xlabel("expert")
    heat.set_ylabel("true class")
    figure.colorbar(image, ax=heat, label="mean gate weight", ticks=[0, 0.01, 0.1, 0.25, 0.5, 1])
    return figure
