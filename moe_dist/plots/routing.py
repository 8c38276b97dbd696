"""Figures of gates that route the places of feature maps, inside style.style().

Letters: V images that are shown, E experts, S image side, s map side. A log is a training's metrics.jsonl.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moe_dist.plots.longtail import overlay
from moe_dist.plots.style import COLOURS, HEAT, MUTED, PHOTOGRAPH, WIDTH, new_figure
from moe_dist.plots.training import Log, epoch_means, mark_stages

GATE_NUMBERS = {"entropy": "entropy of the gate", "separation": "separation", "blend": "a", "residual": "w_r"}
"""Number in a log, after its tap -> what a panel calls it."""


def responsibility_maps(
    heading: str,
    images: np.ndarray,
    titles: Sequence[str],
    cams: np.ndarray | None,
    largest: Mapping[str, np.ndarray],
) -> Figure:
    """Images, Grad-CAM beside each, and each tap's largest responsibility at every place (the paper's Figure 7).

    images [V, 3, S, S] uint8; titles: of the V images; cams [V, s, s], or None; largest [V, s, s] by tap, drawn from
    its smallest to its largest value in each image.
    """
    across = 1 + (cams is not None) + len(largest)
    size = min(1.3, (WIDTH - 1.2) / across)
    figure = new_figure(heading, 0.8 + (size + 0.15) * len(images))
    grid = figure.subplots(len(images), across, squeeze=False)
    for row, image in enumerate(images.transpose(0, 2, 3, 1)):
        grid[row, 0].set_ylabel(titles[row], rotation=0, ha="right", va="center")
        shown: list[Axes] = list(grid[row])
        for axes in shown:
            _bare(axes)
            axes.imshow(image, interpolation=PHOTOGRAPH)
        if cams is not None:
            overlay(shown[1], cams[row], len(image))
        for axes, maps in zip(shown[across - len(largest) :], largest.values()):
            edges = (-0.5, len(image) - 0.5, len(image) - 0.5, -0.5)
            axes.imshow(maps[row], cmap=HEAT, alpha=0.6, interpolation=PHOTOGRAPH, extent=edges)
    for axes, name in zip(grid[0], ["image", *(["Grad-CAM"] if cams is not None else []), *largest]):
        axes.set_title(name, fontsize=8)
    return figure


def _bare(axes: Axes) -> None:
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_xticks([])
    axes.set_yticks([])


def gates_by_epoch(heading: str, log: Log, taps: Sequence[str]) -> Figure:
    """What the gates told while they were trained, a panel for each of GATE_NUMBERS and a line for every tap."""
    records = [record for record in log if record["kind"] == "step"]
    epochs = list(dict.fromkeys((record["stage"], record["epoch"]) for record in records))
    panels = [name for name in GATE_NUMBERS if any(f"{tap}/{name}" in records[0] for tap in taps)]
    figure = new_figure(heading, 0.9 + 2.4 * math.ceil(len(panels) / 2))
    grid = figure.subplots(math.ceil(len(panels) / 2), 2, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, name in zip(grid.flat, panels):
        axes.set_title(GATE_NUMBERS[name])
        for number, tap in enumerate(taps):
            if f"{tap}/{name}" in records[0]:
                line = epoch_means(records, epochs, f"{tap}/{name}")
                axes.plot(*line, color=COLOURS[number % len(COLOURS)], linewidth=1.4, label=tap)
        mark_stages(axes, [stage for stage, _ in epochs])
        if name == "entropy":
            axes.axhline(1, color=MUTED, linestyle="--", linewidth=1)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower left", ncols=min(3, len(taps)))
    return figure
