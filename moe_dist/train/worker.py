"""What the loop knows of where it runs: one worker interface, two launchers behind it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist

from moe_dist.errors import UserError
from moe_dist.files import flush_to_disk
from moe_dist.train.checkpoints import sound_checkpoint, superseded

TRAINING_FILES = "a checkpoint or the log"
"""What a rank writes into its training's folder."""


class Worker(Protocol):
    """One rank of a training."""

    rank: int
    ranks: int
    device: torch.device
    deepspeed: bool
    """Whether a DeepSpeed engine drives the network; the local launcher does without for a single rank."""

    def restore(self) -> Path | None:
        """The folder of the newest checkpoint whose bytes are those that were written, or None. Collective.

        Raises UserError, on every rank, where there are checkpoints and none of them is sound.
        """

    def saving(self, metrics: dict[str, Any]) -> contextlib.AbstractContextManager[Path]:
        """A folder to write a checkpoint into; leaving the block publishes it. Every rank takes part.

        metrics: step, of_steps, the checkpoint's `checkpoint_score`, and done: whether the training ends with it.
        """


class LocalWorker:
    """A rank started by the local launcher: checkpoints are folders renamed into place."""

    def __init__(self, folder: Path, keep: int, rank: int, ranks: int, device: torch.device) -> None:
        self.folder, self.keep, self.rank, self.ranks, self.device = folder, keep, rank, ranks, device
        self.deepspeed = ranks > 1

    def restore(self) -> Path | None:
        """The newest sound checkpoint of the folder."""
        return agreed(lambda: sound_checkpoint(self.folder)[0], self.rank, self.ranks)

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
        if self.ranks > 1:
            dist.barrier()


def agreed(look: Callable[[], Path | None], rank: int, ranks: int) -> Path | None:
    """What rank 0 finds by `look`, on every rank: two that looked for themselves could see different folders."""
    return from_first_rank(lambda: {"path": look()}, rank, ranks)["path"]


def mean_over_ranks(values: torch.Tensor, ranks: int) -> torch.Tensor:
    """The ranks' average of `values`, on every rank."""
    return sum_over_ranks(values, ranks) / ranks


def sum_over_ranks(values: torch.Tensor, ranks: int) -> torch.Tensor:
    """The ranks' sum of `values`, on every rank."""
    if ranks > 1:
        dist.all_reduce(values)
    return values


def sum_into_all(arrays: Mapping[str, np.ndarray], ranks: int, device: torch.device) -> dict[str, np.ndarray]:
    """Arrays of which every rank has filled its own part and left zeros elsewhere, whole on every rank. Collective."""
    if ranks == 1:
        return dict(arrays)
    whole = {}
    for name in sorted(arrays):
        values = torch.from_numpy(arrays[name]).to(device)
        dist.all_reduce(values)
        whole[name] = values.cpu().numpy()
    return whole


def from_first_rank(function: Callable[[], Mapping[str, Any]], rank: int, ranks: int) -> dict[str, Any]:
    """What `function` gives on rank 0, on every rank; a UserError of rank 0 is raised on every rank. Collective."""
    found: list[Any] = [None, ""]
    if rank == 0:
        try:
            found = [dict(function()), ""]
        except UserError as error:
            found = [None, str(error)]
    if ranks > 1:
        dist.broadcast_object_list(found)
    if found[1]:
        raise UserError(found[1])
    return found[0]
