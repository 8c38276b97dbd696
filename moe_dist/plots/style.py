"""The look of every figure: fonts, sizes, colours that colour-blind readers can tell apart, headings, class names."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure

from moe_dist.files import whole_file

WIDTH = 9.0
"""Width of a figure, in inches."""
LETTERS_PER_INCH = 10
"""Number of a heading's letters that fit into an inch."""
INK = "#22272e"
MUTED = "#6b7480"
GRID = "#e4e7eb"
ACCENT = "#0072b2"

# Okabe and Ito's palette, the yellow left out: it is too light for a line on white.
COLOURS = (ACCENT, "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK)
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
SEQUENTIAL = LinearSegmentedColormap.from_list("covering", [(*to_rgb(ACCENT), 0.0), (*to_rgb(ACCENT), 1.0)])
"""Colours of a heat map: the more there is, the less of the page shows through, whether it is white or dark."""
ON_ACCENT = "#fefefe"
"""Letters on a full cell of a heat map."""
FULL = 0.6
"""From this share of the largest value on a cell, whose colour follows the root, counts as full."""
GREYS = ("#4a525c", "#8d96a1", "#c6ccd3")
HEAT = "inferno"
"""Colours of a map over a photograph; no blue sky looks like them."""
PHOTOGRAPH = "auto"
"""Photographs are brought to the size they are drawn at, so that a large one does not make the file large."""

_SETTINGS: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib: the same picture on every machine
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
    "savefig.dpi": 150,
    "svg.hashsalt": "moe-dist",  # or names inside the file are drawn by chance
    "image.interpolation": "none",  # the cells of a heat map stay cells at any size
    "text.parse_math": False,  # a class may be called "$5 off"
}


@contextmanager
def style() -> Iterator[None]:
    """Apply the look inside the block. Draw and save in it: matplotlib reads some settings only when it saves."""
    with matplotlib.rc_context(_SETTINGS):
        yield


def new_figure(heading: str, height: float, width: float = WIDTH) -> Figure:
    """An empty figure under its heading; sizes in inches."""
    figure = Figure(figsize=(width, height))
    unbroken = heading.replace("n = ", "n\u00a0=\u00a0")
    figure.suptitle(textwrap.fill(unbroken, int(LETTERS_PER_INCH * width)), x=0.01, horizontalalignment="left")
    return figure


def save_figure(figure: Figure, path: Path, form: Literal["png", "svg"] = "png") -> None:
    """Write a figure to `path`; equal figures give equal bytes."""
    with whole_file(path, lasting=False) as partial:
        figure.savefig(partial, format=form, metadata={"Date" if form == "svg" else "Software": None})


def class_ticks(axes: Axes, names: list[str], which: str) -> None:
    """Name the classes (or experts) along axis `which`, "x" or "y". Many get smaller letters; none is left out."""
    size = 9 if len(names) <= 20 else 7 if len(names) <= 60 else 4.5
    shown = [name if len(name) <= 24 else name[:23] + "…" for name in names]
    if which == "y":
        axes.set_yticks(range(len(names)), shown, fontsize=size)
    else:
        # Upright where they would touch side by side. Both widths are in points, and rough: the layout is not known
        # yet.
        taken, width = 0.62 * size * len(names) * max(map(len, shown)), 0.8 * 72 * axes.bbox.width / axes.figure.dpi
        axes.set_xticks(range(len(names)), shown, fontsize=size, rotation=90 if taken > width else 0)
