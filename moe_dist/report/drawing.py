"""A figure before it is saved, and what all headings say of the data."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.figure import Figure

from moe_dist.report.run import RunDirectory


@dataclass(frozen=True)
class Drawing:
    """A figure before it is saved as `name`.png."""

    name: str
    heading: str
    caption: str
    figure: Figure


def test_split(run: RunDirectory) -> str:
    """The data of a figure of test images, and how many there are."""
    return f"{run.record['dataset']}, test split, n = {run.record['counts']['test']:,}"
