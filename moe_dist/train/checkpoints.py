"""The checkpoints of a training, in its folder: which are whole, sound, chosen on validation, or superseded."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from moe_dist.engine.checkpoint import damaged_file, is_whole, read_state
from moe_dist.errors import UserError


@contextlib.contextmanager
def no_torn_checkpoint(folder: Path) -> Iterator[None]:
    """Where the block fails, and with it the ranks in it, drop the checkpoint that they left torn in `folder`."""
    before = set(folder.glob("checkpoint_*"))
    try:
        yield
    except Exception:
        begun = [path for path in set(folder.glob("checkpoint_*")) - before if not is_whole(path)]
        for path in [*begun, *folder.glob(".saving-*")]:
            shutil.rmtree(path, ignore_errors=True)
        raise


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a folder, oldest first; torn or partial ones are not listed."""
    whole = [path for path in folder.glob("checkpoint_*") if path.is_dir() and is_whole(path)]
    return sorted(whole, key=lambda path: read_state(path)["step"])


def sound_checkpoint(folder: Path) -> tuple[Path | None, dict[Path, str]]:
    """The newest checkpoint with the bytes that were written; and newer ones, each with a file that has others.

    Raises UserError where there are checkpoints and none of them is sound: a training never begins anew unasked.
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
    """The whole checkpoint with the most steps, or None."""
    return next(iter(reversed(checkpoints(folder))), None)


def best_on_validation(folder: Path) -> Path | None:
    """Of the newest checkpoint's stage, the one of highest top-1 on the validation split, the later of equals.

    None where no epoch of that stage was validated.
    """
    found = [(read_state(path), path) for path in checkpoints(folder)]
    last_stage = found[-1][0]["stage"] if found else None
    validated = [
        (state["score"], state["step"], path)
        for state, path in found
        if state["stage"] == last_stage and state.get("score") is not None
    ]
    return max(validated)[2] if validated else None


def superseded(folder: Path, keep: int) -> list[Path]:
    """The whole checkpoints that can go: neither among the newest `keep` nor the best one on validation."""
    best = best_on_validation(folder)
    return [path for path in checkpoints(folder)[:-keep] if path != best]


def checkpoint_score(stage: int, validation_top1: float | None) -> float:
    """A number by which Ray Train orders checkpoints: later stages first, then higher top-1, then those without one."""
    return stage if validation_top1 is None else stage + (1 + validation_top1) / 3
