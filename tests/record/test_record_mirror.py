"""A mirror brings to a URL what is written, in the order of writing, and waits for a store that is away."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moe_dist.data.storage import store
from moe_dist.data.storage.store import StoreFailed
from moe_dist.errors import UserError
from moe_dist.files import write_text
from moe_dist.record import mirror as mirror_module
from moe_dist.record.mirror import Mirror, of_a_grid, of_the_driver, working_folder


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """The folder behind the mirror's URL."""
    return tmp_path / "there"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return tmp_path / "here"


@pytest.fixture
def mirror(here: Path, there: Path) -> Mirror:
    return Mirror(here, f"file://{there}")


def files(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write(path: Path, text: str, second: int) -> None:
    """Write a file as if at that second."""
    write_text(path, text)
    os.utime(path, (second, second))


def pushed(monkeypatch: pytest.MonkeyPatch, fail: Callable[[str], None] = lambda name: None) -> list[str]:
    """A list that gets the name of every file that is put from now on; `fail` may raise before."""
    names: list[str] = []
    real = store.put_file

    def put_file(local: Path, url: str, *further: Any) -> None:
        fail(local.name)
        names.append(local.name)
        real(local, url, *further)

    monkeypatch.setattr(mirror_module, "put_file", put_file)
    return names


def test_what_is_written_arrives_and_what_is_removed_goes(mirror: Mirror, here: Path, there: Path) -> None:
    write(here / "job.yaml", "job", 1)
    write(here / "dense/steps/split/abc/done.json", "{}", 2)
    mirror.push()
    assert files(there) == files(here)
    (here / "job.yaml").write_text("other")
    (here / "dense/steps/split/abc/done.json").unlink()
    mirror.push()
    assert files(there) == {"job.yaml": "other"}


def test_files_arrive_in_the_order_in_which_they_were_written(
    mirror: Mirror, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for second, name in enumerate(("b/result.json", "b/arrays.npz", "b/done.json", "a/current.json"), 1):
        write(here / name, name, second)
    names = pushed(monkeypatch)
    mirror.push()
    assert names == ["result.json", "arrays.npz", "done.json", "current.json"]


def test_only_what_has_changed_is_pushed_again(mirror: Mirror, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(here / "run.json", "1", 1)
    write(here / "job.yaml", "job", 2)
    mirror.push()
    names = pushed(monkeypatch)
    write(here / "run.json", "2", 3)
    mirror.push()
    assert names == ["run.json"]


def test_hidden_files_the_lock_and_what_ranks_keep_stay(mirror: Mirror, here: Path, there: Path) -> None:
    training = "dense/trainings/abc"
    for name in (".job.yaml.12", "lock", ".progress/0.json", f"{training}/metrics.jsonl", f"{training}/settings.json"):
        write(here / name, name, 1)
    write(here / f"{training}/checkpoints/checkpoint_00000001/state.json", "{}", 1)
    mirror.push()
    assert list(files(there)) == [f"{training}/settings.json"]


@pytest.mark.parametrize("name", ["tensorboard/events", "metrics.jsonl", "checkpoints/checkpoint_00000001/state.json"])
def test_logs_and_checkpoints_of_a_training_are_not_the_drivers(name: str) -> None:
    assert not of_the_driver(f"dense/trainings/abc/{name}")
    assert of_the_driver("dense/trainings/abc/training.json")
    assert of_the_driver(f"dense/steps/abc/{name}")


def test_opening_makes_the_folder_what_is_at_the_url(mirror: Mirror, here: Path, there: Path) -> None:
    write(there / "job.yaml", "job", 1)
    write(there / "dense/trainings/abc/checkpoints/checkpoint_00000001/state.json", "{}", 1)
    write(here / "job.yaml", "old", 5)
    write(here / "dense/training.json", "never arrived", 6)
    mirror.pull(exact=True)
    assert files(here) == files(there)


def test_a_fetched_file_has_the_time_at_which_it_was_written(mirror: Mirror, here: Path, there: Path) -> None:
    write(there / "run.json", "{}", 1_700_000_000)
    mirror.pull(exact=True)
    assert (here / "run.json").stat().st_mtime == 1_700_000_000


def test_what_was_fetched_is_not_pushed_again(mirror: Mirror, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(there / "job.yaml", "job", 1)
    mirror.pull(exact=True)
    names = pushed(monkeypatch)
    mirror.push()
    assert names == []


def test_a_part_is_fetched_alone_and_nothing_is_removed(mirror: Mirror, here: Path, there: Path) -> None:
    write(there / "dense/steps/a/done.json", "{}", 1)
    write(there / "job.yaml", "job", 1)
    write(here / "dense/steps/a/own.json", "{}", 1)
    mirror.pull(here / "dense/steps/a")
    assert sorted(files(here)) == ["dense/steps/a/done.json", "dense/steps/a/own.json"]


def test_folders_can_be_left_out(mirror: Mirror, here: Path, there: Path) -> None:
    write(there / "dense/checkpoints/checkpoint_00000001/state.json", "{}", 1)
    write(there / "metrics.json", "{}", 1)
    mirror.pull(exact=True, without=["checkpoints"])
    assert list(files(here)) == ["metrics.json"]


def test_a_name_that_leads_to_another_folder_is_not_fetched(
    mirror: Mirror, there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(there / "job.yaml", "job", 1)
    listing = {f"{there}/{name}": {"size": 3} for name in ("job.yaml", "../../outside", ".ssh/keys")}
    real = store.operate

    def operate(url: str, operation: str, *further: Any) -> Any:
        return listing if operation == "find" else real(url, operation, *further)

    monkeypatch.setattr(store, "operate", operate)
    mirror.pull()
    assert list(files(tmp_path / "here")) == ["job.yaml"]


class Away:
    """A store that fails for some tries, then answers."""

    def __init__(self, tries: int, lasting: bool = False) -> None:
        self.tries, self.lasting = tries, lasting

    def __call__(self, name: str) -> None:
        if self.tries:
            self.tries -= 1
            raise StoreFailed("s3://bucket/x: cannot be written: the connection was refused", self.lasting)


@pytest.fixture
def prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses."""
    monkeypatch.setattr(mirror_module, "EVERY_SECONDS", 0.01)
    monkeypatch.setattr(mirror_module, "LONGEST_PAUSE_SECONDS", 0.01)


@pytest.fixture
def only_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is pushed while the work goes on, however long it takes."""
    monkeypatch.setattr(mirror_module, "EVERY_SECONDS", 3600.0)


@pytest.mark.usefixtures("prompt")
def test_files_arrive_while_the_work_goes_on(mirror: Mirror, here: Path, there: Path) -> None:
    with mirror.keeping(lambda sentence: None):
        write(here / "run.json", "running", 1)
        while not (there / "run.json").exists():
            time.sleep(0.01)
        write(here / "run.json", "finished", 2)
    assert files(there) == {"run.json": "finished"}


@pytest.mark.usefixtures("prompt")
def test_an_outage_is_told_once_and_nothing_is_lost(
    mirror: Mirror, here: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away, said = Away(5), list[str]()
    pushed(monkeypatch, away)
    with mirror.keeping(said.append):
        write(here / "run.json", "1", 1)
        while away.tries:
            time.sleep(0.01)
    assert files(there) == {"run.json": "1"}
    assert len(said) == 1
    assert "cannot be written" in said[0] and said[0].endswith("the work goes on, and it is tried again")


@pytest.mark.usefixtures("only_at_the_end")
def test_the_end_waits_for_the_store(mirror: Mirror, here: Path, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(mirror_module.time, "sleep", lambda seconds: None)
    with mirror.keeping(said.append):
        pushed(monkeypatch, Away(3))
        write(here / "run.json", "finished", 1)
    assert files(there) == {"run.json": "finished"}
    assert "tried again for 600 s" in said[-1]


@pytest.mark.usefixtures("only_at_the_end")
def test_a_run_whose_files_cannot_arrive_does_not_end_well(
    mirror: Mirror, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = r"cannot be written.*are in .*here alone, and --resume makes them again"
    with pytest.raises(UserError, match=said), mirror.keeping(lambda sentence: None):
        pushed(monkeypatch, Away(1, lasting=True))
        write(here / "run.json", "finished", 1)


@pytest.mark.usefixtures("only_at_the_end")
def test_the_error_of_the_work_comes_first(mirror: Mirror, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with pytest.raises(ValueError, match="the work failed"), mirror.keeping(said.append):
        pushed(monkeypatch, Away(1, lasting=True))
        write(here / "run.json", "failed", 1)
        raise ValueError("the work failed")
    assert "cannot be written" in said[-1]


def test_each_url_has_its_folder(tmp_path: Path) -> None:
    one, other = (working_folder(url, tmp_path) for url in ("s3://bucket/runs/x", "s3://bucket/runs/y"))
    assert one.parents[1] == other.parents[1] == tmp_path / "runs"
    assert one.parent != other.parent and (one.name, other.name) == ("x", "y")  # a run is called as its folder
    assert working_folder("s3://bucket/runs/x/", tmp_path) == one
    assert working_folder("s3://bucket/runs/x/cells/a.b", tmp_path) == one / "cells/a.b"


@pytest.mark.parametrize(
    ("name", "keeps"),
    [("job.yaml", True), ("cells/a.json", True), ("cells/a/run.json", False), ("cells/a/m/trainings/x/log", False)],
)
def test_a_grids_driver_leaves_the_cells_to_themselves(name: str, keeps: bool) -> None:
    assert of_a_grid(name) is keeps


def test_one_file_is_fetched_if_it_is_there(mirror: Mirror, here: Path, there: Path) -> None:
    write_text(there / "a/b.json", "{}")
    for name in ("a/b.json", "a/c.json"):
        mirror.fetch(here / name)
    assert files(here) == {"a/b.json": "{}"}
