"""The cells of a grid: which there are, what each of their jobs says, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from small_grids import DATA, GRID, SPARSE, small_grid

from moe_dist.errors import UserError
from moe_dist.grid.cells import Cell, cells_of
from moe_dist.job import dump_job, load_job, parse_job

JOBS = Path(__file__).parents[2] / "jobs"


def names(cells: list[Cell]) -> list[str]:
    return [cell.name for cell in cells]


def test_every_combination_is_a_cell_and_the_first_seed_comes_first() -> None:
    assert names(cells_of(small_grid({"seeds": [3, 1]}))) == [
        "narrow.all.seed3",
        "narrow.half.seed3",
        "wide.all.seed3",
        "wide.half.seed3",
        "narrow.all.seed1",
        "narrow.half.seed1",
        "wide.all.seed1",
        "wide.half.seed1",
    ]


def test_a_cell_is_a_job_of_one_method_with_its_data_changes_and_seed() -> None:
    changes = {"rate": {"slow": {}, "fast": {"method.optimiser.learning_rate": 0.1, "checkpoint.keep": 1}}}
    cells = cells_of(small_grid({"changes": changes, "seeds": [5]}))
    assert len(cells) == 2 * 2 * 2
    fast = next(cell for cell in cells if cell.name == "wide.half.fast.seed5")
    assert fast.at == {"method": "wide", "data": "half", "rate": "fast", "seed": "5"}
    job = fast.job
    assert (job.name, job.kind, job.seed, job.grid) == ("small-grid.wide.half.fast.seed5", "train", 5, None)
    assert (job.method.hidden, job.method.optimiser.learning_rate, job.checkpoint.keep) == (16, 0.1, 1)
    assert (job.data.max_train_images, job.data.image_size) == (100, 8), "what data does not change stays"
    slow = next(cell for cell in cells if cell.name == "wide.half.slow.seed5").job
    assert (slow.method.optimiser.learning_rate, slow.checkpoint.keep) == (0.02, 2)


def test_cells_are_left_out_by_a_list() -> None:
    left_out = [{"method": "wide", "data": "half"}, {"seed": [1, 2], "data": "all"}]
    assert names(cells_of(small_grid({"leave_out": left_out}))) == [
        "narrow.all.seed0",
        "narrow.half.seed0",
        "wide.all.seed0",
        "narrow.half.seed1",
        "narrow.half.seed2",
    ]
    with pytest.raises(UserError, match="leave_out leaves no cell"):
        cells_of(small_grid({"leave_out": [{"method": ["narrow", "wide"]}]}))


def test_without_data_and_seeds_the_jobs_own_are_meant() -> None:
    job = small_grid({"data": {}, "seeds": []}, seed=4)
    assert names(cells_of(job)) == ["narrow.digits.seed4", "wide.digits.seed4"]


def test_a_grid_resolves_to_itself_with_absolute_paths() -> None:
    job = small_grid({"data": {"mine": {"dataset": "image_folder", "source": "somewhere"}}})
    assert parse_job(yaml.safe_load(dump_job(job)), "resolved") == job
    dumped = yaml.safe_load(dump_job(job))["grid"]["data"]
    assert dumped == {"mine": {"dataset": "image_folder", "source": str(Path("somewhere").absolute())}}


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ({"leave_out": [{"methods": "wide"}]}, "no axis is called 'methods'; choose of method, data, seed"),
        ({"leave_out": [{"data": "third"}]}, "grid.leave_out.data: no data is called 'third'; choose of all, half"),
        ({"against": {"method": "dense"}}, "grid.against.method: no method is called 'dense'"),
        ({"against": {"seed": "0"}}, "seeds are compared one by one"),
        ({"changes": {"x": {"y": {"method.hiden": 4}}}}, "cell narrow.all.y.seed0: method.hiden: unknown field"),
        ({"changes": {"x": {"y": {"seed": 4}}}}, "grid.changes.x.y: seed is not a field that cells may differ in"),
        ({"changes": {"x": {"y": {"data.dataset.z": 4}}}}, "grid.changes.x.y: data.dataset holds a value, not fields"),
    ],
)
def test_what_no_cell_can_be_is_refused(grid: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        cells_of(small_grid(grid))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ({"data": {"x": {"imbalanse": 3}}}, "grid.data.x.imbalanse: unknown field"),
        ({"data": {"Big": {}}}, "grid.data.Big"),
        ({"seeds": [1, 1]}, "seeds: 1, 1: one occurs twice"),
        ({"rows": "methods"}, "rows: no axis is called 'methods'; choose of method, data"),
        ({"rows": "method", "columns": ["data", "method"]}, "method: is in both rows and columns"),
        ({"rows": "method", "columns": "rate", "changes": {"rate": {"a": {}}}}, "data: is in neither rows nor columns"),
        ({"changes": {"data": {"a": {}}}}, "changes.data: is an axis of every grid"),
        ({"changes": {"rate": {}}}, "changes.rate: needs one named change or more"),
        ({"paper": [{"where": {}}]}, "needs either `table`"),
        ({"tables": [{"title": "x", "where": {}, "metrics": "top1"}]}, "against: each of `tables` has its own"),
        ({"paper": [{"figure": "5 %"}]}, "a `figure` needs its `source`"),
    ],
)
def test_a_grid_that_does_not_agree_is_refused_when_it_is_loaded(grid: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        small_grid(grid)
    assert said in str(caught.value)


def test_only_a_reproduction_is_a_grid_and_its_seeds_stand_in_one_place() -> None:
    with pytest.raises(UserError, match="only a job of kind `reproduce` has a section `grid`"):
        parse_job({"name": "x", "kind": "train", "method": SPARSE, "grid": GRID}, "x.yaml")
    with pytest.raises(UserError, match=r"a job with `grid\.seeds` has no `seed`"):
        small_grid(seed=1)


def test_what_no_figure_depends_on_does_not_change_a_cell() -> None:
    one = cells_of(small_grid())[0].asked()
    data = DATA | {"source": "elsewhere", "loader_workers": 2}
    same = small_grid(name="other", title="another", data=data, resources={"cpus_per_task": 2})
    assert cells_of(same)[0].asked() == one
    assert cells_of(small_grid(data=DATA | {"image_size": 16}))[0].asked() != one


def test_cells_that_lie_in_no_table_are_left_out() -> None:
    table = {"title": "Half", "where": {"data": "half", "method": ["narrow"]}, "metrics": ["top1"]}
    job = small_grid({"against": {}, "tables": [table]})
    assert [cell.name for cell in cells_of(job)] == ["narrow.half.seed0", "narrow.half.seed1", "narrow.half.seed2"]
    assert cells_of(parse_job(job.model_dump(mode="json"), "resolved")) == cells_of(job)
    with pytest.raises(UserError, match=r"grid\.tables\.where\.data: no data is called 'third'"):
        cells_of(small_grid({"against": {}, "tables": [table | {"where": {"data": "third"}}]}))


def grids() -> list[Path]:
    """The jobs under jobs/ that are grids."""
    return [path for path in sorted(JOBS.rglob("*.yaml")) if "\ngrid:" in path.read_text()]


@pytest.mark.parametrize("path", grids(), ids=lambda path: path.relative_to(JOBS).as_posix())
def test_the_cells_of_every_shipped_grid_load(path: Path) -> None:
    assert len(cells_of(load_job(path))) > 1
