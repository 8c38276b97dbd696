"""A rank's resumable sequence of batches.

1. The epoch's order follows from (seed, epoch) alone, and every rank takes its share of each global batch from it
   (order.py), so any number of ranks sees the same global batches.
2. Only finished steps move the position: what was decoded ahead and never trained on is read again after a restart.
3. An image's augmentation is drawn from (seed, epoch, sample), so a resumed run sees the pixels an unbroken one sees.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from moe_dist.config import AugmentConfig, DataConfig
from moe_dist.data.augment import DRAWS, augment, normalise
from moe_dist.data.images import DiskImages
from moe_dist.data.order import Position, epoch_order, rank_batch, steps_per_epoch, uniform, valid_in_step
from moe_dist.errors import UserError
from moe_dist.methods.base import Batch, Images, TrainingSet


class Stream:
    """The batches of `training_set` that `rank` of `world` trains on, epoch after epoch.

    images: the split's images; config: normalisation, loader workers and shuffle window; global_batch: samples per step
    over all ranks; augment: random changes, or None; shuffle: False keeps the order of `training_set`;
    shard_of [images]: each image's shard, needed with `config.window_shards`.
    Raises UserError where global_batch is no multiple of world or the set is empty.
    """

    def __init__(
        self,
        images: Images,
        training_set: TrainingSet,
        config: DataConfig,
        *,
        seed: int,
        global_batch: int,
        rank: int,
        world: int,
        augment: AugmentConfig | None = None,
        shuffle: bool = True,
        device: str | torch.device = "cpu",
        shard_of: np.ndarray | None = None,
    ) -> None:
        require_divisible(global_batch, world)
        if not len(training_set.samples):
            raise UserError("a training stage was given no samples; look at the steps before it")
        self.position = Position()
        self._set = training_set
        self._columns = {name: _column(values) for name, values in training_set.columns.items()}
        self._config = config
        self._seed = seed
        self._global_batch = global_batch
        self._rank = rank
        self._world = world
        self._augment = augment
        self._shuffle = shuffle
        self._device = torch.device(device)
        self._shard_of = None if shard_of is None else shard_of[training_set.samples]
        self._loader = _Loader(images, config.loader_workers, pin_memory=self._device.type == "cuda")

    def __len__(self) -> int:
        """Steps of one epoch, the same on every rank."""
        return steps_per_epoch(len(self._set.samples), self._global_batch)

    def epoch(self) -> Iterator[Batch]:
        """The batches from the current position to the end of its epoch; call `advance` after each finished step."""
        epoch, first = self.position.epoch, self.position.steps
        order = self._order(epoch)
        steps = range(first, len(self))
        shares = [rank_batch(order, step, self._global_batch, self._rank, self._world) for step in steps]
        pixels = self._loader.load([self._set.samples[rows] for rows, _ in shares])
        for step, (rows, valid), images in zip(steps, shares, pixels):
            yield self._batch(epoch, step, rows, valid, images)

    def advance(self) -> None:
        """Count one finished step; after the last of an epoch the next epoch begins."""
        self.position = self.position.next(len(self))

    def state(self) -> dict[str, Any]:
        """Where the stream stands and what it streams, in plain values; the number of ranks is no part of it."""
        return {"epoch": self.position.epoch, "steps": self.position.steps, **self._identity()}

    def load(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken. Raises UserError where it was taken from another stream."""
        for name, value in self._identity().items():
            if state[name] != value:
                raise UserError(
                    f"the checkpoint's data stream has {name} = {state[name]} and this job's has {value}; resume with "
                    "the same data, seed and batch size, or start a new run"
                )
        self.position = Position(state["epoch"], state["steps"])

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self._seed,
            "global_batch": self._global_batch,
            "samples": len(self._set.samples),
            "digest": _digest(self._set),
        }

    def _order(self, epoch: int) -> np.ndarray:
        count = len(self._set.samples)
        if not self._shuffle:
            return np.arange(count)
        return epoch_order(count, self._seed, epoch, self._shard_of, self._config.window_shards)

    def _batch(self, epoch: int, step: int, rows: np.ndarray, valid: np.ndarray, images: Tensor) -> Batch:
        samples = self._set.samples[rows]
        weight = valid * (self._world / valid_in_step(len(self._set.samples), step, self._global_batch))
        images = images.to(self._device, non_blocking=True)
        if self._augment is not None:
            images = augment(images, self._augment, uniform(self._seed, epoch, samples, DRAWS))
        return Batch(
            images=normalise(images, self._config.mean, self._config.std),
            labels=self._to_device(self._set.labels[rows].astype(np.int64)),
            samples=self._to_device(samples.astype(np.int64)),
            weight=self._to_device(weight.astype(np.float32)),
            columns={name: self._to_device(values[rows]) for name, values in self._columns.items()},
        )

    def _to_device(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self._device, non_blocking=True)


