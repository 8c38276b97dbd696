"""A rank of a training by Ray Train."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from moe_dist.disk import raising_disk_errors
from moe_dist.engine.checkpoint import damaged_file, is_whole
from moe_dist.train.checkpoints import sound_checkpoint
from moe_dist.train.ends import Left, MoreRoom, NodeTaken
from moe_dist.train.log import Log
from moe_dist.train.worker import Worker, from_first_rank, sum_over_ranks

if TYPE_CHECKING:
    from moe_dist.launch.ray_metrics import TrainingMetrics


_room_for = 0
"""The number of workers for which there is room, as far as this process was told."""


def tell_of_room(workers: int) -> None:
    """Tell the rank of this process that the cluster has room for so many workers, more than train now."""
    global _room_for
    _room_for = workers


class RankOfRay:
    """What a rank of Ray Train is wherever its checkpoints go: whoever watches the cluster is told of it."""

    def __init__(self, device: torch.device) -> None:
        import ray.train

        context = ray.train.get_context()
        self.device, self.deepspeed = device, True
        self._metrics: TrainingMetrics | None = None
        self.rank, self.ranks = context.get_world_rank(), context.get_world_size()

    def metered(self, log: Log, job: str, model: str) -> Log:
        """See Worker. Rank 0 exports the training's numbers as metrics of Ray, which Prometheus may collect."""
        from moe_dist.launch.ray_metrics import MeteredLog, TrainingMetrics

        self._metrics = TrainingMetrics(job, model) if self.rank == 0 else None
        return MeteredLog(log, self._metrics) if self._metrics else log

    def leaving(self) -> Left | None:
        """See Worker. Ray tells the ranks of a node one after another, and they agree on it by a sum.

        Ray's own get_preemption_info is not called, because it waits for all ranks at an actor. Of room for more
        workers only the first rank is told (ElasticPolicy).
        """
        from ray.train.v2._internal.execution.context import get_train_context

        taken = get_train_context().preemption_context.preemption_info is not None
        told = torch.tensor([float(taken), float(_room_for)], device=self.device)
        anywhere, workers = sum_over_ranks(told, self.ranks).tolist()
        if anywhere:
            return NodeTaken()
        return MoreRoom(int(workers)) if workers > self.ranks else None

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        """Tell how long the block took to save a checkpoint."""
        started = time.perf_counter()
        yield
        if self._metrics:
            self._metrics.checkpoint(time.perf_counter() - started)


class RayWorker(RankOfRay):
    """A rank of Ray Train. Each rank writes into a folder of its own, and Ray merges them into one checkpoint."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        super().__init__(device)
        self.folder = folder

    def restore(self) -> Path | None:
        """See Worker. The checkpoint that Ray published last, if it is undamaged, else the newest in the folder.

        When a training starts, Ray knows no checkpoint, but an earlier run may have left some.
        """
        import ray.train

        def look() -> Path | None:
            published = ray.train.get_checkpoint()
            if published and is_whole(Path(published.path)) and damaged_file(Path(published.path)) is None:
                return Path(published.path)
            return sound_checkpoint(self.folder)[0]

        return from_first_rank(look, self.rank, self.ranks)

    @contextlib.contextmanager
    def saving(self, metrics: dict[str, Any]) -> Iterator[Path]:
        """See Worker. Ray Train copies the temporary folders of all ranks into one checkpoint."""
        import ray.train

        with self._timed(), tempfile.TemporaryDirectory(prefix="moe-dist-") as folder:
            with raising_disk_errors(
                Path(folder).parent, f"a checkpoint (on {socket.gethostname()}, before it is copied)"
            ):
                yield Path(folder)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


class RayStoreWorker(RankOfRay):
    """A rank of Ray Train whose run is at a URL, where `store` keeps its checkpoints."""

    def __init__(self, store: Worker, device: torch.device) -> None:
        super().__init__(device)
        self._store = store

    def restore(self) -> Path | None:
        """See Worker."""
        return self._store.restore()

    @contextlib.contextmanager
    def saving(self, metrics: dict[str, Any]) -> Iterator[Path]:
        """See Worker."""
        with self._timed(), self._store.saving(metrics) as folder:
            yield folder
