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
import yaml
from hand_made import over_seeds

from moe_dist.errors import UserError
from moe_dist.grid.pages import page_text
from moe_dist.grid.record import read_record, record_text
from moe_dist.grid.reproductions import reproductions
from moe_dist.job import load_job
from moe_dist.shipped import job_file

DOCS = Path(__file__).parents[2] / "docs"
RECORDS = sorted((DOCS / "records").glob("*.json"))
BEFORE = "*Measured before records were kept"


def test_the_tables_of_the_results_are_what_the_records_say() -> None:
    """Where this fails: `moe-dist tables docs/results.md`."""
    text, count = page_text(DOCS / "results.md")
    assert text == (DOCS / "results.md").read_text()
    assert count >= 1


def test_the_table_of_jobs_is_what_the_papers_and_the_records_say() -> None:
    """Where this fails: `moe-dist tables jobs/README.md`."""
    page = DOCS.parent / "jobs" / "README.md"
    text, _ = page_text(page)
    assert text == page.read_text()


def rows_of_reproductions() -> list[dict[str, Any]]:
    listing = DOCS.parent / "jobs" / "repro" / "tables.yaml"
    return [row for about in yaml.safe_load(listing.read_text()) for row in about["rows"]]


def test_every_table_and_figure_that_is_asked_for_has_a_job_that_trains_its_models() -> None:
    rows = rows_of_reproductions()
    for row in rows:
        job = load_job(job_file(row["job"]))
        names = {*job.methods, *(config.name for config in job.models.values())}
        beside = {"idec", "dec"} if "method.name" in row["what"] else set()
        assert set(row.get("models", ())) - beside <= names, row
        for setting in row["set"]:
            load_job(job_file(row["job"]), [setting.replace("PATH", "somewhere")])
    tables = [(row["job"].partition("/")[0], row["table"]) for row in rows]
    wanted = {"dfcp": "3", "icl": "1234", "edcwrn": "35678", "repro": "345", "gmm_moe": "234"}
    figures = {"dfcp": [1], "icl": [1, 3, 4, 5, 6], "edcwrn": [*range(7, 14)], "gmm_moe": [5, 6, 7, 8]}
    assert {(paper, f"Table {number}") for paper, numbers in wanted.items() for number in numbers} <= set(tables)
    assert {(paper, f"Figure {number}") for paper, numbers in figures.items() for number in numbers} <= set(tables)


def test_our_figure_stands_beside_the_papers_in_the_table_of_jobs(tmp_path: Path) -> None:
    row = {"table": "Table 4", "what": "parts", "job": "x", "set": [], "key": "icl/table4", "metric": "top1"}
    run, not_run = row | {"models": ["moe", "icl"], "record": "made.json"}, row | {"models": ["icl"]}
    listing = tmp_path / "tables.yaml"
    listing.write_text(yaml.safe_dump([{"paper": "Theirs", "rows": [run, not_run]}]))
    record = over_seeds()
    for cell in record["cells"]:
        cell["at"]["method"] = {"one": "moe", "two": "single"}[cell["at"]["method"]]
    record |= {"axes": record["axes"] | {"method": ["moe", "single"]}, "against": {"method": "moe"}}
    (tmp_path / "made.json").write_text(record_text(record))
    lines = reproductions(listing, tmp_path).splitlines()
    assert lines[0] == "### Theirs"
    assert lines[4] == (
        "| Table 4 | parts | `moe-dist run jobs/x.yaml` | MoE 54.42 %; MoE + CoL + DOL (ICL) 57.59 % | "
        "MoE 30.00 % (5.16 % to 54.84 %); the others not run |"
    )
    assert lines[5].endswith("| MoE + CoL + DOL (ICL) 57.59 % | not run |")
    with pytest.raises(UserError, match=r"gone\.yaml: no such list"):
        reproductions(tmp_path / "gone.yaml", tmp_path)


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
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
