"""Pages whose tables are written from records: between two markers, the tables of the record that the first one names.

<!-- tables of records/digits.json -->
...
<!-- end of tables -->

A list of reproductions in a record's place gives the tables of reproductions.py, its records lying in docs/records:

<!-- tables of repro/tables.yaml -->
...
<!-- end of tables -->
"""

from __future__ import annotations

import re
from pathlib import Path

from moe_dist.errors import UserError
from moe_dist.files import write_text
from moe_dist.grid.record import read_record
from moe_dist.grid.reproductions import reproductions
from moe_dist.grid.tables import result_tables
from moe_dist.plots.tables import to_markdown

END = "<!-- end of tables -->"
_BEGIN = re.compile(r"<!-- tables of (\S+) -->\n")


def write_tables(page: Path) -> int:
    """Write the tables of a Markdown page again, and return how many records they are of."""
    text, count = page_text(page)
    write_text(page, text)
    return count


def page_text(page: Path) -> tuple[str, int]:
    """The page as it should be, and the number of records its tables are of; records are looked for beside the page.

    Raises UserError where the page is not there or holds no marker, and where an end is missing.
    """
    if not page.is_file():
        raise UserError(f"{page}: no such page")
    parts = _BEGIN.split(page.read_text(encoding="utf-8"))
    if len(parts) == 1:
        raise UserError(f"{page}: holds no marker; write <!-- tables of records/NAME.json --> and {END}")
    text = parts[0]
    for name, following in zip(parts[1::2], parts[2::2]):
        _, end, rest = following.partition(END)
        if not end:
            raise UserError(f"{page}: the tables of {name} have no end; write {END} where they end")
        tables = _tables_of(page.parent / name)
        text += f"<!-- tables of {name} -->\n\n{tables}\n{END}{rest}"
    return text, len(parts) // 2


def _tables_of(source: Path) -> str:
    """The tables of a record, or of a list of reproductions."""
    if source.suffix == ".yaml":
        return reproductions(source, source.parents[2] / "docs" / "records")
    return "\n".join(map(to_markdown, result_tables(read_record(source))))
