"""The report of a grid: its table as Markdown, CSV and LaTeX, a page that links to its cells, and its record."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from moe_dist import __version__
from moe_dist.files import require_writable, write_text
from moe_dist.grid.cells import name_of
from moe_dist.grid.record import Record, parts_of, record_of, record_text
from moe_dist.grid.state import CELLS
from moe_dist.grid.summary import figures_of
from moe_dist.grid.tables import cells_table, result_tables
from moe_dist.places import FINISHED
from moe_dist.plots.latex import to_latex
from moe_dist.plots.tables import to_html, to_markdown
from moe_dist.settings.grid import SEED


def build_grid_report(folder: Path, record_file: Path | None = None) -> Path:
    """Write the report of the grid in `folder`, finished or not, and return its report.html.

    record_file: where its record is written as well.
    """
    for written in (folder, *([record_file.parent] if record_file else [])):
        require_writable(written, f"the report of {folder}")
    record = record_of(folder)
    tables = result_tables(record)
    write_text(folder / "results.md", "\n".join(map(to_markdown, [*tables, cells_table(record)])))
    write_text(folder / "results.csv", csv_text(record))
    write_text(folder / "results.tex", "\n".join(map(to_latex, tables)))
    if record_file is not None:
        write_text(record_file, record_text(record))
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
    """The page as HTML: the tables, and a link to the report of each cell."""
    results = "\n".join(map(to_html, result_tables(record)))
    sections = [f'<section id="results">\n<h2>Results</h2>\n{results}\n</section>']
    sections.append(f'<section id="cells">\n<h2>Cells</h2>\n{to_html(cells_table(record))}\n{_links(record)}</section>')
    finished = sum(cell["status"] == FINISHED for cell in record["cells"])
    facts = {"Job": record["name"], "Cells": f"{finished} of {len(record['cells'])} finished"}
    folder = files("moe_dist.report")
    return Template((folder / "page.html").read_text(encoding="utf-8")).substitute(
        title=escape(record["title"]),
        kind="Grid",
        css=(folder / "page.css").read_text(encoding="utf-8"),
        status="" if finished == len(record["cells"]) else '<p class="status">This grid is not finished.</p>',
        scores="",
        facts="".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in facts.items()),
        sections="\n".join(sections),
        version=escape(__version__),
    )


def _links(record: Record) -> str:
    """Links to the reports of the finished cells."""

    def links() -> Iterator[str]:
        for cell in record["cells"]:
            if cell["status"] == FINISHED:
                name = name_of(cell["at"])
                yield f'<li><a href="{CELLS}/{name}/report.html">{name}</a></li>'

    return f'<ul class="notes">{"".join(links())}</ul>'
