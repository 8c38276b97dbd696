"""What the parts of the program that see images speak of: a batch, a training set, a split's images, a dataset.

Letters used in shapes here: B samples of a batch, N samples of a set, C classes, S image side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from moe_dist.data.image.crops import RandomCrop


@dataclass(frozen=True)
class DatasetInfo:
    """What a method may know of a dataset before it sees an image.

    class_counts [C]: training images of each class, validation left out.
    """

    classes: int
    class_names: tuple[str, ...]
    image_size: int
    train_images: int
    class_counts: tuple[int, ...] = ()


@dataclass
class Batch:
    """One rank's share of a global batch.

    images [B, 3, S, S] float32, normalised; labels [B] int64, the labels this stage may see; samples [B] int64, their
    numbers in the training (or validation, test) split; rows [B] int64, their rows in the set that is streamed;
    weight [B] float32: 0 for padding, otherwise ranks / valid samples of the *global* batch, so that the ranks' average
    of `mean` is the global batch's mean;
    columns: further int64 or float32 tensors [B, ...] of the training set, by name (a DFCP sample's cluster);
    companions [B, k, 3, S, S]: the images of each one's companions, black where there is none; None without.
    partner [B] int64, share [B] float32: under MixUp and CutMix, the label of the image that each is joined with, and
    how much of it is its own; None without.
    """

    images: Tensor
    labels: Tensor
    samples: Tensor
    weight: Tensor
    rows: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    columns: dict[str, Tensor] = field(default_factory=dict)
    companions: Tensor | None = None
    partner: Tensor | None = None
    share: Tensor | None = None

    def mean(self, values: Tensor) -> Tensor:
        """The weighted mean of per-sample `values` [B]: what a loss term reduces with."""
        return (self.weight * values).sum()

    def mean_over_labels(self, per_sample_loss: Callable[[Tensor], Tensor]) -> Tensor:
        """The `mean` of a loss of labels [B] -> [B], for mixed images by their shares of both labels."""
        if self.partner is None or self.share is None:
            return self.mean(per_sample_loss(self.labels))
        own, other = per_sample_loss(self.labels), per_sample_loss(self.partner)
        return self.mean(self.share * own + (1 - self.share) * other)

    def micro_batches(self, parts: int) -> list[Batch]:
        """The batch in `parts` micro-batches, whose `mean`s add up to the whole's.

        Part p takes every parts-th row from the p-th on, as a rank takes its share of a global batch: so one rank's
        parts are what several ranks would have been given.
        """
        if parts == 1:
            return [self]
        return [self._rows(slice(part, None, parts)) for part in range(parts)]

    def _rows(self, rows: slice) -> Batch:
        columns = {name: column[rows] for name, column in self.columns.items()}
        images = self.images[rows].contiguous()  # as a rank of its own has them: convolutions round by memory layout
        companions = None if self.companions is None else self.companions[rows].contiguous()
        partner, share = (None if values is None else values[rows] for values in (self.partner, self.share))
        labels, samples, weight = self.labels[rows], self.samples[rows], self.weight[rows]
        return Batch(images, labels, samples, weight, self.rows[rows], columns, companions, partner, share)


@dataclass(frozen=True)
class TrainingSet:
    """What a stage trains on: `samples` [N] numbers in the training set, `labels` [N], further columns [N, ...]."""

    samples: np.ndarray
    labels: np.ndarray
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)


class Images(Protocol):
    """Random access to a split's images, in memory or on disk."""

    def __len__(self) -> int: ...

    def uint8(self, samples: np.ndarray, crop: RandomCrop | None = None) -> Tensor:
        """The decoded images `samples`, [n, 3, S, S] uint8; a bad one that the job lets pass is black.

        crop: a random part of each instead of the whole.
        """

    def readable(self, samples: np.ndarray) -> np.ndarray:
        """Which of `samples` [n], which were decoded in this process before, are no bad ones: [n] bool."""
