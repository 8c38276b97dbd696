"""The figures that papers print (methods/*/paper.yaml), which a report shows beside those of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moe_dist.errors import UserError
from moe_dist.methods.registry import method_report, method_reports
from moe_dist.methods.reporting import MethodReport
from moe_dist.yaml_core import load_yaml


@dataclass(frozen=True)
class PaperTable:
    """One printed table.

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


def paper_table(key: str) -> PaperTable:
    """The table called `key`, for example dfcp/table3. Raises UserError, with the choices, if there is none."""
    report = method_report(key.partition("/")[0])
    tables = _tables(report) if report else {}
    if key not in tables:
        choices = sorted(name for report in method_reports().values() for name in _tables(report))
        raise UserError(f"paper_table: no table is called {key!r}; choose one of {', '.join(choices)}")
    return PaperTable(**tables[key])


def _tables(report: MethodReport) -> dict[str, Any]:
    return load_yaml(report.papers.read_text(encoding="utf-8")) if report.papers else {}
