"""How a cell stands by what its grid remembers: settings that changed, and those that a later version has added."""

from __future__ import annotations

from pathlib import Path

from small_grids import small_grid

from moe_dist.files import read_json, write_json
from moe_dist.grid.cells import Cell, cells_of
from moe_dist.grid.state import note_finished, state_of


def finished_cell(folder: Path) -> tuple[Cell, Path]:
    """The first cell of a small grid, noted as finished, and the file that says so."""
    cell = cells_of(small_grid())[0]
    note_finished(folder, cell, {"test": "0"})
    (file,) = folder.rglob(f"{cell.name}.json")
    return cell, file


def test_a_cell_of_before_a_setting_was_added_is_finished(tmp_path: Path) -> None:
    cell, file = finished_cell(tmp_path)
    content = read_json(file)
    del content["asked"]["resources"]["precision"], content["asked"]["method"]["optimiser"]["momentum"]
    write_json(file, content)
    assert state_of(tmp_path, cell).status == "finished"


def test_a_changed_setting_and_one_that_is_no_longer_known_are_told(tmp_path: Path) -> None:
    cell, file = finished_cell(tmp_path)
    content = read_json(file)
    content["asked"]["seed"] = 77
    write_json(file, content)
    state = state_of(tmp_path, cell)
    assert state.status == "not run" and state.changed == (f"seed: 77, now {cell.job.seed}",)
    content["asked"] = cell.asked() | {"forgotten": 1}
    write_json(file, content)
    assert state_of(tmp_path, cell).changed == ("forgotten: 1, now its default",)


def test_how_a_long_tail_is_drawn_counts_only_where_there_is_one(tmp_path: Path) -> None:
    def asked(data: dict[str, object]) -> dict[str, object]:
        return cells_of(small_grid({"data": {"all": data}}))[0].asked()

    assert asked({}) == asked({"imbalance_choice": "first"})
    assert asked({"imbalance": 2}) != asked({"imbalance": 2, "imbalance_choice": "first"})
