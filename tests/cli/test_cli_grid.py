"""The commands on a grid: run, shown, reported, recorded, and a page's tables written from the record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from moe_dist.cli import app
from moe_dist.errors import UserError

METHOD: dict[str, Any] = {"name": "sparse_moe", "trunk": [4], "experts": 2, "hidden": 8, "epochs": 1}
RATES: dict[str, Any] = {"mild": {}, "wild": {"method.optimiser.learning_rate": 1e30}}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory; reports of cells take longer than these cells."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("moe_dist.report.build.build_report", lambda path: path)
    return tmp_path


def write_grid(**grid: Any) -> Path:
    data = {"dataset": "digits", "image_size": 8, "max_train_images": 100, "max_test_images": 40}
    content = {"name": "small", "kind": "reproduce", "data": data, "methods": {"sparse": METHOD}}
    path = Path("grid.yaml")
    path.write_text(yaml.safe_dump(content | {"grid": {"seeds": [0, 1]} | grid}))
    return path


def moe_dist(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=True)
    if isinstance(result.exception, UserError):
        return f"{result.output}error: {result.exception}"
    assert result.exit_code == 0, result.output
    return result.output


def test_a_grid_from_its_run_to_a_page(here: Path) -> None:
    job = write_grid()
    shown = moe_dist("show", job)
    assert "sparse.digits.seed1" in shown and "not run" in shown and "2 cells, about " in shown
    assert "0 are done" in " ".join(shown.split())

    said = moe_dist("run", job, "--launcher", "local")
    assert "sparse.digits.seed0 (1 of 2)" in said and "2 of 2 cells are finished" in " ".join(said.split())
    assert "results.md, .csv, .tex" in said
    assert "2 are done in runs/small/latest" in " ".join(moe_dist("show", job).split())
    assert "= finished" in moe_dist("run", job, "--launcher", "local", "--resume")

    (here / "records").mkdir()
    said = moe_dist("report", "runs/small/latest", "--record", "records/small.json")
    assert "record: records/small.json" in said
    content = json.loads((file := here / "records" / "small.json").read_text())
    assert len(content["cells"]) == 2
    for about, elsewhere in zip(content["cells"], ({"seed": "7"}, {"method": "gone"})):
        about["at"] |= elsewhere
    file.write_text(json.dumps(content | {"axes": content["axes"] | {"seed": ["0", "1", "7"]}}))
    said = " ".join(moe_dist("report", "runs/small/latest", "--record", "records/small.json").split())
    assert "record: records/small.json, cells kept from before: 1" in said
    assert "dropped from the record, no cell of this grid: gone.digits.seed1" in said
    page = here / "page.md"
    page.write_text("# Page\n\n<!-- tables of records/small.json -->\nold\n<!-- end of tables -->\n\nText.\n")
    assert "page.md: 1 record" in moe_dist("tables", page)
    text = page.read_text()
    assert "| sparse |" in text and "old" not in text and text.endswith("<!-- end of tables -->\n\nText.\n")
    moe_dist("tables", page)
    assert page.read_text() == text


def test_failed_cells_are_an_error_after_the_table() -> None:
    said = moe_dist("run", write_grid(seeds=[0], changes={"rate": RATES}), "--launcher", "local", "--out", "out")
    assert "error: 1 of 2 cells failed, as the notes of the table say; --resume runs them again" in said
    assert "is nan at step" in said and Path("out/results.csv").exists()
    shown = moe_dist("show", write_grid(seeds=[0], changes={"rate": RATES}), "--out", "out")
    assert "failed: " in shown and "finished, " in shown


def test_what_is_for_grids_alone_is_refused_elsewhere() -> None:
    job = write_grid()
    job.write_text(yaml.safe_dump({"name": "x", "kind": "train", "method": METHOD, "data": {"image_size": 8}}))
    assert "error: --out elsewhere: is for a grid" in moe_dist("show", job, "--out", "elsewhere")
    assert "error: --record r.json: is for a grid" in moe_dist("report", "runs/x", "--record", "r.json")
    assert "error: nowhere.md: no such page" in moe_dist("tables", "nowhere.md")
    Path("page.md").write_text("no marker")
    assert "page.md: holds no marker" in moe_dist("tables", "page.md")
    Path("page.md").write_text("<!-- tables of gone.json -->\n")
    assert "the tables of gone.json have no end" in moe_dist("tables", "page.md")
    Path("page.md").write_text("<!-- tables of gone.json -->\n<!-- end of tables -->")
    assert "gone.json: holds no record of a grid" in moe_dist("tables", "page.md")


def test_a_grid_whose_cells_do_not_load_is_refused_before_it_runs(here: Path) -> None:
    job = write_grid(changes={"x": {"y": {"method.hiden": 3}}})
    for command in (["run", job], ["show", job], ["submit", job, "--address", "http://nowhere:1"]):
        assert "error: small, cell sparse.digits.y.seed0: method.hiden: unknown field" in moe_dist(*command)
    assert not (here / "runs").exists()
