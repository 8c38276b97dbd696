"""Types shared by all parts of the program that see images: a batch, a training set, a split's images, a dataset.

Letters: B samples of a batch, N samples of a set, n of them, C classes, S image side, D numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from moe_dist.data.image.crops import RandomCrop


@dataclass(frozen=True)
class DatasetInfo:
    """The facts of a dataset that a method may know before it sees an image.

    class_counts [C]: training images of each class, validation left out; vector_size: numbers of a sample that is a
    vector, 0 where samples are images; superclasses [C]: the name of each class's superclass, None for a dataset
    without.
    """

    classes: int
    class_names: tuple[str, ...]
    image_size: int
    train_images: int
    class_counts: tuple[int, ...] = ()
    vector_size: int = 0
    superclasses: tuple[str, ...] | None = None


@dataclass
class Batch:
    """One rank's share of a global batch.

    images [B, 3, S, S] float32, normalised, or vectors [B, D] float32 where these are a dataset's samples;
    labels [B] int64, those that this stage may see; samples [B] int64, their numbers in the training (or validation,
    test) set; rows [B] int64, their rows in the set that is streamed;
    weight [B] float32: 0 for padding, otherwise ranks / valid samples of the *global* batch, so that the ranks' average
    of `mean` is the global batch's mean;
    columns: further int64 or float32 tensors [B, ...] of the training set, by name (a DFCP sample's cluster);
    companions [B, k, 3, S, S]: the images of each sample's companions, black where there is none; None without;
    partner [B] int64, share [B] float32: under MixUp and CutMix, the label of the image that each one is joined with,
    and each one's own share; None without.
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
        """The weighted mean of per-sample `values` [B], as every loss term is reduced."""
        return (self.weight * values).sum()

    def mean_over_labels(self, per_sample_loss: Callable[[Tensor], Tensor]) -> Tensor:
        """The `mean` of a loss [B], a function of labels [B]; of mixed images, by their shares of both labels."""
        if self.partner is None or self.share is None:
            return self.mean(per_sample_loss(self.labels))
        own, other = per_sample_loss(self.labels), per_sample_loss(self.partner)
        return self.mean(self.share * own + (1 - self.share) * other)

    def tensors(self) -> dict[str, Tensor]:
        """All its tensors, by name; a column's is columns.NAME."""
        own = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "columns"}
        columns = {f"columns.{name}": column for name, column in self.columns.items()}
        return {name: tensor for name, tensor in (own | columns).items() if tensor is not None}

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The batch of `function` of each of its tensors."""
        own = {name: function(tensor) for name, tensor in self.tensors().items() if not name.startswith("columns.")}
        return replace(self, **own, columns={name: function(column) for name, column in self.columns.items()})

    def micro_batches(self, parts: int) -> list[Batch]:
        """The batch in `parts` micro-batches, whose `mean`s add up to the whole's.

        Part p takes every parts-th row from the p-th on, as a rank takes its share of a global batch: one rank's parts
        are the shares that several ranks would have been given.
        """
        if parts == 1:
            return [self]
        taken = []
        for part in range(parts):
            rows = slice(part, None, parts)
            images = self.images[rows].contiguous()  # as on a rank of its own: convolutions round by memory layout
            columns = {name: column[rows] for name, column in self.columns.items()}
            companions = None if self.companions is None else self.companions[rows].contiguous()
            partner, share = (None if values is None else values[rows] for values in (self.partner, self.share))
            own = (self.labels[rows], self.samples[rows], self.weight[rows], self.rows[rows])
            taken.append(Batch(images, *own, columns, companions, partner, share))
        return taken


@dataclass(frozen=True)
class TrainingSet:
    """The samples of a stage: their numbers in the training set [N], their labels [N], further columns [N, ...]."""

    samples: np.ndarray
    labels: np.ndarray
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)


class Images(Protocol):
    """Random access to a split's images, decoded before or at every access."""

    def uint8(self, samples: np.ndarray, crop: RandomCrop | None = None) -> Tensor:
        """The images `samples` [n], decoded, [n, 3, S, S] uint8; a bad one that the job lets pass is black.

        Of a dataset of vectors: these, [n, D] float32.
        crop: a random part of each instead of the whole.
        """

    def readable(self, samples: np.ndarray) -> np.ndarray:
        """Which of `samples` [n] are readable, [n] bool; all of them were decoded in this process before."""
