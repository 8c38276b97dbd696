"""Results that a run takes over from a run beside it, where their fingerprints are equal, and so their numbers."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from moe_dist.files import flush_to_disk, read_json, write_json

STEP_DONE, TRAINING_DONE = "done.json", "training.json"
"""The file that says that a step's or a training's folder is whole; it is written last, and holds the fingerprint."""
OF_THE_RUN = ("evaluations",)
"""What a training's folder holds that is not taken over: an evaluation tells of the run that made it."""
CHECKPOINTS = "checkpoints"
NEVER_CHANGED = {".npz", ".safetensors"}
"""Suffixes of files that are only ever written as a whole, so that two runs may hold the same one."""


def take_over(folder: Path, run: Path, done: str, fingerprint: str, start: int) -> Path | None:
    """Make `folder` of the run directory `run` from an equal result of a run beside it; None if there is no such.

    done: STEP_DONE or TRAINING_DONE; start: the number of this run's start, which the result then carries, beside where
    it was taken from (`taken_from`). Large files are hard links where the file system has them. A folder that is
    there is left alone: it is whole, or its training is gone on with.
    """
    if folder.exists():
        return None
    below_model = folder.relative_to(run).parts[1:]  # the same result may belong to a model of another name
    for found in sorted(run.parent.glob("/".join(["*", "*", *below_model, done]))):
        about = read_json(found)
        if about and about.get("fingerprint") == fingerprint and is_at_hand(found):
            return _copied(found.parent, folder, done, about, run, start)
    return None


def is_at_hand(done: Path) -> bool:
    """Whether a result is here as a whole, given the file that says it is done: checkpoints may be at a URL alone."""
    return done.name != TRAINING_DONE or any((done.parent / CHECKPOINTS).glob("*/*"))


def _copied(source: Path, folder: Path, done: str, about: dict[str, Any], run: Path, start: int) -> Path:
    """A copy of a whole result, which appears under its name when it is whole."""
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copytree(source, partial, copy_function=_link_or_copy, ignore=shutil.ignore_patterns(*OF_THE_RUN))
        origin = about.get("taken_from", source.relative_to(run.parent).as_posix())
        about |= {"taken_from": origin, "start": start} if "start" in about else {"taken_from": origin}
        about |= {"made": [stretch | {"start": start} for stretch in about["made"]]} if "made" in about else {}
        write_json(partial / done, about)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return source


def _link_or_copy(source: str, target: str) -> None:
    if Path(source).suffix in NEVER_CHANGED:
        try:
            os.link(source, target)
            return
        except OSError:  # another file system, or one without hard links
            pass
    shutil.copy2(source, target)
    flush_to_disk(Path(target))  # or a power cut could leave the folder's name and empty files
