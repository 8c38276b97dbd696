"""What a stack is fed: its members' own batches side by side, ragged ones filled up with rows of weight 0."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ImagesOf = Callable[[np.ndarray], Tensor]
"""Sample numbers [n] -> what the networks see of them, [n, 3, S, S] floating point, of any members at once."""


@dataclass(frozen=True)
class Lesson:
    """One epoch of one member: `samples` [n] int64 in the order of training, their `targets` [n].

    Targets are float32 of 0 and 1 for members with one output, otherwise int64 class numbers.
    """

    samples: np.ndarray
    targets: np.ndarray

    def __post_init__(self) -> None:
        assert len(self.samples) == len(self.targets) > 0


@dataclass(frozen=True)
class StackedBatch:
    """One step of the first A members: images [B, A * 3, S, S], targets [A, B], weight [A, B].

    Images are [B, 3, S, S] where all members see the same. A member's weights are 1 / its samples in this step, and 0
    on the rows that fill it up; counts [A]: those samples.
    """

    images: Tensor
    targets: Tensor
    weight: Tensor
    counts: Tensor


def steps(lesson: Lesson | None, batch_size: int) -> int:
    """Steps of an epoch; 0 for a member that has none."""
    return -(-len(lesson.samples) // batch_size) if lesson else 0


def stacked_batches(
    lessons: Sequence[Lesson], batch_size: int, images_of: ImagesOf, device: torch.device, dtype: torch.dtype
) -> Iterator[StackedBatch]:
    """The steps of an epoch. `lessons` come longest first: the members with a step left are always the first ones.

    Where all members have one lesson, its images are there once.
    """
    shared = all(lesson is lessons[0] for lesson in lessons)
    for start in range(0, len(lessons[0].samples), batch_size):
        rows = slice(start, start + batch_size)
        active = [lesson for lesson in (lessons[:1] if shared else lessons) if start < len(lesson.samples)]
        samples = [lesson.samples[rows] for lesson in active]
        targets = np.concatenate([lesson.targets[rows] for lesson in active])
        images = images_of(np.concatenate(samples)).to(device, dtype)
        kind = dtype if targets.dtype.kind == "f" else torch.int64
        batch = _side_by_side(images, torch.from_numpy(targets).to(device, kind), [len(part) for part in samples])
        yield _shared_by(len(lessons), batch) if shared else batch


def _shared_by(members: int, batch: StackedBatch) -> StackedBatch:
    """One member's batch as that of all."""
    targets, weight = (value.expand(members, -1) for value in (batch.targets, batch.weight))
    return StackedBatch(batch.images, targets, weight, batch.counts.expand(members))


def _side_by_side(images: Tensor, targets: Tensor, counts: list[int]) -> StackedBatch:
    """Images [sum of counts, 3, S, S] and targets [sum of counts] of members one after another as a stacked batch."""
    height, members = max(counts), len(counts)
    count = torch.tensor(counts, device=images.device)
    filled = torch.arange(height, device=images.device) < count[:, None]  # [A, B]
    if sum(counts) < members * height:
        place = filled.flatten().nonzero().squeeze(1)
        images = images.new_zeros(members * height, *images.shape[1:]).index_copy_(0, place, images)
        targets = targets.new_zeros(members * height).index_copy_(0, place, targets)
    beside = images.unflatten(0, (members, height)).permute(1, 3, 4, 0, 2).flatten(3)  # [B, S, S, A * 3]
    return StackedBatch(
        beside.permute(0, 3, 1, 2), targets.view(members, height), filled.to(images.dtype) / count[:, None], count
    )
