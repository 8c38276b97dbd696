"""A rank's resumable sequence of batches.

Letters: N samples of the training set, B samples of a batch (the rank's share), S image side, F images loaded for a
batch: its own B first, then those partners for MixUp and CutMix that are not among them.

1. The epoch's order follows from (seed, epoch) alone, and every rank takes its share of each global batch from it
   (order.py), so any number of ranks sees the same global batches.
2. Only finished steps move the position: what was decoded ahead and not trained on is read again after a restart.
3. An image's augmentation is drawn from (seed, epoch, sample), so a resumed run sees the pixels that an unbroken one
   sees. Where an epoch shows an image several times, each copy has draws of its own. Where a GPU trains, loader
   processes make the changes ahead of its steps, by the processor: to the bit the pixels that a CPU trains on.
4. A bad sample that the job lets pass is a black image of weight 0. The other samples of its batch keep their weights,
   as only its own rank knows of it: the batch's mean counts it as a loss of 0, and the number of batches stays.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe_dist.data.augment.augment import DRAWS, MIX_DRAWS, augment, mix, normalise
from moe_dist.data.batch import Batch, Images, TrainingSet
from moe_dist.data.opened.images import EncodedImages
from moe_dist.data.order import (
    MIXES,
    epoch_order,
    occurrences,
    partner_positions,
    rank_batch,
    rank_positions,
    sampled_order,
    steps_per_epoch,
    uniform,
    with_partners,
)
from moe_dist.data.stream.loader import Loader, on_device
from moe_dist.errors import UserError
from moe_dist.settings.augment import AugmentConfig
from moe_dist.settings.data import DataConfig
from moe_dist.settings.training import Sampling

PROCESSES_BESIDE_A_GPU = 4
"""Loader processes for a rank on a GPU where the job does not say: CIFAR's changes of a batch of 128 take one of them
6.5 ms, about as long as the GPU takes for a step of ICL."""
UNCHANGED = AugmentConfig()
COMPANION_REPEATS = 2**40
"""Beyond the copies of any sample in an epoch."""


@dataclass(frozen=True)
class _Order:
    """An epoch's positions: the row of the set at each [P], which of its row's copies it is, and whether it counts."""

    rows: np.ndarray
    repeats: np.ndarray
    valid: np.ndarray


@dataclass(frozen=True)
class Position:
    """The place of a stream: `steps` of epoch `epoch` are finished on all ranks."""

    epoch: int = 0
    steps: int = 0


@dataclass(frozen=True)
class _Share:
    """A rank's share of a global batch: B samples, of which F >= B are loaded: its own, partners, companions.

    rows [F]: rows of the training set; repeats [F]: which of its row's copies in the epoch each is; weight [B]: see
    Batch; partners [B]: where the partner of each is among the F, or None; companions [B, k]: rows of the set, -1 for
    none, or None.
    """

    rows: np.ndarray
    repeats: np.ndarray
    weight: np.ndarray
    partners: np.ndarray | None = None
    companions: np.ndarray | None = None


class Stream:
    """The batches of `training_set` that `rank` of `ranks` trains on, epoch after epoch.

    images: the split's images; config: normalisation, loader workers and shuffle window; global_batch: samples of a
    step over all ranks; augment: random changes, or None; shuffle: False keeps the order of `training_set`; shard_of:
    the shard of each of `images`, needed with `config.window_shards`; sampling: how often an epoch shows each label of
    `training_set`; epochs: those of the whole stage, which progressive sampling needs; order: makes the epochs' batches
    instead (methods/phases.py's EpochOrder); beside: a stream that is not read at the same time, whose loader processes
    work for this one, too.
    Raises UserError where global_batch is not a multiple of ranks, the set is empty, or its classes are sampled and
    the epoch is shuffled in windows of shards.
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
        ranks: int,
        augment: AugmentConfig | None = None,
        shuffle: bool = True,
        device: str | torch.device = "cpu",
        shard_of: np.ndarray | None = None,
        sampling: Sampling = "instance",
        epochs: int = 1,
        order: Callable[[np.ndarray, int, int, int], np.ndarray] | None = None,
        beside: Stream | None = None,
    ) -> None:
        require_divisible(global_batch, ranks)
        require_no_window(sampling, config)
        if not len(training_set.samples):
            raise UserError("a training stage was given no samples; look at the steps before it")
        self.position = Position()
        self._set = training_set
        self._columns = {
            name: values.astype(np.float32 if np.issubdtype(values.dtype, np.floating) else np.int64)
            for name, values in training_set.columns.items()
        }
        self._config = config
        self._seed = seed
        self._global_batch = global_batch
        self._rank = rank
        self._ranks = ranks
        self._augment = augment
        self._shuffle = shuffle
        self._sampling: Sampling = sampling
        self._epochs = epochs
        self._own_order = order
        self._own_steps: int | None = None
        self._device = torch.device(device)
        self._shard_of = None if shard_of is None else shard_of[training_set.samples]
        self._changed_ahead = self._device.type == "cuda" and augment is not None and augment != UNCHANGED
        processes = _processes(config, images, self._changed_ahead, beside)
        self._loader: Loader
        if beside is not None and beside._loader.processes == processes:
            self._loader = beside._loader
        else:
            self._loader = Loader(processes, pin_memory=self._device.type == "cuda")
        crop_scale = None if augment is None else augment.resized_crop
        self._number = self._loader.add(images, seed, crop_scale, augment if self._changed_ahead else None)

    def __len__(self) -> int:
        """Steps of one epoch, the same on every rank and in every epoch."""
        if self._own_order is None:
            return steps_per_epoch(self.samples_count, self._global_batch)
        if self._own_steps is None:
            self._own_steps = len(self._own_order(self._set.labels, self._seed, 0, self._global_batch))
        return self._own_steps

    @property
    def samples_count(self) -> int:
        """How many samples the set has."""
        return len(self._set.samples)

    def epoch(
        self, arrays: Mapping[str, np.ndarray] | None = None, companions: str | None = None, most: int | None = None
    ) -> Iterator[Batch]:
        """The batches from the current position to the end of its epoch; call `advance` after each finished step.

        arrays: further columns [N, ...] of the set; companions: the name of one, [N, k] rows of the set, -1 for none,
        whose images come with the batch; most: of the batches, so many.
        """
        arrays = arrays or {}
        epoch, first = self.position.epoch, self.position.steps
        order = self._order(epoch)
        last = len(self) if most is None else min(len(self), first + most)
        beside = None if companions is None else arrays[companions]
        shares = [self._share(order, step, beside) for step in range(first, last)]
        wanted = [(epoch, self._set.samples[share.rows], share.repeats) for share in shares]
        loaded = on_device(self._loader.load(self._number, wanted), self._device)
        for share, (images, readable) in zip(shares, loaded):
            yield self._batch(epoch, share, images, readable.numpy(), arrays)

    def advance(self) -> None:
        """Count one finished step; after the last step of an epoch the next epoch begins."""
        steps = self.position.steps + 1
        self.position = Position(self.position.epoch, steps) if steps < len(self) else Position(self.position.epoch + 1)

    def state(self) -> dict[str, Any]:
        """The stream's position, settings and data as plain values; the number of ranks is not among them."""
        return {"epoch": self.position.epoch, "steps": self.position.steps, **self._identity()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from the position of `state`. Raises UserError where it is the state of another stream."""
        for name, value in self._identity().items():
            if state[name] != value:
                raise UserError(
                    f"the checkpoint's data stream has {name} = {state[name]} and this job's has {value}; resume with "
                    "the same data, seed and batch size, or start a new run"
                )
        self.position = Position(state["epoch"], state["steps"])

    def _identity(self) -> dict[str, Any]:
        """The stream's settings and data. digest: over the samples, their labels and their columns, in order."""
        digest = hashlib.sha256(self._set.samples.astype(np.int64).tobytes())
        digest.update(self._set.labels.astype(np.int64).tobytes())
        for name, values in sorted(self._columns.items()):
            digest.update(name.encode())
            digest.update(values.tobytes())
        progressive = self._sampling == "progressive"
        return {
            "seed": self._seed,
            "global_batch": self._global_batch,
            "samples": len(self._set.samples),
            "digest": digest.hexdigest(),
            "sampling": f"progressive over {self._epochs} epochs" if progressive else self._sampling,
        }

    def _order(self, epoch: int) -> _Order:
        count = self.samples_count
        if self._own_order is not None:
            rows = self._own_order(self._set.labels, self._seed, epoch, self._global_batch)
            assert rows.shape == (len(self), self._global_batch), "an epoch's order has a row a step"
            return _Order(np.maximum(rows, 0).ravel(), occurrences(rows.ravel()), rows.ravel() >= 0)
        repeats = np.zeros(count, np.int64)
        if self._shuffle and self._sampling != "instance":
            rows, repeats = sampled_order(self._set.labels, self._sampling, self._seed, epoch, self._epochs)
        elif self._shuffle:
            rows = epoch_order(count, self._seed, epoch, self._shard_of, self._config.window_shards)
        else:
            rows = np.arange(count)
        return _Order(rows, repeats, np.ones(count, bool))

    def _share(self, order: _Order, step: int, beside: np.ndarray | None) -> _Share:
        """This rank's share of a global batch; beside [N, k]: the rows of each sample's companions."""
        where = (step, self._global_batch, self._rank, self._ranks)
        positions = rank_positions(*where)
        rows, inside = rank_batch(order.rows, *where)
        repeats, _ = rank_batch(order.repeats, *where)
        valid = inside & rank_batch(order.valid, *where)[0]
        batch = slice(step * self._global_batch, (step + 1) * self._global_batch)
        weight = valid * (self._ranks / int(order.valid[batch].sum()))
        further = np.zeros(0, np.int64)
        partners = companions = None
        if self._augment is not None and (self._augment.mixup or self._augment.cutmix):
            assert self._own_order is None, "who is mixed with whom is told for epochs of all samples alone"
            own = partner_positions(positions, len(order.rows), self._global_batch)
            further, partners = with_partners(positions, own)
        more_rows, more_repeats = order.rows[further], order.repeats[further]
        if beside is not None:
            companions = beside[rows]
            more_rows = np.append(more_rows, np.maximum(companions, 0).ravel())
            # Draws of their own, whoever they are companions of and on whatever rank.
            places = positions[:, None] * companions.shape[1] + np.arange(companions.shape[1])
            more_repeats = np.append(more_repeats, COMPANION_REPEATS + places.ravel())
        rows, repeats = np.append(rows, more_rows), np.append(repeats, more_repeats)
        return _Share(rows, repeats, weight, partners, companions)

    def _batch(
        self, epoch: int, share: _Share, images: Tensor, readable: np.ndarray, arrays: Mapping[str, np.ndarray]
    ) -> Batch:
        """The batch of `share` from its images [F, 3, S, S] as loaded; readable [F]: False for bad samples."""
        size = len(share.weight)
        own_share = partner = companions = None
        if self._augment is not None and not self._changed_ahead:
            loaded = self._set.samples[share.rows]
            images = augment(images, self._augment, uniform(self._seed, epoch, loaded, DRAWS, share.repeats))
        if share.companions is not None:
            count = share.companions.size
            beside, images = images[len(images) - count :], images[: len(images) - count]
            companions = self._companions(beside, share.companions)
        if share.partners is not None and self._augment is not None:
            own = self._set.samples[share.rows[:size]]
            draws = uniform(self._seed, epoch, own, MIX_DRAWS, share.repeats[:size], MIXES)
            images, own_share = mix(images, share.partners, readable[: len(images)], self._augment, draws)
            partner = self._to_device(self._set.labels[share.rows[share.partners]].astype(np.int64))
        rows, weight = share.rows[:size], share.weight * readable[:size]
        columns = self._columns | {name: _column(values) for name, values in arrays.items()}
        return Batch(
            images=normalise(images, self._config.mean, self._config.std),
            labels=self._to_device(self._set.labels[rows].astype(np.int64)),
            samples=self._to_device(self._set.samples[rows].astype(np.int64)),
            weight=self._to_device(weight.astype(np.float32)),
            rows=self._to_device(rows.astype(np.int64)),
            columns={name: self._to_device(values[rows]) for name, values in columns.items()},
            companions=companions,
            partner=partner,
            share=own_share,
        )

    def _companions(self, images: Tensor, rows: np.ndarray) -> Tensor:
        """The companions' images [B, k, 3, S, S], black where `rows` [B, k] name none."""
        shown = normalise(images, self._config.mean, self._config.std).unflatten(0, rows.shape)
        there = self._to_device((rows >= 0).astype(np.float32))
        return shown * there.view(*there.shape, *[1] * (shown.dim() - 2))

    def _to_device(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self._device, non_blocking=True)


def _processes(config: DataConfig, images: Images, changed_ahead: bool, beside: Stream | None) -> int:
    """The number of loader processes of a stream; those of `beside` if it can use them, too."""
    if not (changed_ahead or isinstance(images, EncodedImages)):
        return 0
    if config.loader_workers is not None:
        return config.loader_workers
    if changed_ahead:
        return min(PROCESSES_BESIDE_A_GPU, os.cpu_count() or 1)
    return beside._loader.processes if beside is not None else 0


def require_divisible(global_batch: int, ranks: int) -> None:
    """Raise UserError where a batch cannot be divided evenly over the workers."""
    if rest := global_batch % ranks:
        near = f"{global_batch - rest} or {global_batch - rest + ranks}" if global_batch > ranks else f"{ranks}"
        raise UserError(
            f"batch_size = {global_batch} is the batch over all workers and not a multiple of workers = {ranks}; "
            f"set it to {near}, or change workers"
        )


def require_no_window(sampling: Sampling, config: DataConfig) -> None:
    """Raise UserError where a job samples classes and shuffles in windows of shards."""
    if sampling != "instance" and config.window_shards:
        raise UserError(
            f"data.window_shards = {config.window_shards} shows every image once, window after window, and cannot be "
            f"joined with sampling = {sampling}: set data.window_shards to 0 or sampling to instance"
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
    """The batches of `samples` [N] with `labels` [N] once, in order and unchanged; the last is padded with weight 0.

    A batch has at most N rows, because a network computes padding like any image.
    """
    stream = Stream(
        images,
        TrainingSet(samples, labels),
        config,
        seed=0,
        global_batch=min(batch_size, len(samples)),
        rank=0,
        ranks=1,
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
