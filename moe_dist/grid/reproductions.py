"""Which job makes which table of the papers, with the papers' figures and ours: the table of jobs/README.md.

It follows from a list (jobs/repro/tables.yaml), the papers' data and the committed records.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_dist.errors import UserError
from moe_dist.grid.record import read_record
from moe_dist.grid.state import NOT_RUN
from moe_dist.grid.summary import Figure, figures_of
from moe_dist.grid.tables import NOT_COMPARABLE, written
from moe_dist.plots.tables import ABSENT
from moe_dist.report.paper import paper_table
from moe_dist.settings.grid import METHOD
from moe_dist.yaml_core import load_yaml

HEADER = "| table | what | command | paper | ours |\n|---|---|---|---|---|\n"


def reproductions(listing: Path, records: Path) -> str:
    """A Markdown table for each paper of the list. records: the folder of the records that it names."""
    if not listing.is_file():
        raise UserError(f"{listing}: no such list; correct the marker that names it")
    parts = [
        f"### {about['paper']}\n\n{HEADER}" + "".join(_line(row, records) for row in about["rows"])
        for about in load_yaml(listing.read_text(encoding="utf-8"))
    ]
    return "\n".join(parts)


def _line(row: Mapping[str, Any], records: Path) -> str:
    settings = "".join(f" --set {setting}" for setting in row["set"])
    command = f"`moe-dist run jobs/{row['job']}.yaml{settings}`"
    return f"| {row['table']} | {row['what']} | {command} | {_papers(row)} | {_ours(row, records)} |\n"


def _papers(row: Mapping[str, Any]) -> str:
    """The paper's figure of each model; of a plot there is none."""
    if "key" not in row:
        return ABSENT
    table = paper_table(row["key"])
    return "; ".join(f"{table.titles[model]} {table.rows[row['metric']][model]}" for model in row["models"])


def _ours(row: Mapping[str, Any], records: Path) -> str:
    """The mean over seeds of each model that the record has, with its interval; or that the job was not run."""
    if "record" not in row:
        return NOT_RUN
    record, titles = read_record(records / row["record"]), paper_table(row["key"]).titles
    measured = {
        figure.at[METHOD]: written(record, figure) + _mark(figure)
        for by_metric in figures_of(record).values()
        for metric, figure in by_metric.items()
        if metric == row["metric"] and figure.mean is not None
    }
    found = [f"{titles[model]} {measured[model]}" for model in row["models"] if model in measured]
    missing = "" if len(found) == len(row["models"]) else f"the others {NOT_RUN}" if found else NOT_RUN
    return "; ".join([*found, *filter(None, [missing])])


def _mark(figure: Figure) -> str:
    return f" ({NOT_COMPARABLE})" if figure.printed and figure.printed["not_comparable"] else ""
