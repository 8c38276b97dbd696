"""A run's place is a folder or a URL; one process of a node works in it, and a URL holds no secrets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from moe_dist.errors import UserError
from moe_dist.places import RECORD
from moe_dist.record.run_place import RunPlace, require_free, run_place
from moe_dist.terminal import Show

PARSE = run_place("--out")


@pytest.fixture(autouse=True)
def node_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOE_DIST_NODE_CACHE", str(tmp_path / "node"))
    return tmp_path / "node"


@pytest.fixture
def place(tmp_path: Path) -> RunPlace:
    """One at a URL, where nothing is yet."""
    return PARSE(f"file://{tmp_path}/store/x")


def begin(place: RunPlace, **record: object) -> Path:
    """A run at the place's URL; returns the folder behind it."""
    folder = Path(str(place.url).removeprefix("file://"))
    folder.mkdir(parents=True)
    (folder / "job.yaml").write_text("name: x\n")
    (folder / RECORD).write_text(json.dumps(record))
    return folder


def test_a_folder_is_taken_as_it_is() -> None:
    assert PARSE("runs/x") == RunPlace(Path("runs/x"))
    assert str(PARSE("runs/x")) == "runs/x"


def test_a_url_has_a_folder_of_this_node(node_cache: Path) -> None:
    place = PARSE("s3://bucket/runs/x/")
    assert place.url == str(place) == "s3://bucket/runs/x"
    assert place.folder.parents[1] == node_cache / "runs" and place.folder.name == "x"
    assert not node_cache.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("https://me:opensesame@host/x?signature=abc", "--out https://host/x: leave out user, password and query"),
        ("https://host/x", "--out https://host/x: cannot be written over http"),
        ("s3:/bucket/x", "--out s3:/bucket/x: must be a path of this machine"),
    ],
)
def test_a_url_that_cannot_be_is_refused(text: str, said: str) -> None:
    with pytest.raises(UserError) as told:
        PARSE(text)
    assert str(told.value).startswith(said)
    assert "opensesame" not in str(told.value) and "abc" not in str(told.value)


def test_a_url_holds_a_run_where_its_job_is(place: RunPlace) -> None:
    assert not place.holds_a_run
    require_free(place)
    begin(place)
    assert place.holds_a_run


def test_a_url_with_other_files_is_refused(place: RunPlace) -> None:
    (begin(place) / "job.yaml").unlink()
    with pytest.raises(UserError, match="is not empty and holds no run; choose another URL"):
        require_free(place)


def test_its_files_are_at_hand(place: RunPlace) -> None:
    folder = begin(place)
    (folder / "dense/trainings/a/checkpoints/checkpoint_00000001").mkdir(parents=True)
    (folder / "dense/trainings/a/checkpoints/checkpoint_00000001/state.json").write_text("{}")
    with place.at_hand("checkpoints") as mirror:
        assert mirror is not None
        assert sorted(path.name for path in place.folder.rglob("*") if path.is_file()) == ["job.yaml", RECORD]
    with RunPlace(folder).at_hand() as mirror:
        assert mirror is None


def test_two_processes_of_a_machine_do_not_work_in_one_run(place: RunPlace) -> None:
    begin(place)
    said = "another moe-dist of this machine is at work in this run"
    with place.at_hand(), pytest.raises(UserError, match=said), place.at_hand():
        pass


@pytest.mark.parametrize(("host", "status", "told"), [("far", "running", True), ("far", "finished", False)])
def test_a_run_that_another_machine_has_not_ended_is_told(place: RunPlace, host: str, status: str, told: bool) -> None:
    begin(place, status=status, starts=[{"host": host}])
    console = Console(record=True, width=400)
    with place.kept(Show(console)):
        pass
    assert ("was begun on far and has not ended there" in console.export_text()) is told
