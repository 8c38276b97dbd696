"""The report of a grid: its table as Markdown, CSV and LaTeX, a page that links to its cells."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from html import escape
from pathlib import Path

from moe_dist.files import require_writable, write_text
from moe_dist.grid.cells import name_of
from moe_dist.grid.record import Record, parts_of, record_of
from moe_dist.grid.summary import figures_of
from moe_dist.grid.tables import cells_table, result_tables
from moe_dist.places import FINISHED
from moe_dist.plots.latex import to_latex
from moe_dist.plots.tables import to_html, to_markdown
from moe_dist.report.frame import Section, facts_html, link, listed, whole_page
from moe_dist.settings.grid import SEED

FILES = ("job.yaml", "results.md", "results.csv", "results.tex")
"""Files of a grid's folder that the page links to."""


def build_grid_report(folder: Path) -> Path:
    """Write the report of the grid in `folder`, finished or not, and return its report.html."""
    require_writable(folder, f"the report of {folder}")
    record = record_of(folder)
    tables = result_tables(record)
    write_text(folder / "results.md", "\n".join(map(to_markdown, [*tables, cells_table(record)])))
    write_text(folder / "results.csv", csv_text(record))
    write_text(folder / "results.tex", "\n".join(map(to_latex, tables)))
    page = folder / "report.html"
    write_text(page, _page(record))
    return page


def csv_text(record: Record) -> str:
    """The figures of the grid's table as CSV, one a line, numbers as they are: empty where there is none."""
    axes = [axis for axis in record["axes"] if axis != SEED]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ["metric", "status", "seeds", "mean", "low", "high", "interval", "difference", "difference_low"]
    names += ["difference_high", "p", "difference_test", "paper", "paper_not_comparable"]
    writer.writerow([*axes, *names])
    for part in parts_of(record):
        for figure in (figure for by_metric in figures_of(part).values() for figure in by_metric.values()):
            low, high = figure.interval or (None, None)
            mean, interval, p = figure.difference or (None, None, None)
            line = [figure.metric, figure.status, len(figure.values), figure.mean, low, high, figure.interval_kind]
            line += [mean, *(interval or (None, None)), p, figure.difference_kind]
            line += [figure.printed[name] for name in ("text", "not_comparable")] if figure.printed else [None, None]
            writer.writerow([*(figure.at[axis] for axis in axes), *line])
    return text.getvalue()


def _page(record: Record) -> str:
    """The page as HTML: what failed, the tables, and the cells, each with a link to its report."""
    cells = record["cells"]
    finished = sum(cell["status"] == FINISHED for cell in cells)
    facts = {"Job": escape(record["name"]), "Cells": f"{finished} of {len(cells)} finished"}
    facts["Beside this page"] = ", ".join(link(name, name) for name in FILES)
    status = "" if finished == len(cells) else '<p class="status">This grid is not finished.</p>'
    results = "\n".join(map(to_html, result_tables(record)))
    sections = [
        Section("warnings", "Warnings", listed([*_failed(record)], "warnings")),
        Section("results", "Results", results),
        Section("cells", "Cells", to_html(cells_table(record))),
    ]
    return whole_page(record["title"], "Grid", status + facts_html(facts), sections)


def _failed(record: Record) -> Iterator[str]:
    """The cells that failed, each with its reason."""
    for cell in record["cells"]:
        if "reason" in cell:
            yield f"{name_of(cell['at'])} failed: {cell['reason'].removesuffix('.')}."
