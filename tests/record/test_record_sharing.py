"""Results taken over from a run beside: only whole ones of an equal fingerprint, whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from moe_dist.record.sharing import STEP_DONE, TRAINING_DONE, take_over


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with one run, which has a finished step and a finished training."""
    step = tmp_path / "first" / "dfcp" / "steps" / "features" / "abc"
    training = tmp_path / "first" / "dfcp" / "trainings" / "def"
    (training / "checkpoints" / "checkpoint_1").mkdir(parents=True)
    (training / "evaluations" / "e").mkdir(parents=True)
    step.mkdir(parents=True)
    (step / "arrays.npz").write_bytes(b"arrays")
    (step / "done.json").write_text(json.dumps({"fingerprint": "abcdef", "seconds": 4.0, "start": 3}))
    (training / "checkpoints" / "checkpoint_1" / "model.safetensors").write_bytes(b"weights")
    (training / "metrics.jsonl").write_text("{}\n")
    made = [{"start": 2, "to_step": 5}, {"start": 3, "to_step": 9}]
    (training / "training.json").write_text(json.dumps({"fingerprint": "defabc", "seconds": 9.0, "made": made}))
    return tmp_path


def step_of(run: Path) -> Path:
    return run / "other" / "steps" / "features" / "abc"


def test_a_step_is_taken_over_with_where_it_is_from(runs: Path) -> None:
    run, theirs = runs / "second", runs / "first" / "dfcp" / "steps" / "features" / "abc"
    assert take_over(step_of(run), run, STEP_DONE, "abcdef", 0) == theirs
    about = json.loads((step_of(run) / "done.json").read_text())
    origin = "first/dfcp/steps/features/abc"
    assert about == {"fingerprint": "abcdef", "seconds": 4.0, "start": 0, "taken_from": origin}
    assert (step_of(run) / "arrays.npz").samefile(theirs / "arrays.npz")
    assert json.loads((theirs / "done.json").read_text())["start"] == 3, "the first one stays as it is"

    shutil.rmtree(runs / "first")
    third = runs / "third"
    assert take_over(step_of(third), third, STEP_DONE, "abcdef", 1) is not None
    assert json.loads((step_of(third) / "done.json").read_text())["taken_from"] == origin, "who made it, not who had it"


def test_a_training_is_taken_over_without_its_evaluations_and_its_log_is_a_copy(runs: Path) -> None:
    run = runs / "second"
    folder, theirs = run / "dfcp" / "trainings" / "def", runs / "first" / "dfcp" / "trainings" / "def"
    assert take_over(folder, run, TRAINING_DONE, "defabc", 1) == theirs
    assert {path.name for path in folder.iterdir()} == {"checkpoints", "metrics.jsonl", "training.json"}
    about = json.loads((folder / "training.json").read_text())
    assert about["made"] == [{"start": 1, "to_step": 5}, {"start": 1, "to_step": 9}] and "start" not in about
    assert not (folder / "metrics.jsonl").samefile(theirs / "metrics.jsonl")


def test_what_is_not_equal_or_not_whole_is_not_taken(runs: Path) -> None:
    run = runs / "second"
    assert take_over(step_of(run), run, STEP_DONE, "abc999", 0) is None, "the same folder's name, another fingerprint"
    (runs / "first" / "dfcp" / "steps" / "features" / "abc" / "done.json").write_text("")
    assert take_over(step_of(run), run, STEP_DONE, "abcdef", 0) is None
    assert not run.exists()


def test_a_folder_that_is_there_is_left_alone(runs: Path) -> None:
    run = runs / "second"
    step_of(run).mkdir(parents=True)
    assert take_over(step_of(run), run, STEP_DONE, "abcdef", 0) is None
    assert list(step_of(run).iterdir()) == []


def test_without_hard_links_files_are_copied(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source: Any, target: Any) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", no_links)
    run = runs / "second"
    assert take_over(step_of(run), run, STEP_DONE, "abcdef", 0)
    assert (step_of(run) / "arrays.npz").read_bytes() == b"arrays"


def test_a_copy_that_fails_leaves_nothing(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("moe_dist.record.sharing.write_json", full)
    run = runs / "second"
    with pytest.raises(OSError, match="full"):
        take_over(step_of(run), run, STEP_DONE, "abcdef", 0)
    assert list(step_of(run).parent.iterdir()) == []
