"""The files of rows: as Parquet, and never written by two commands at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pyarrow import parquet

from moe_dist.errors import UserError
from moe_dist.use.parquet import ParquetFile
from moe_dist.use.rows import JsonRows, KeptRows, Row

ROWS = [
    Row("a.png", [("cat", 0.9), ("dog", 0.1)], {"": [0.25, 0.75]}, "cat"),
    Row("b.png", [("dog", 0.5), ("cat", 0.5)], {"": [1.0, 0.0]}, rejected=True),
    Row("c.png", reason="damaged", label="dog"),
]


def kept(out: Path, rows: list[Row]) -> None:
    """What a command that adds `rows` leaves."""
    file = KeptRows(out, JsonRows(), {"model": "m"}, ParquetFile([""]))
    file.add(rows)
    file.finish({})
    file.close()


def test_parquet_has_every_row_as_columns(tmp_path: Path) -> None:
    kept(tmp_path / "rows.parquet", ROWS)
    rows = parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    assert [row["image"] for row in rows] == ["a.png", "b.png", "c.png"]
    assert rows[0]["class"] == "cat" and rows[0]["probability"] == 0.9 and rows[0]["gate"] == [0.25, 0.75]
    assert rows[0]["best"] == [{"class": "cat", "probability": 0.9}, {"class": "dog", "probability": 0.1}]
    assert [row["rejected"] for row in rows] == [False, True, False]
    assert rows[2]["class"] is rows[2]["gate"] is None and rows[2]["reason"] == "damaged" and rows[2]["label"] == "dog"
    assert not (tmp_path / "rows.parquet.part").exists()


def test_a_finished_parquet_file_is_gone_on_with(tmp_path: Path) -> None:
    """It is packed once more, of the rows that it had and the new ones; killed on the way, nothing is lost."""
    out = tmp_path / "rows.parquet"
    kept(out, ROWS[:2])
    again = KeptRows(out, JsonRows(), {"model": "m"}, ParquetFile([""]))
    assert [(row.image, row.label, row.rejected) for row in again.before] == [
        ("a.png", "cat", False),
        ("b.png", None, True),
    ]
    again.close()  # as one that was killed at once
    kept(out, ROWS[2:])
    rows = parquet.read_table(out).to_pylist()
    assert [row["image"] for row in rows] == ["a.png", "b.png", "c.png"]
    kept(tmp_path / "whole.parquet", ROWS)
    assert rows == parquet.read_table(tmp_path / "whole.parquet").to_pylist()


def test_a_file_that_is_no_parquet_any_more_is_said(tmp_path: Path) -> None:
    kept(tmp_path / "rows.parquet", ROWS)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="is not the Parquet file that was written"):
        kept(tmp_path / "rows.parquet", ROWS)


def test_two_commands_do_not_write_to_one_file(tmp_path: Path) -> None:
    out = tmp_path / "folder" / "rows.jsonl"
    first = KeptRows(out, JsonRows(), {"model": "m"})
    with pytest.raises(UserError, match=r"rows.jsonl: another moe-dist predict writes there"):
        KeptRows(out, JsonRows(), {"model": "m"})
    first.add(ROWS)
    first.finish({})
    first.close()
    KeptRows(out, JsonRows(), {"model": "m"}).close()
    lines = (out.with_name("rows.jsonl.part")).read_text().splitlines()
    assert [json.loads(line)["image"] for line in lines] == ["a.png", "b.png", "c.png"]
