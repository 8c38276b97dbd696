"""The checkpoints in a training's folder: which are whole, undamaged, best on validation, or no longer needed."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from moe_dist.engine.checkpoint import damaged_file, is_whole, read_state
from moe_dist.errors import UserError

Key = TypeVar("Key")


@contextlib.contextmanager
def no_torn_checkpoint(folder: Path) -> Iterator[None]:
    """If the block raises an exception, remove checkpoints that it began in `folder` and did not finish."""
    before = set(folder.glob("checkpoint_*"))
    try:
        yield
    except Exception:
        begun = [path for path in set(folder.glob("checkpoint_*")) - before if not is_whole(path)]
        for path in [*begun, *folder.glob(".saving-*")]:
            shutil.rmtree(path, ignore_errors=True)
        raise


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in a folder, sorted by step. Unfinished ones are left out."""
    whole = [path for path in folder.glob("checkpoint_*") if path.is_dir() and is_whole(path)]
    return sorted(whole, key=lambda path: read_state(path)["step"])


def sound_checkpoint(folder: Path) -> tuple[Path | None, dict[Path, str]]:
    """The newest undamaged checkpoint (None without checkpoints), and each newer, damaged one with its damaged file.

    Raises UserError if all checkpoints are damaged: a training only starts anew when the user asks for it.
    """
    damaged: dict[Path, str] = {}
    for path in reversed(checkpoints(folder)):
        if (file := damaged_file(path)) is None:
            return path, damaged
        damaged[path] = file
    if damaged:
        path, file = next(iter(damaged.items()))
        raise UserError(
            f"{path}: {file} does not hold the bytes that were written, and no other checkpoint there is whole; put a "
            f"copy in its place, or move {folder} away to train anew"
        )
    return None, {}


def newest_checkpoint(folder: Path) -> Path | None:
    """The whole checkpoint of the largest step, or None."""
    return next(iter(reversed(checkpoints(folder))), None)


def best_on_validation(folder: Path) -> Path | None:
    """The checkpoint with the highest validation score among those of the newest one's stage; the later of equals.

    None if no checkpoint of that stage has a score.
    """
    return _best(_states(folder))


def superseded(folder: Path, keep: int) -> list[Path]:
    """The checkpoints that can be removed: all but the newest `keep` and the best one on validation."""
    return superseded_among(_states(folder), keep)


def superseded_among(states: Mapping[Key, Mapping[str, Any]], keep: int) -> list[Key]:
    """`superseded`, of checkpoints by anything that names them, with the states that the loop saved in them."""
    by_step = sorted(states, key=lambda key: states[key]["step"])
    best = _best(states)
    return [key for key in by_step[:-keep] if key != best]


def _states(folder: Path) -> dict[Path, dict[str, Any]]:
    return {path: read_state(path) for path in checkpoints(folder)}


def _best(states: Mapping[Key, Mapping[str, Any]]) -> Key | None:
    by_step = sorted(states, key=lambda key: states[key]["step"])
    last_stage = states[by_step[-1]]["stage"] if by_step else None
    validated = [key for key in by_step if states[key]["stage"] == last_stage and states[key].get("score") is not None]
    return max(validated, key=lambda key: (states[key]["score"], states[key]["step"]), default=None)


def checkpoint_score(stage: int, validation_top1: float | None) -> float:
    """The number by which Ray Train ranks checkpoints: by stage, then by validation top-1, those without one last."""
    return stage if validation_top1 is None else stage + (1 + validation_top1) / 3