def require_divisible(global_batch: int, world: int) -> None:
    """Raise UserError where a batch cannot be divided evenly over the workers."""
    if global_batch % world:
        raise UserError(
            f"batch_size = {global_batch} is the batch over all workers and no multiple of workers = {world}; "
            "change one of the two"
        )


def evaluation_batches(
    images: Images,
    samples: np.ndarray,
    labels: np.ndarray,
    config: DataConfig,
    *,
    batch_size: int,
    device: str | torch.device = "cpu",
) -> Iterator[Batch]:
    """The batches of `samples` [N] with `labels` [N] once, in order and unchanged; the last is padded with weight 0."""
    stream = Stream(
        images,
        TrainingSet(samples, labels),
        config,
        seed=0,
        global_batch=batch_size,
        rank=0,
        world=1,
        shuffle=False,
        device=device,
    )
    return stream.epoch()


def _column(values: np.ndarray) -> np.ndarray:
    """A training set's column as batches carry it: float32, or int64."""
    return values.astype(np.float32 if np.issubdtype(values.dtype, np.floating) else np.int64)


def _digest(training_set: TrainingSet) -> str:
    """A name for what is trained on: the samples, their labels and their columns, in order."""
    digest = hashlib.sha256()
    for values in (training_set.samples.astype(np.int64), training_set.labels.astype(np.int64)):
        digest.update(values.tobytes())
    for name in sorted(training_set.columns):
        digest.update(name.encode())
        digest.update(_column(training_set.columns[name]).tobytes())
    return digest.hexdigest()


class _Remaining(Sampler[np.ndarray]):
    """The samples of each batch still to come, set anew before every pass over the loader."""

    def __init__(self) -> None:
        self.batches: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.batches)


class _Decoder(Dataset[Tensor | UserError]):
    """Whole batches by their samples; an error travels as a value, or a worker would wrap it in its own traceback."""

    def __init__(self, images: Images) -> None:
        self._images = images

    def __getitem__(self, samples: np.ndarray) -> Tensor | UserError:
        try:
            return self._images.uint8(samples)
        except UserError as error:
            return error


class _Loader:
    """Fetches batches of images: from disk by `workers` processes ahead of time, otherwise in this process."""

    def __init__(self, images: Images, workers: int, pin_memory: bool) -> None:
        self._remaining = _Remaining()
        processes = workers if isinstance(images, DiskImages) else 0
        self._loader = DataLoader(
            _Decoder(images),
            batch_size=None,  # a sample of this loader is a batch already
            sampler=self._remaining,
            num_workers=processes,
            persistent_workers=processes > 0,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # the global one would move at every pass, and a resumed run differ
        )

    def load(self, batches: list[np.ndarray]) -> Iterator[Tensor]:
        """The images [n, 3, S, S] uint8 of each entry of `batches` [n], in order."""
        self._remaining.batches = batches
        for images in self._loader:
            if isinstance(images, UserError):
                raise images
            yield images
