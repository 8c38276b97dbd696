"""A full disk ends a search instead of failing its trials, and the search goes on as if nothing had been."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from formula_studies import FormulaBackend, search, suggestions
from tune_jobs import mixture_search, quiet, run

from moe_dist.disk import raising_disk_errors
from moe_dist.engine import checkpoint
from moe_dist.errors import DiskError
from moe_dist.launch.choose import open_launcher
from moe_dist.settings.resources import ResourceConfig
from moe_dist.tune.journal import Journal
from moe_dist.tune.ray_search import run_on_ray
from moe_dist.tune.search import run_here

pytestmark = pytest.mark.chaos


def full() -> OSError:
    """What the system raises."""
    return OSError(errno.ENOSPC, "No space left on device")


def told(folder: Path) -> int:
    """Batches whose outcomes are in the journals."""
    journals = [path for path in folder.rglob("*.jsonl") if '"journal"' in path.read_text()]
    return sum(path.read_text().count('"told"') for path in journals)


def test_a_trial_on_a_full_disk_is_not_told_and_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, run_folder = mixture_search(batch=1), tmp_path / "full"
    saved: list[Path] = []

    def save(tensors: Any, path: Path) -> None:
        saved.append(path)
        raise full()

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_file", save)
        with pytest.raises(
            DiskError, match=r"the disk is full, so a trial's checkpoint could not .* --resume"
        ) as ended:
            run(job, run_folder)
    assert len(saved) == 1 and told(run_folder) == 0
    assert str(ended.value).startswith(f"{saved[0].parents[1]}: "), "the folder for temporary files, not the run's"
    again, whole = run(job, run_folder), run(job, tmp_path / "whole")
    assert [trial["values"] for trial in trials_of(again)] == [trial["values"] for trial in trials_of(whole)]
    assert {trial["state"] for trial in trials_of(again)} == {trial["state"] for trial in trials_of(whole)}


def trials_of(results: dict[str, Any]) -> list[dict[str, Any]]:
    return results["studies"]["method"]["trials"]


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with open_launcher("ray", mixture_search(), tmp_path_factory.mktemp("ray"), quiet()):
        yield


def failing_with(error: Exception) -> Any:
    """How a worker opens a backend that can do nothing else; nested, so that it travels to Ray's workers whole."""

    def open_backend(packed: Any, device: Any) -> Any:
        class Backend:
            def run(self, work: Any) -> Any:
                raise error

        return Backend()

    return open_backend


def test_ray_tune_ends_at_a_full_disk_and_tells_none_of_its_rounds(ray: None, tmp_path: Path) -> None:
    found = search(tmp_path, [0, 1], trials=4, batch=2)
    display = threading.RLock()  # a terminal's display has one, which cannot be pickled, and Tune pickles what it gets

    def lost(work: Any, seconds: float) -> None:
        raise AssertionError(f"no worker died: {work}, {display}")

    with pytest.raises(DiskError, match=f"{tmp_path}: the disk is full, so what a trial leaves could not be written"):
        run_on_ray(found, failing_with(full()), None, ResourceConfig(), tmp_path, lost)
    assert told(tmp_path) == 0
    again, whole = search(tmp_path, [0, 1], trials=4, batch=2), search(tmp_path / "whole", [0, 1], trials=4, batch=2)
    for one in (again, whole):
        run_here(one, FormulaBackend().run)
    assert suggestions(again) == suggestions(whole)


def test_a_journal_on_a_full_disk_ends_the_search_of_ray_tune(
    ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Journal.write

    def full_at_the_first_outcome(self: Journal, record: Any) -> None:
        if "told" in record:
            raise full()
        write(self, record)

    found = search(tmp_path, [0], trials=4, batch=2)
    monkeypatch.setattr(Journal, "write", full_at_the_first_outcome)
    with pytest.raises(DiskError, match=f"{tmp_path}: the disk is full"), raising_disk_errors(tmp_path, "the journal"):
        run_on_ray(found, failing_with(ValueError("no configuration for a network")), None, ResourceConfig(), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert [sorted(line) for line in lines] == [["journal", "search"], ["asked", "study"]]
