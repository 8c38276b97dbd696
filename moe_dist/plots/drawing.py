"""A figure of a report, before and after it is saved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moe_dist.plots.tables import About

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Drawing:
    """A figure to be saved as `name`.svg. heading: what is seen, of which data; caption: how to read it."""

    name: str
    heading: str
    caption: str
    figure: Figure
    about: About = "method"


@dataclass(frozen=True)
class Picture:
    """A figure that is saved at `path`; `width` is a share of the text's width."""

    path: Path
    width: float
    heading: str
    caption: str
    about: About
