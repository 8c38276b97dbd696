"""The interface between the training loop and a launcher, the local launcher's side of it, and exchanges of ranks."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from moe_dist.errors import UserError
from moe_dist.files import flush_to_disk
from moe_dist.train.checkpoints import sound_checkpoint, superseded
from moe_dist.train.ends import Left
from moe_dist.train.log import Log

T = TypeVar("T")
TRAINING_FILES = "a checkpoint or the log"
"""What a rank writes into its training's folder, in the words of error messages."""


class Worker(Protocol):
    """One rank of a training, of `ranks` in all."""

    rank: int
    ranks: int
    device: torch.device
    deepspeed: bool
    """Whether DeepSpeed trains the network; the local launcher does not use it for a single rank."""

    def restore(self) -> Path | None:
        """The folder of the newest undamaged checkpoint, or None without checkpoints. Collective.

        Raises UserError on every rank if all checkpoints are damaged.
        """

    def saving(self, metrics: dict[str, Any]) -> contextlib.AbstractContextManager[Path]:
        """Give the block a folder to write a checkpoint into, and publish the checkpoint afterwards. Collective.

        metrics: step, of_steps, checkpoint_score, and done: whether this is the last checkpoint of the training.
        """

    def metered(self, log: Log, job: str, model: str) -> Log:
        """The log of a training, as it is, or as one that also tells whoever watches the cluster."""

    def leaving(self) -> Left | None:
        """Why it is time for a checkpoint and the end of all ranks, if it is. Collective."""


class LocalWorker:
    """A rank of the local launcher. Checkpoints are folders that are renamed when they are complete."""

    def __init__(self, folder: Path, keep: int, rank: int, ranks: int, device: torch.device) -> None:
        self.folder, self.keep, self.rank, self.ranks, self.device = folder, keep, rank, ranks, device
        self.deepspeed = ranks > 1

    def restore(self) -> Path | None:
        """See Worker."""
        return from_first_rank(lambda: sound_checkpoint(self.folder)[0], self.rank, self.ranks)

    @contextlib.contextmanager
    def saving(self, metrics: dict[str, Any]) -> Iterator[Path]:
        """See Worker. All ranks write to one hidden folder; rank 0 renames it and removes superseded checkpoints."""
        hidden = self.folder / f".saving-{metrics['step']:08d}"
        if self.rank == 0:
            for torn in self.folder.glob(".saving-*"):  # left by a run that was killed
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

    def metered(self, log: Log, job: str, model: str) -> Log:
        """See Worker. A local training is watched by its files alone."""
        return log

    def leaving(self) -> Left | None:
        """See Worker. This machine stays; a signal ends the command itself."""
        return None

    def _barrier(self) -> None:
        if self.ranks > 1:
            dist.barrier()


def sum_over_ranks(values: torch.Tensor, ranks: int) -> torch.Tensor:
    """The sum of `values` over ranks, on every rank, in place. Collective."""
    if ranks > 1:
        dist.all_reduce(values)
    return values


def sum_into_all(arrays: Mapping[str, np.ndarray], ranks: int, device: torch.device) -> dict[str, np.ndarray]:
    """The sums of `arrays` over ranks, on every rank: each rank fills its own part and leaves zeros. Collective."""
    if ranks == 1:
        return dict(arrays)
    whole = {}
    for name in sorted(arrays):
        values = torch.from_numpy(arrays[name]).to(device)
        dist.all_reduce(values)
        whole[name] = values.cpu().numpy()
    return whole


def from_first_rank(function: Callable[[], T], rank: int, ranks: int) -> T:
    """The result of `function` on rank 0, on every rank; its UserError is also raised on every rank. Collective."""
    found: list[Any] = [None, ""]
    if rank == 0:
        try:
            found = [function(), ""]
        except UserError as error:
            found = [None, str(error)]
    if ranks > 1:
        dist.broadcast_object_list(found)
    if found[1]:
        raise UserError(found[1])
    return found[0]
