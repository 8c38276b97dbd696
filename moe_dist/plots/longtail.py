"""Figures of long-tailed sets and of the experts of a model, inside style.style().

Letters: N test images, V images that are shown, C classes, E experts, S image side, s map side. `models` holds what is
drawn of each model by its title.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from moe_dist.data.longtail import largest_first
from moe_dist.plots.profile import draw_counts
from moe_dist.plots.style import (
    COLOURS,
    GREYS,
    HEAT,
    INK,
    MARKERS,
    MUTED,
    ON_ACCENT,
    PHOTOGRAPH,
    SEQUENTIAL,
    WIDTH,
    new_figure,
)
from moe_dist.plots.training import Log, epoch_means, mark_stages

PANELS_A_ROW = 3
SHARE = "gradient_share/expert_"
"""Begins the key of a log that holds an expert's share of the gradient; the expert's number follows."""


def _panels(figure: Figure, titles: Sequence[str], **shared: Any) -> Iterator[tuple[str, Axes]]:
    """Add a panel for every title, PANELS_A_ROW beside each other; the rest of the last row stays empty."""
    across = min(PANELS_A_ROW, len(titles))
    grid = figure.subplots(math.ceil(len(titles) / across), across, squeeze=False, **shared)
    for axes in grid.flat[len(titles) :]:
        axes.set_axis_off()
    for title, axes in zip(titles, grid.flat):
        axes.set_title(title)
        yield title, axes


def _look(number: int) -> tuple[str, str]:
    """The colour and the marker of the model or class `number`; the pair repeats only after 7 times 7 numbers."""
    return COLOURS[number % len(COLOURS)], MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]


def gradient_shares(heading: str, models: Mapping[str, Log]) -> Figure:
    """Each expert's share of the gradient by epoch (ICL's Figures 1 and 3a), with a panel for every model's log."""
    figure = new_figure(heading, 0.9 + 2.7 * math.ceil(len(models) / PANELS_A_ROW))
    for place, (title, axes) in enumerate(_panels(figure, list(models), sharey=True)):
        log = [record for record in models[title] if f"{SHARE}0" in record]
        epochs = list(dict.fromkeys((record["stage"], record["epoch"]) for record in log))
        experts = sorted({int(key.removeprefix(SHARE)) for record in log for key in record if key.startswith(SHARE)})
        for expert in experts:
            line = epoch_means(log, epochs, f"{SHARE}{expert}")
            axes.plot(*line, color=_look(expert)[0], linewidth=1.4, label=f"expert {expert}")
        axes.axhline(1 / len(experts), color=MUTED, linestyle="--", linewidth=1, label="equal shares")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        mark_stages(axes, [stage for stage, _ in epochs])
        if place % PANELS_A_ROW == 0:
            axes.set_ylabel("share of the gradient")
    _one_legend(figure)
    return figure


def _one_legend(figure: Figure) -> None:
    """Put one legend below all panels, with every label once."""
    named: dict[str, Any] = {}
    for axes in figure.axes:
        named |= dict(zip(*reversed(axes.get_legend_handles_labels())))
    figure.legend(named.values(), named.keys(), loc="outside lower left", ncols=min(6, len(named)))


def divergence_by_class(heading: str, counts: np.ndarray, models: Mapping[str, np.ndarray]) -> Figure:
    """How far the experts' predictions lie apart in each class, the largest class first (ICL's Figure 3b).

    counts: training images [C]; models: divergence [C] in nats.
    """
    figure = new_figure(heading, 3.8)
    axes = figure.subplots()
    order = largest_first(counts)
    for number, (title, divergence) in enumerate(models.items()):
        colour, marker = _look(number)
        places = np.arange(1, len(order) + 1)
        axes.plot(places, divergence[order], color=colour, marker=marker, markersize=3, linewidth=1.2, label=title)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("KL divergence, nats")
    _class_numbers(axes, len(order))
    _one_legend(figure)
    return figure


def _class_numbers(axes: Axes, classes: int) -> None:
    """Number the classes along the x axis, the largest first."""
    axes.set_xlim(0.5, classes + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("classes, the one of most training images first")


def accuracy_under_profile(
    heading: str, counts: np.ndarray, models: Mapping[str, np.ndarray], groups: Mapping[str, np.ndarray]
) -> Figure:
    """The training images of every class, and below them each model's accuracy there, both the largest class first.

    counts: training images [C]; models: accuracy [C], NaN for a class without test images, which gets no mark; groups:
    class numbers by the group's name. A bar marks the mean over the classes of a group.
    """
    figure = new_figure(heading, 5.2)
    profile, axes = figure.subplots(2, 1, sharex=True, height_ratios=[1, 1.6])
    draw_counts(profile, counts, dict(zip(("many", "medium", "few"), GREYS)))  # the models have the colours
    profile.legend(loc="upper right", fontsize=8)
    order = largest_first(counts)
    places = np.argsort(order) + 1
    for number, (title, accuracy) in enumerate(models.items()):
        colour, marker = _look(number)
        size = 16 if len(order) <= 200 else 4
        axes.scatter(places, accuracy, s=size, color=colour, marker=marker, alpha=0.45, linewidth=0, label=title)
        for classes in groups.values():
            known = accuracy[classes][~np.isnan(accuracy[classes])]
            ends = places[classes].min() - 0.4, places[classes].max() + 0.4
            if len(known):
                axes.hlines(known.mean(), *ends, color=colour, linewidth=2.4)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel("accuracy")
    axes.grid(axis="x", visible=False)
    _class_numbers(axes, len(order))
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=min(6, len(models)))
    return figure


