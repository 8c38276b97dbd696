"""docs/results.md is what its records say, and tells which of its figures no record has."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hand_made import over_seeds

from moe_dist.errors import UserError
from moe_dist.grid.pages import page_text
from moe_dist.grid.record import read_record, record_text

DOCS = Path(__file__).parents[2] / "docs"
RECORDS = sorted((DOCS / "records").glob("*.json"))
BEFORE = "*Measured before records were kept"


def test_the_tables_of_the_results_are_what_the_records_say() -> None:
    """Where this fails: `moe-dist tables docs/results.md`."""
    text, count = page_text(DOCS / "results.md")
    assert text == (DOCS / "results.md").read_text()
    assert count >= 1


def test_every_record_is_in_the_results() -> None:
    named = set(re.findall(r"<!-- tables of records/(\S+) -->", (DOCS / "results.md").read_text()))
    assert RECORDS and named == {path.name for path in RECORDS}


def test_every_section_of_the_results_says_where_its_tables_are_from() -> None:
    sections = re.split(r"^## ", (DOCS / "results.md").read_text(), flags=re.MULTILINE)[1:]
    with_tables = [section for section in sections if re.search(r"^\|-|^\| -", section, re.MULTILINE)]
    assert len(with_tables) > 5
    for section in with_tables:
        named = ("<!-- tables of", BEFORE, "benchmarks/results", "benchmarks/bank.py")
        assert any(name in section for name in named), section.splitlines()[0]


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.name)
def test_a_record_holds_no_place_of_a_machine(path: Path) -> None:
    record = read_record(path)
    cells = [{name: value for name, value in cell.items() if name != "right"} for cell in record["cells"]]
    places = [text for text in texts({**record, "cells": cells}) if "://" in text or Path(text).is_absolute()]
    assert places == []


def texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts(item)


def test_a_changed_figure_is_seen(tmp_path: Path) -> None:
    record = over_seeds()
    (tmp_path / "made.json").write_text(record_text(record))
    assert read_record(tmp_path / "made.json") == record
    page = tmp_path / "page.md"
    page.write_text("<!-- tables of made.json -->\n<!-- end of tables -->\n")
    page.write_text(page_text(page)[0])
    assert page_text(page)[0] == page.read_text() and "50.00 %" in page.read_text()
    record["cells"][1]["metrics"]["top1"] = 0.9
    (tmp_path / "made.json").write_text(record_text(record))
    assert page_text(page)[0] != page.read_text()


def test_a_record_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "made.json"
    path.write_text(json.dumps(over_seeds() | {"format": 2}))
    with pytest.raises(UserError, match="is a record of format 2, this version reads 1"):
        read_record(path)


def test_tables_are_written_without_ray_deepspeed_and_torch() -> None:
    code = (
        "import sys, moe_dist.grid.pages, moe_dist.grid.report; print({'ray', 'deepspeed', 'torch'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "set()"
