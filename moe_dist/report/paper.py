"""The figures that papers print (methods/*/paper.yaml), which a report shows beside those of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

from moe_dist.errors import UserError
from moe_dist.methods.registry import method_report, method_reports
from moe_dist.methods.reporting import MethodReport
from moe_dist.yaml_core import load_yaml

EMPTY = ("–", "-")
"""What papers print in a cell without a figure."""


@dataclass(frozen=True)
class Printed:
    """A table as a paper prints it: by row, and by measure ("" where there is one alone), a text for each column.

    notes: where the paper contradicts itself.
    """

    caption: str
    columns: tuple[str, ...]
    rows: Mapping[str, Mapping[str, tuple[str, ...]]]
    notes: tuple[str, ...] = ()

    def cell(self, one: str, other: str, measure: str = "") -> str:
        """The text where a row and a column meet, whichever of the two names is the row's; "" where there is none."""
        for row, column in ((one, other), (other, one)):
            if row in self.rows and column in self.columns:
                text = self.rows[row][measure][self.columns.index(column)]
                return "" if text in EMPTY else text
        return ""


@dataclass(frozen=True)
class PaperTable:
    """What of a paper stands beside the figures of a run.

    dataset: what it was measured on; note: what a reader must know before comparing; titles: the paper's name of each
    column; rows: metric -> column -> the figure as printed. A column is named after a model of a job, or after a method
    for models that have no column of their own. settings: what it was measured with, by field of a job
    (`data.imbalance: 100`); a grid marks cells with other values as not comparable.
    """

    source: str
    dataset: str
    note: str
    titles: Mapping[str, str]
    rows: Mapping[str, Mapping[str, str]]
    settings: Mapping[str, Any] = field(default_factory=dict)


def paper_table(key: str, column: str = "") -> PaperTable:
    """The table called `key`, for example dfcp/table3. Raises UserError, with the choices, if there is none.

    column: of the printed table, for a key that stands for any of them (edcwrn/table5_mnist: "Speckle 0.05").
    """
    report = method_report(key.partition("/")[0])
    content = _content(report) if report else {"tables": {}}
    if key not in content["tables"]:
        known = sorted(name for report in method_reports().values() for name in _content(report)["tables"])
        raise UserError(f"paper_table: no table is called {key!r}; choose one of {', '.join(known)}")
    about, printed = dict(content["tables"][key]), _printed(content)
    of, rows = about.pop("of", {}), about.pop("rows")
    open_ones = [row["at"][0] for row in rows.values() if "at" in row and row["at"][1] is None]
    choices = {name for table in open_ones for name in printed[table].columns}
    if column not in (choices or {""}):
        mend = f"choose of {', '.join(sorted(choices))}" if choices else "leave it out"
        raise UserError(f"{key}: column = {column!r}: {mend}")
    return PaperTable(**about, rows={metric: _figures(row, of, printed, column) for metric, row in rows.items()})


def printed_tables(method: str) -> Mapping[str, Printed]:
    """The tables of the method's paper, as printed, by name: table1, table2, ..."""
    report = method_report(method)
    return _printed(_content(report)) if report else {}


def _figures(
    row: Mapping[str, Any], of: Mapping[str, str], printed: Mapping[str, Printed], column: str
) -> dict[str, str]:
    """The figures of one metric, by column: cells of a printed table, and what the paper's text says."""
    found: dict[str, str] = {}
    if "at" in row:
        table, name, *measure = row["at"]
        for title, line in row.get("by", of).items():
            if text := printed[table].cell(line, name or column, *measure):
                found[title] = _written(text, row.get("as", ""))
    return found | row.get("said", {})


def _written(text: str, how: str) -> str:
    """A printed cell as reports write such figures: percent (57.6 %), share (96.6 as 0.966) or time (~51 ms)."""
    if how == "percent":
        return f"{text.removesuffix('%')} %"
    if how == "time":
        return text.replace("~ ", "~").replace("ms", " ms").replace("Hours", "h")
    return str(Decimal(text).scaleb(-2)) if how == "share" else text


def _printed(content: Mapping[str, Any]) -> dict[str, Printed]:
    return {
        name: Printed(
            about["caption"],
            tuple(about["columns"]),
            {row: _cells(cells) for row, cells in about["rows"].items()},
            tuple(about.get("notes", ())),
        )
        for name, about in content["printed"].items()
    }


def _cells(row: str | Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    measures = row if isinstance(row, Mapping) else {"": row}
    return {measure: tuple(cell.strip() for cell in text.split("|")) for measure, text in measures.items()}


def _content(report: MethodReport) -> Mapping[str, Any]:
    """The content of the paper's file; no tables where a method has no paper."""
    return _read(report.papers) if report.papers else {"printed": {}, "tables": {}}


@cache
def _read(papers: Path) -> Mapping[str, Any]:
    """Read once: a grid asks for every cell."""
    return load_yaml(papers.read_text(encoding="utf-8"))