def schedule_grid(heading: str, top1: Mapping[tuple[int, int], float]) -> Figure:
    """Top-1, by (t_AD, t_CL), as a heat map (ICL's Figure 4). A pair that was not run stays empty."""
    rows, columns = sorted({ad for ad, _ in top1}), sorted({cl for _, cl in top1})
    shares = np.array([[top1.get((ad, cl), math.nan) for cl in columns] for ad in rows])
    width = min(WIDTH, 4 + 0.85 * len(columns))
    figure = new_figure(heading, 1.8 + 0.5 * len(rows), width)
    axes = figure.subplots()
    image = axes.imshow(100 * shares, cmap=SEQUENTIAL, aspect="auto")
    full = np.nanmin(shares) + 0.75 * (np.nanmax(shares) - np.nanmin(shares))
    for (row, column), share in np.ndenumerate(shares):
        if not math.isnan(share):
            colour = ON_ACCENT if share > full else INK
            axes.text(column, row, f"{100 * share:.2f}", ha="center", va="center", fontsize=8.5, color=colour)
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks(range(len(columns)), [str(column) for column in columns])
    axes.set_yticks(range(len(rows)), [str(row) for row in rows])
    axes.set_xlabel("$t_{CL}$: epoch from which CCL is on", parse_math=True)
    axes.set_ylabel("$t_{AD}$: epochs with AD", parse_math=True)
    figure.colorbar(image, ax=axes, label="top-1, %")
    return figure


def feature_maps(heading: str, models: Mapping[str, Mapping[str, np.ndarray]], names: Sequence[str]) -> Figure:
    """t-SNE points of test images, coloured by class (ICL's Figure 5), with a panel for every model.

    models: points [V, 2] and labels [V]. The classes are named in the order in which they occur in the labels.
    """
    figure = new_figure(heading, 0.9 + 3.1 * math.ceil(len(models) / PANELS_A_ROW))
    for title, axes in _panels(figure, list(models)):
        points, labels = models[title]["points"], models[title]["labels"]
        for number, label in enumerate(dict.fromkeys(labels.tolist())):
            colour, marker = _look(number)
            x, y = points[labels == label].T
            look: Any = {"s": 9, "color": colour, "marker": marker, "linewidth": 0, "alpha": 0.8}
            axes.scatter(x, y, label=names[label], **look)
        axes.grid(visible=False)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_aspect("equal", "datalim")
    _one_legend(figure)
    return figure


def grad_cam(heading: str, looked_at: Mapping[str, np.ndarray], titles: Sequence[str], names: Sequence[str]) -> Figure:
    """Images, and beside each the maps of where every expert sees its true class (ICL's Figure 6).

    looked_at: images [V, 3, S, S] uint8, cams [V, E, s, s] and predicted classes [V, E]; titles: of the V images. Below
    a map stands the class that the expert predicts. Every map is scaled by its own maximum.
    """
    images, cams = looked_at["images"], looked_at["cams"]
    across = cams.shape[1] + 1
    size = min(1.1, (WIDTH - 1.2) / across)
    figure = new_figure(heading, 0.8 + (size + 0.25) * len(images))
    grid = figure.subplots(len(images), across, squeeze=False)
    for row, (image, own_cams) in enumerate(zip(images.transpose(0, 2, 3, 1), cams)):
        grid[row, 0].set_ylabel(titles[row], rotation=0, ha="right", va="center")
        for column, axes in enumerate(grid[row]):
            axes.grid(visible=False)
            axes.spines[:].set_visible(False)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.imshow(image, interpolation=PHOTOGRAPH)
            if column:
                overlay(axes, own_cams[column - 1], len(image))
                axes.set_xlabel(names[looked_at["predicted"][row, column - 1]], fontsize=8, color=MUTED)
    for column, axes in enumerate(grid[0]):
        axes.set_title(f"expert {column - 1}" if column else "image")
    return figure


def overlay(axes: Axes, cam: np.ndarray, side: int) -> None:
    """Draw the map [s, s], interpolated, over an image of `side` pixels; the image shows through where the map is 0."""
    share = cam / (cam.max() or 1)
    edges = (-0.5, side - 0.5, side - 0.5, -0.5)
    axes.imshow(share, cmap=HEAT, vmin=0, vmax=1, alpha=0.75 * share, interpolation="bicubic", extent=edges)
