"""The reliability diagram. Call the function, and save its figure, inside style.style()."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from moe_dist.plots.style import COLOURS, MARKERS, MUTED, new_figure

Bins = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Of each of K bins the mean probability, the share that is right (both NaN where it is empty), its share of all."""


def reliability_diagram(heading: str, series: Mapping[str, Bins]) -> Figure:
    """The share that is right against the probability, above the share of samples, for each of `series` by its name."""
    figure = new_figure(heading, 5.2, 5.6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    above.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1.2, label="probability = share")
    for number, (name, (probability, right, share)) in enumerate(series.items()):
        known = ~np.isnan(probability)
        look = {"color": COLOURS[number], "label": name}
        above.plot(probability[known], right[known], marker=MARKERS[number], **look)
        edges = np.linspace(0, 1, len(share) + 1)
        below.stairs(share, edges, color=COLOURS[number], linewidth=1.6)
    above.set_xlim(-0.02, 1.02)
    above.set_ylim(-0.02, 1.02)
    above.set_ylabel("share that is right")
    above.legend(loc="upper left")
    below.set_ylim(bottom=0)
    below.set_ylabel("share of images")
    below.set_xlabel("probability of the predicted class")
    return figure
