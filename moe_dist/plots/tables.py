"""A table of text cells, and how it is written for a terminal, as Markdown and as HTML.

A column of a paper's figures is marked in all three.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

About = Literal["results", "training", "classes", "experts", "method", "data"]
"""What a table or figure is about: its section of a report. `method`: what only its method has."""
PAPER_MARK = "†"
ABSENT = "–"
"""Text of a cell whose figure does not exist."""


def percent(share: float) -> str:
    """A fraction in per cent, with two decimals as in the papers' tables."""
    return f"{100 * share:.2f} %"


@dataclass(frozen=True)
class Column:
    """A column `name` below a heading `group` that neighbouring columns may share.

    paper: its figures are those of a paper, for the model of the column before it.
    """

    group: str
    name: str
    paper: bool = False


@dataclass(frozen=True)
class Row:
    """A row: its heading and one cell a column. begins_section: a line is drawn above it.

    link: what the heading leads to on a page.
    """

    heading: str
    cells: tuple[str, ...]
    begins_section: bool = False
    link: str = ""


@dataclass(frozen=True)
class Table:
    """A table. corner: heading of the row headings; notes: below the table; left: cells are text, not figures.

    sorts: its rows are alike, and a page lets a reader sort them; about: the section of a report that it stands in.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    corner: str = ""
    left: bool = False
    sorts: bool = False
    about: About = "results"


def to_rich(table: Table) -> RichTable:
    """The table for a terminal. Cells are plain text, never console markup.

    A paper's figures get a line of their own below ours, so that the table fits into 80 columns.
    """
    caption = Text("\n".join(table.notes))
    rich = RichTable(
        title=Text(table.title), title_justify="left", caption=caption, caption_justify="left", box=SIMPLE_HEAD
    )
    rich.add_column(Text(table.corner))
    for column in table.columns:
        if not column.paper:
            rich.add_column(Text(f"{column.group}\n{column.name}".strip()), justify="left" if table.left else "right")
    for row, following in zip(table.rows, (*table.rows[1:], None)):
        ends = following is not None and following.begins_section
        ours = [cell for column, cell in zip(table.columns, row.cells) if not column.paper]
        papers = _papers_line(table, row)
        rich.add_row(Text(row.heading), *map(Text, ours), end_section=ends and not papers)
        if papers:
            rich.add_row(Text(f"  {PAPER_MARK} paper"), *map(Text, papers), style="dim italic", end_section=ends)
    return rich


def _papers_line(table: Table, row: Row) -> list[str]:
    """The paper's figures of a row, each in the column of ours before it; empty if the row has none."""
    line: list[str] = []
    for column, cell in zip(table.columns, row.cells):
        if column.paper:
            line[-1] = cell
        else:
            line.append("")
    return line if set(line) - {"", ABSENT} else []


def to_markdown(table: Table) -> str:
    """The table as GitHub Markdown, with its title above and its notes below."""
    names = [", ".join(part for part in (column.group, column.name) if part) for column in table.columns]
    ruler = ["---"] + ["---" if table.left else "---:"] * len(table.columns)
    lines = [[table.corner, *names], ruler, *([row.heading, *row.cells] for row in table.rows)]
    body = "\n".join("| " + " | ".join(_markdown_cell(cell) for cell in line) + " |" for line in lines)
    notes = "\n".join(f"- {note}" for note in table.notes)
    return f"**{table.title}**\n\n{body}\n" + (f"\n{notes}\n" if notes else "")


def _markdown_cell(text: str) -> str:
    """The text on one line, unable to end its cell or to open an HTML tag."""
    return escape(" ".join(text.split()), quote=False).replace("|", "\\|")


def to_html(table: Table) -> str:
    """The table as an HTML fragment: <div class="table"> with a caption, and its notes. Every text is escaped."""
    body = "\n".join(_html_row(table, row) for row in table.rows)
    notes = "".join(f"<li>{sentence_html(note)}</li>" for note in table.notes)
    return (
        f'<div class="table"><table class="{"texts" if table.left else "figures"}{" sorts" if table.sorts else ""}">'
        f"<caption>{escape(table.title)}</caption>\n<thead>{_html_head(table)}</thead>\n<tbody>\n{body}\n</tbody></table>"
        "</div>\n" + (f'<ul class="notes">{notes}</ul>' if notes else "")
    )


def sentence_html(text: str) -> str:
    """Plain text as HTML; what stands between backticks is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _html_head(table: Table) -> str:
    """The row of column names, below a row of groups if there are any."""
    groups = "".join(
        f'<th scope="colgroup" colspan="{len(list(columns))}">{escape(group)}</th>'
        for group, columns in groupby(table.columns, key=lambda column: column.group)
    )
    has_groups = any(column.group for column in table.columns)
    has_names = any(column.name for column in table.columns)
    corner = f'<th rowspan="{has_groups + has_names}">{escape(table.corner)}</th>'
    names = "".join(f'<th scope="col"{_css(column)}>{escape(column.name)}</th>' for column in table.columns)
    lines = ([groups] if has_groups else []) + ([names] if has_names else [])
    return "".join(f"<tr>{corner if number == 0 else ''}{line}</tr>" for number, line in enumerate(lines))


def _html_row(table: Table, row: Row) -> str:
    cells = "".join(f"<td{_css(column)}>{escape(cell)}</td>" for column, cell in zip(table.columns, row.cells))
    section = ' class="section"' if row.begins_section else ""
    heading = f'<a href="{escape(row.link)}">{escape(row.heading)}</a>' if row.link else escape(row.heading)
    return f'<tr{section}><th scope="row">{heading}</th>{cells}</tr>'


def _css(column: Column) -> str:
    return ' class="paper"' if column.paper else ""
