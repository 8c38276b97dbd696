"""Figures of a deep clustering. Call the functions, and save their figures, inside style.style().

Letters: Q clusters, D numbers of a code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from moe_dist.plots.style import COLOURS, SEQUENTIAL, WIDTH, new_figure


def code_weights(heading: str, models: Mapping[str, np.ndarray]) -> Figure:
    """The weights [Q, D] of the numbers of a code in each cluster, a heat map a model, all on one scale."""
    largest = max(float(weights.max()) for weights in models.values())
    rows = max(len(weights) for weights in models.values())
    figure = new_figure(heading, 1.6 + 0.22 * rows, min(WIDTH, 2 + 3.2 * len(models)))
    panels = figure.subplots(1, len(models), squeeze=False)[0]
    for axes, (title, weights) in zip(panels, models.items()):
        image = axes.imshow(weights, cmap=SEQUENTIAL, vmin=0, vmax=largest, aspect="auto")
        axes.grid(visible=False)
        axes.set_title(title)
        axes.set_xlabel("number of the code")
        axes.set_ylabel("cluster")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(image, ax=list(panels), label="weight")
    return figure


def by_refresh(heading: str, models: Mapping[str, Mapping[str, tuple[Sequence[int], Sequence[float]]]]) -> Figure:
    """What was measured whenever the target was updated: a panel a measure, a line a model.

    models: by the model's title, measure -> (steps, values).
    """
    measures = list(dict.fromkeys(measure for curves in models.values() for measure in curves))
    figure = new_figure(heading, 3.4)
    for axes, measure in zip(figure.subplots(1, len(measures), squeeze=False)[0], measures):
        for number, (title, curves) in enumerate(models.items()):
            if measure in curves:
                colour, dots = COLOURS[number % len(COLOURS)], "o" if len(curves[measure][0]) == 1 else ""
                axes.plot(*curves[measure], color=colour, marker=dots, label=title)
        axes.set_title(measure)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))  # steps are long numbers in a narrow plot
    figure.axes[0].legend()
    return figure
