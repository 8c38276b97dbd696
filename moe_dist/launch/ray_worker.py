"""A rank inside Ray Train."""

from __future__ import annotations

import contextlib
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from moe_dist.disk import raising_disk_errors
from moe_dist.engine.checkpoint import damaged_file, is_whole
from moe_dist.train.checkpoints import sound_checkpoint
from moe_dist.train.worker import agreed


class RayWorker:
    """A rank inside Ray Train: every rank writes into a folder of its own and Ray merges them into one checkpoint."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        import ray.train

        context = ray.train.get_context()
        self.folder, self.device, self.deepspeed = folder, device, True
        self.rank, self.ranks = context.get_world_rank(), context.get_world_size()

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

        return agreed(look, self.rank, self.ranks)

    @contextlib.contextmanager
    def saving(self, metrics: dict[str, Any]) -> Iterator[Path]:
        """A temporary folder, given to Ray Train's report, which publishes the ranks' files as one checkpoint."""
        import ray.train

        with tempfile.TemporaryDirectory(prefix="moe-dist-") as folder:
            with raising_disk_errors(
                Path(folder).parent, f"a checkpoint (on {socket.gethostname()}, before it is copied)"
            ):
                yield Path(folder)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
