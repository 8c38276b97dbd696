"""A record that grows: seeds of one grid run in two folders, and what of an earlier record does not belong to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_grids import small_grid
from small_jobs import quiet

from moe_dist.errors import UserError
from moe_dist.grid.grown import Grown, write_record
from moe_dist.grid.record import read_record
from moe_dist.grid.run import run_grid
from moe_dist.grid.tables import result_tables
from moe_dist.job import Job
from moe_dist.plots.tables import to_markdown


@pytest.fixture(autouse=True)
def no_reports_of_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports of cells take longer than these cells."""
    monkeypatch.setattr("moe_dist.report.build.build_report", lambda path: path)


def grid(seeds: list[int], **more: Any) -> Job:
    return small_grid({"data": {}, "seeds": seeds}, **more)


def ran(job: Job, folder: Path) -> Path:
    run_grid(job, folder, "local", quiet())
    return folder


def tables(file: Path) -> list[str]:
    """The record's tables, without the seconds that cells took."""
    record = read_record(file)
    timeless = {**record, "cells": [{**cell, "seconds": 1.0} for cell in record["cells"]]}
    return [to_markdown(table) for table in result_tables(timeless)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same grid, whole and a seed at a time, as on two machines."""
    place = tmp_path_factory.mktemp("grids")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moe_dist.report.build.build_report", lambda path: path)
        seeds = {"whole": [0, 1], "zero": [0], "one": [1]}
        return {name: ran(grid(chosen), place / name) for name, chosen in seeds.items()}


def test_seeds_run_in_two_folders_make_one_record(folders: dict[str, Path], tmp_path: Path) -> None:
    file, whole = tmp_path / "grown.json", tmp_path / "whole.json"
    write_record(folders["whole"], whole)
    assert write_record(folders["one"], file) == Grown(0, {})
    assert write_record(folders["zero"], file) == Grown(2, {})
    assert tables(file) == tables(whole)
    assert [cell["at"] for cell in read_record(file)["cells"]] == [cell["at"] for cell in read_record(whole)["cells"]]
    assert read_record(file)["job"] == read_record(whole)["job"]
    content = json.loads(file.read_text())
    strange = {**content["cells"][0], "at": {**content["cells"][0]["at"], "method": "gone", "seed": "9"}}
    other = tmp_path / "strange.json"
    other.write_text(json.dumps(content | {"cells": [*content["cells"], strange]}))
    write_record(folders["zero"], other)
    assert read_record(other) == read_record(file), "a dropped cell leaves no seed behind"
    before = file.read_text()
    assert write_record(folders["one"], file) == Grown(2, {}), "what has grown grows on"
    assert file.read_text() == before


def test_cells_left_out_here_come_from_the_record(folders: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "grown.json"
    write_record(folders["zero"], file)
    some = small_grid({"data": {}, "seeds": [0, 1], "against": {}, "leave_out": [{"method": ["wide"]}]})
    assert write_record(ran(some, tmp_path / "some"), file) == Grown(1, {})
    at = [(cell["at"]["method"], cell["at"]["seed"], cell["status"]) for cell in read_record(file)["cells"]]
    assert at == [("narrow", "0", "finished"), ("wide", "0", "finished"), ("narrow", "1", "finished")]


def test_other_settings_other_images_and_other_cells_are_dropped(folders: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "grown.json"
    write_record(folders["one"], file)
    content = json.loads(file.read_text())
    content["job"]["methods"]["narrow"]["epochs"] = 9
    content["cells"] += [{**content["cells"][0], "at": {**content["cells"][0]["at"], "method": "gone"}}]
    file.write_text(json.dumps(content))
    dropped = write_record(folders["zero"], file).dropped
    assert dropped == {
        "other settings (method.epochs: 9, now 2)": ["narrow.digits.seed1"],
        "no cell of this grid": ["gone.digits.seed1"],
    }

    content["job"]["methods"]["narrow"] = {"name": "of_a_later_version"}
    file.write_text(json.dumps(content))
    dropped = write_record(folders["zero"], file).dropped
    assert dropped["made by a job that does not load any more"] == ["narrow.digits.seed1", "wide.digits.seed1"]

    write_record(folders["zero"], file := tmp_path / "images.json")
    content = json.loads(file.read_text())
    content["cells"][1]["test_split"] = "another"
    file.write_text(json.dumps(content))
    some = small_grid({"data": {}, "seeds": [0], "against": {}, "leave_out": [{"method": ["wide"]}]})
    grown = write_record(ran(some, tmp_path / "some"), file)
    assert grown == Grown(0, {"other images": ["wide.digits.seed0"]})


def test_a_file_that_is_no_record_is_left_alone(folders: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "notes.json"
    file.write_text("[1, 2]")
    with pytest.raises(UserError, match=r"notes\.json: holds no record of a grid"):
        write_record(folders["zero"], file)
    assert file.read_text() == "[1, 2]"
