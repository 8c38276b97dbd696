"""The figures that papers print (paper.yaml), which a report shows beside those of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

import yaml

from moe_dist.errors import UserError


@dataclass(frozen=True)
class PaperTable:
    """One printed table.

    dataset: what it was measured on; note: what a reader must know before comparing; titles: the paper's name of each
    column; rows: metric -> column -> the figure as printed. A column is named after a model of a job, or after a method
    for models that have no column of their own.
    """

    source: str
    dataset: str
    note: str
    titles: Mapping[str, str]
    rows: Mapping[str, Mapping[str, str]]


def paper_table(key: str) -> PaperTable:
    """The table called `key`, for example dfcp/table3. Raises UserError, with the choices, if there is none."""
    tables = yaml.safe_load((files("moe_dist.report") / "paper.yaml").read_text(encoding="utf-8"))
    if key not in tables:
        raise UserError(f"paper_table: no table is called {key!r}; choose one of {', '.join(sorted(tables))}")
    return PaperTable(**tables[key])
