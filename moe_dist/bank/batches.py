"""The batches of a stack: its members' own batches side by side, short ones filled up with rows of weight 0.

Letters in shapes: M members, A of them that have a step left in this epoch, B samples of a batch, S image side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ImagesOf = Callable[[np.ndarray], Tensor]
"""Sample numbers [n], of any members -> what the networks see of them, [n, 3, S, S] floating point."""


@dataclass(frozen=True)
class EpochData:
    """What one member trains on in one epoch: sample numbers [n] int64 in this order, and targets [n] of 0 and 1."""

    samples: np.ndarray
    targets: np.ndarray

    def __post_init__(self) -> None:
        assert len(self.samples) == len(self.targets) > 0

    def steps(self, batch_size: int) -> int:
        """The number of batches of `batch_size`, the last of which may be smaller."""
        return -(-len(self.samples) // batch_size)


@dataclass(frozen=True)
class StackedBatch:
    """One step of the first A members: images [B, A * 3, S, S], targets [A, B], weight [A, B].

    Images are [B, 3, S, S] where all members see the same ones. A member's rows weigh 1 / the number of its samples in
    this step; the rows that fill up its batch weigh 0.
    """

    images: Tensor
    targets: Tensor
    weight: Tensor


def stacked_batches(
    epoch: Sequence[EpochData], batch_size: int, images_of: ImagesOf, device: torch.device, dtype: torch.dtype
) -> Iterator[StackedBatch]:
    """The steps of one epoch. `epoch` must be sorted, longest first, so that the first A members have a step left.

    Where all members have the same EpochData, its images are read once and shared.
    """
    shared = all(data is epoch[0] for data in epoch)
    for start in range(0, len(epoch[0].samples), batch_size):
        rows = slice(start, start + batch_size)
        active = [data for data in (epoch[:1] if shared else epoch) if start < len(data.samples)]
        samples = [data.samples[rows] for data in active]
        targets = torch.from_numpy(np.concatenate([data.targets[rows] for data in active])).to(device, dtype)
        images = images_of(np.concatenate(samples)).to(device, dtype)
        batch = _side_by_side(images, targets, [len(part) for part in samples])
        if shared:
            batch = StackedBatch(
                batch.images, batch.targets.expand(len(epoch), -1), batch.weight.expand(len(epoch), -1)
            )
        yield batch


def _side_by_side(images: Tensor, targets: Tensor, counts: list[int]) -> StackedBatch:
    """The stacked batch of images [sum of counts, 3, S, S] and targets [sum of counts], which follow member by member.

    counts: the number of samples of each member.
    """
    rows, members = max(counts), len(counts)
    count = torch.tensor(counts, device=images.device)[:, None]
    filled = torch.arange(rows, device=images.device) < count  # [A, B]
    if sum(counts) < members * rows:
        destination = filled.flatten().nonzero().squeeze(1)
        images = images.new_zeros(members * rows, *images.shape[1:]).index_copy_(0, destination, images)
        targets = targets.new_zeros(members * rows).index_copy_(0, destination, targets)
    beside = images.unflatten(0, (members, rows)).permute(1, 3, 4, 0, 2).flatten(3)  # [B, S, S, A * 3]
    return StackedBatch(beside.permute(0, 3, 1, 2), targets.view(members, rows), filled.to(images.dtype) / count)
