"""What papers print for a cell of a grid, and why a figure does not compare with the cell's where it does not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from moe_dist.grid.cells import Cell, grid_of, lies_in
from moe_dist.job import Job
from moe_dist.report.paper import PaperTable, paper_table
from moe_dist.settings.grid import METHOD, PaperFigure


def papers_of(job: Job) -> list[PaperFigure]:
    """What the job names of papers: its paper_table, which is for all cells, and then those of its grid."""
    everywhere = [PaperFigure(table=job.paper_table)] if job.paper_table else []
    return [*everywhere, *grid_of(job).paper]


def printed_for(job: Job, cell: Cell) -> dict[str, dict[str, str]]:
    """By metric, what is printed for the cell: `text`, `source`, `note`, and `not_comparable`, the reason ("": none).

    Where several figures are printed for one, the last one in the job counts.
    """
    found: dict[str, dict[str, str]] = {}
    settings = cell.job.model_dump(mode="json")
    for paper in papers_of(job):
        if not lies_in(cell.at, paper.where):
            continue
        if paper.table is None:
            assert paper.figure is not None
            differs = "; ".join(_differences(paper, None, settings))
            about = {"source": paper.source, "note": "", "not_comparable": differs}
            found |= {metric: {"text": paper.figure, **about} for metric in paper.metrics or grid_of(job).metrics[:1]}
            continue
        table = paper_table(paper.table, paper.column)
        if (column := column_of(job, cell, table)) is None:
            continue
        differs = "; ".join(_differences(paper, table, settings))
        about = {"source": table.source, "note": table.note, "not_comparable": differs}
        rows = {metric: table.rows[metric] for metric in paper.metrics or table.rows if metric in table.rows}
        found |= {metric: {"text": row[column], **about} for metric, row in rows.items() if column in row}
    return found


def column_of(job: Job, cell: Cell, table: PaperTable) -> str | None:
    """The table's column of the cell's model: the one of its name; else its method's, unless another model has that."""
    name, method = cell.at[METHOD], next(iter(cell.job.models))
    columns = (name,) if method in job.methods else (name, method)
    return next((column for column in columns if column in table.titles), None)


def _differences(paper: PaperFigure, table: PaperTable | None, settings: Mapping[str, Any]) -> Iterator[str]:
    """Why the cell of these settings does not compare with the figure."""
    data = settings["data"]
    if table is not None and table.dataset != data["dataset"]:
        yield f"data {data['dataset']}, the paper's {table.dataset}"
    if data["max_train_images"] or data["max_test_images"]:
        yield "only a part of the images"
    wanted = {**(table.settings if table else {}), **paper.settings}
    for field, value in wanted.items():
        ours = _value(settings, field)
        if ours not in (value if isinstance(value, list) else [value]):
            theirs = " or ".join(map(str, value)) if isinstance(value, list) else value
            yield f"{field} {ours}, the paper's {theirs}"
    if paper.not_comparable:
        yield paper.not_comparable


def _value(settings: Mapping[str, Any], field: str) -> Any:
    """The value of a field a.b.c; None where there is no such field."""
    value: Any = settings
    for part in field.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
