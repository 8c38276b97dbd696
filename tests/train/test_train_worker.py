"""Which checkpoints are kept and which one is best on validation, with folders that hold only a state.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from moe_dist.train.checkpoints import best_on_validation, checkpoint_score, newest_checkpoint, superseded

Saved = tuple[int, int, float | None]
"""Step, stage and top-1 on validation of a checkpoint."""


def folder_of(path: Path, saved: Sequence[Saved]) -> Path:
    for step, stage, top1 in saved:
        checkpoint = path / f"checkpoint_{step:08d}"
        checkpoint.mkdir(parents=True)
        state = {"step": step, "stage": stage, "score": top1}
        (checkpoint / "state.json").write_text(json.dumps({"format": 1, "world": 1, "files": {}, "state": state}))
    return path


@pytest.mark.parametrize(
    ("saved", "best"),
    [
        ([], None),
        ([(1, 0, None), (2, 0, None)], None),
        ([(1, 0, 0.5), (2, 0, 0.7), (3, 0, 0.6)], 2),
        ([(1, 0, 0.5), (2, 0, 0.7), (3, 0, 0.7), (4, 0, 0.6)], 3),
        ([(1, 0, 0.9), (2, 0, 0.8), (3, 1, 0.2), (4, 1, 0.3), (5, 1, 0.1)], 4),
        ([(1, 0, 0.9), (2, 1, None)], None),
        ([(1, 0, 0.3), (2, 0, None)], 1),
        ([(1, 0, 0.0), (2, 0, None)], 1),
    ],
    ids=["empty", "no validation", "best", "later of equals", "last stage", "stage just begun", "inside an epoch", "0"],
)
def test_the_best_on_validation(saved: list[Saved], best: int | None, tmp_path: Path) -> None:
    found = best_on_validation(folder_of(tmp_path / "all", saved))
    assert found == (tmp_path / "all" / f"checkpoint_{best:08d}" if best else None)


def test_a_checkpoint_of_an_earlier_version_has_no_validation(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [(1, 0, 0.5)])
    path = folder / "checkpoint_00000001" / "state.json"
    content = json.loads(path.read_text())
    del content["state"]["score"]
    path.write_text(json.dumps(content))
    assert best_on_validation(folder) is None and newest_checkpoint(folder) is not None


@pytest.mark.parametrize(
    ("saved", "keep", "gone"),
    [
        ([(1, 0, 0.9), (2, 0, 0.8), (3, 0, 0.7)], 1, [2]),
        ([(1, 0, 0.9), (2, 0, 0.8), (3, 0, 0.7)], 2, []),
        ([(1, 0, 0.1), (2, 0, 0.8), (3, 0, 0.9)], 1, [1, 2]),
        ([(1, 0, None), (2, 0, None), (3, 0, None)], 2, [1]),
        ([(1, 0, 0.9), (2, 1, 0.1), (3, 1, 0.2)], 1, [1, 2]),
    ],
)
def test_the_newest_and_the_best_stay(saved: list[Saved], keep: int, gone: list[int], tmp_path: Path) -> None:
    folder = folder_of(tmp_path, saved)
    assert [int(path.name.removeprefix("checkpoint_")) for path in superseded(folder, keep)] == gone


def test_ray_orders_checkpoints_as_the_choice_does() -> None:
    """A checkpoint without validation (within an epoch) ranks below those with it, and above earlier stages."""
    ascending = [(0, None), (0, 0.0), (0, 0.5), (0, 1.0), (1, None), (1, 0.0), (1, 0.001), (1, 1.0), (2, None)]
    scores = [checkpoint_score(*one) for one in ascending]
    assert scores == sorted(set(scores))
