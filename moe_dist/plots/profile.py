"""Figures of a dataset: the images of every class, also by the groups many, medium and few, and some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from moe_dist.data.longtail import FEW_BELOW, MANY_ABOVE, shot_groups
from moe_dist.plots.style import COLOURS, MUTED, PHOTOGRAPH, new_figure, save_figure, style

_GROUPS = {"many": f"many (> {MANY_ABOVE})", "medium": "medium", "few": f"few (< {FEW_BELOW})"}
_COLOURS = {"many": COLOURS[0], "medium": COLOURS[2], "few": COLOURS[1]}
_FLOOR = 0.8
"""Lower end of the logarithmic scale of counts; a class of one image can still be seen."""


def class_profile(heading: str, counts: np.ndarray) -> Figure:
    """The images [C] of every class as steps on a logarithmic scale, the largest first, coloured by group."""
    figure = new_figure(heading, 3.6)
    axes = figure.subplots()
    draw_counts(axes, counts, _COLOURS)
    axes.set_xlabel("classes, the largest first")
    figure.legend(loc="outside lower left", ncols=3, fontsize=8.5, handlelength=1.2, columnspacing=1.5)
    return figure


STRIPS_A_ROW = 3
GAP = 1
"""Pixels between two sample images of a class."""


def sample_images(heading: str, images: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Figure:
    """Some images [V, 3, S, S] uint8 of every class of labels [V], those of a class side by side below its name."""
    shown = list(dict.fromkeys(labels.tolist()))
    across, side = min(STRIPS_A_ROW, len(shown)), images.shape[-1]
    most = int(np.bincount(labels).max())
    rows = -(-len(shown) // across)
    figure = new_figure(heading, 0.6 + rows * (0.35 + 8.4 / (STRIPS_A_ROW * most)))
    grid = figure.subplots(rows, across, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, label in zip(grid.flat, shown):
        strip = np.zeros((side, most * (side + GAP) - GAP, 4), np.uint8)  # transparent where there is no image
        for number, image in enumerate(images[labels == label]):
            left = number * (side + GAP)
            strip[:, left : left + side, :3] = image.transpose(1, 2, 0)
            strip[:, left : left + side, 3] = 255
        axes.imshow(strip, interpolation=PHOTOGRAPH)
        axes.set_title(names[label], fontsize=8.5)
    return figure


def draw_counts(axes: Axes, counts: np.ndarray, colours: Mapping[str, str]) -> None:
    """Draw the steps of `class_profile` into `axes`, coloured by group; the n-th largest class stands at n, from 1."""
    first = 1
    for name, classes in shot_groups(counts).items():
        if len(classes):
            label = f"{_GROUPS[name]}: {len(classes):,} classes, {counts[classes].sum():,} images"
            edges = np.arange(first, first + len(classes) + 1) - 0.5
            axes.stairs(
                np.sort(counts[classes])[::-1], edges, baseline=_FLOOR, fill=True, color=colours[name], label=label
            )
            first += len(classes)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    for bound in (FEW_BELOW, MANY_ABOVE):
        axes.axhline(bound, color=MUTED, linewidth=0.8, linestyle=":")
    axes.set_xlim(0.5, len(counts) + 0.5)
    axes.set_ylim(_FLOOR, 1.3 * max(counts.max(), 1))
    axes.grid(axis="x", visible=False)
    axes.set_ylabel("images")


def save_class_profile(path: Path, heading: str, counts: np.ndarray) -> None:
    """Write `class_profile` to `path` as a PNG."""
    with style():
        save_figure(class_profile(heading, counts), path)
