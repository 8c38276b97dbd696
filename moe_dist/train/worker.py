"""What the loop knows of where it runs: one worker interface, two launchers behind it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from moe_dist.disk import disk_explained
from moe_dist.errors import UserError
from moe_dist.files import flush_to_disk
from moe_dist.train.checkpoint import damaged_file, is_whole, read_state

TRAINING_FILES = "a checkpoint or the log"
"""What a rank writes into its training's folder."""


class Worker(Protocol):
    """One rank of a training."""

    rank: int
    world: int
    device: torch.device
    deepspeed: bool
    """Whether a DeepSpeed engine drives the network; the local launcher does without for a single rank."""

    def restore(self) -> Path | None:
        """The folder of the newest checkpoint whose bytes are those that were written, or None. Collective.

        Raises UserError, on every rank, where there are checkpoints and none of them is sound.
        """

    def saving(self, metrics: dict[str, Any]) -> contextlib.AbstractContextManager[Path]:
        """A folder to write a checkpoint into; leaving the block publishes it. Every rank takes part.

        metrics: the step, and the checkpoint's `standing`.
        """


class LocalWorker:
    """A rank started by the local launcher: checkpoints are folders renamed into place."""

    def __init__(self, folder: Path, keep: int, rank: int, world: int, device: torch.device) -> None:
        self.folder, self.keep, self.rank, self.world, self.device = folder, keep, rank, world, device
        self.deepspeed = world > 1

    def restore(self) -> Path | None:
        """The newest sound checkpoint of the folder."""
        return agreed(lambda: sound_checkpoint(self.folder)[0], self.rank, self.world)

    @contextlib.contextmanager
    def saving(self, metrics: dict[str, Any]) -> Iterator[Path]:
        """All ranks write into one hidden folder; rank 0 renames it when everyone is done, and drops the oldest."""
        hidden = self.folder / f".saving-{metrics['step']:08d}"
        if self.rank == 0:
            for torn in self.folder.glob(".saving-*"):  # of a run that was killed
                shutil.rmtree(torn)
            hidden.mkdir(parents=True)
        self._barrier()
        yield hidden
        self._barrier()
        if self.rank == 0:
            final = self.folder / f"checkpoint_{metrics['step']:08d}"
            shutil.rmtree(final, ignore_errors=True)
            os.replace(hidden, final)
            flush_to_disk(self.folder)
            for old in superseded(self.folder, self.keep):
                shutil.rmtree(old)
        self._barrier()

    def _barrier(self) -> None:
        if self.world > 1:
            dist.barrier()


class RayWorker:
    """A rank inside Ray Train: every rank writes into a folder of its own and Ray merges them into one checkpoint."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        import ray.train

        context = ray.train.get_context()
        self.folder, self.device, self.deepspeed = folder, device, True
        self.rank, self.world = context.get_world_rank(), context.get_world_size()

    def restore(self) -> Path | None:
        """What Ray says was published last, if it is sound, else the newest sound one in the folder.

        (At the first start of a fit Ray knows of none, and an earlier run may have left some.)
        """
        import ray.train

        def look() -> Path | None:
            published = ray.train.get_checkpoint()
            if published and is_whole(Path(published.path)) and damaged_file(Path(published.path)) is None:
                return Path(published.path)
            return sound_checkpoint(self.folder)[0]

        return agreed(look, self.rank, self.world)

    @contextlib.contextmanager
    def saving(self, metrics: dict[str, Any]) -> Iterator[Path]:
        """A temporary folder, given to Ray Train's report, which publishes the ranks' files as one checkpoint."""
        import ray.train

        with tempfile.TemporaryDirectory(prefix="moe-dist-") as folder:
            with disk_explained(Path(folder).parent, f"a checkpoint (on {socket.gethostname()}, before it is copied)"):
                yield Path(folder)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


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


def agreed(look: Callable[[], Path | None], rank: int, world: int) -> Path | None:
    """What rank 0 finds by `look`, on every rank: two that looked for themselves could see different folders.

    A UserError of rank 0 is raised on every rank.
    """
    found: list[tuple[Path | None, str]] = [(None, "")]
    if rank == 0:
        try:
            found = [(look(), "")]
        except UserError as error:
            found = [(None, str(error))]
    if world > 1:
        dist.broadcast_object_list(found)
    path, refused = found[0]
    if refused:
        raise UserError(refused)
    return path


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
        (state["validation_top1"], state["step"], path)
        for state, path in found
        if state["stage"] == last_stage and state.get("validation_top1") is not None
    ]
    return max(validated)[2] if validated else None


def superseded(folder: Path, keep: int) -> list[Path]:
    """The whole checkpoints that can go: neither among the newest `keep` nor the best one on validation."""
    best = best_on_validation(folder)
    return [path for path in checkpoints(folder)[:-keep] if path != best]


def standing(stage: int, validation_top1: float | None) -> float:
    """A number by which Ray Train orders checkpoints: later stages first, then higher top-1, then those without one."""
    return stage if validation_top1 is None else stage + (1 + validation_top1) / 3


def mean_over_ranks(values: torch.Tensor, world: int) -> torch.Tensor:
    """The ranks' average of `values`, on every rank."""
    return sum_over_ranks(values, world) / world


def sum_over_ranks(values: torch.Tensor, world: int) -> torch.Tensor:
    """The ranks' sum of `values`, on every rank."""
    if world > 1:
        dist.all_reduce(values)
    return values
