"""A bank: many small networks of different widths, optimisers, rates and batch sizes trained together on one device.

Letters in shapes: M members, B samples of a batch, S image side.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from moe_dist.bank.batches import EpochData, ImagesOf
from moe_dist.bank.network import widest
from moe_dist.bank.stack import Member, Stack
from moe_dist.models.lenet import LeNet


@dataclass(frozen=True)
class StackLimits:
    """Limits of a stack of several members.

    images: the most images of one step; padding: the most multiply-adds of the padded members, relative to those of the
    members themselves; same: whether the members of a stack share their data group or their kind of optimiser.
    """

    images: int
    padding: float
    same: Literal["data_group", "optimiser"]

    def allow(self, members: Sequence[Member]) -> bool:
        """Whether `members`, which have one batch size, may be one stack."""
        padded = len(members) * LeNet.multiply_adds(widest([member.widths for member in members]))
        own = sum(LeNet.multiply_adds(member.widths) for member in members)
        return len(members) * members[0].batch_size <= self.images and padded <= self.padding * own


CPU_LIMITS = StackLimits(images=128, padding=1.25, same="data_group")
"""The maps of a step stay in the cache. More images are not faster, and computing on padding costs time."""
GPU_LIMITS = StackLimits(images=4096, padding=2.0, same="optimiser")
"""A GPU is faster at one large step than at many small ones, even with more padding."""


class Bank:
    """Trains binary LeNets together, each as it would be trained alone, up to rounding.

    Members are numbered from 0 in the order of `members`. They are divided into stacks (see `divide_into_stacks`),
    which are trained one after another. Raises UserError where the images are too small for a LeNet.
    """

    def __init__(
        self,
        members: Sequence[Member],
        image_size: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        device = torch.device(device)
        limits = GPU_LIMITS if device.type == "cuda" else CPU_LIMITS
        self._stacks = [
            Stack({id: members[id] for id in ids}, image_size, device, dtype)
            for ids in divide_into_stacks(members, limits)
        ]

    @property
    def members(self) -> list[int]:
        """The members that were not dropped, in ascending order."""
        return sorted(id for stack in self._stacks for id in stack.ids)

    def train_epoch(self, epoch: Mapping[int, EpochData], images_of: ImagesOf) -> None:
        """Train every member in `epoch` for one epoch on its data; the other members stay as they are.

        Members may therefore finish after different numbers of epochs. `images_of` is called with the samples of
        several members at once.
        """
        assert epoch.keys() <= set(self.members)
        for stack in self._stacks:
            stack.train_epoch(epoch, images_of)

    def logits(self, images: Tensor) -> Tensor:
        """Logits [M, B] of all members for the same `images` [B, 3, S, S], in the order of `members`."""
        found: dict[int, Tensor] = {}
        for stack in self._stacks:
            found |= stack.logits(images)
        return torch.stack([found[id] for id in self.members])

    def weights(self, member: int) -> dict[str, Tensor]:
        """Copies of a member's current parameters, by their names in LeNet's state_dict."""
        return next(stack for stack in self._stacks if member in stack.ids).weights(member)

    def diverged(self) -> list[int]:
        """The members with a parameter that is NaN or infinite. They do not affect the other members."""
        return [id for id in self.members if not all(value.isfinite().all() for value in self.weights(id).values())]

    def drop(self, members: Collection[int]) -> None:
        """Stop training `members` and forget them; the others are not affected."""
        for stack in self._stacks:
            stack.select([id for id in stack.ids if id not in members])
        self._stacks = [stack for stack in self._stacks if stack.ids]


def divide_into_stacks(members: Sequence[Member], limits: StackLimits) -> list[list[int]]:
    """The members' numbers in stacks, each of one batch size and within `limits`, or of a single member.

    Members of similar cost share a stack, so that little is computed on padding.
    """
    alike: dict[tuple[Hashable, int], list[int]] = defaultdict(list)
    for id in sorted(range(len(members)), key=lambda id: LeNet.multiply_adds(members[id].widths)):
        member = members[id]
        shared = member.data_group if limits.same == "data_group" else member.optimiser.kind
        alike[shared, member.batch_size].append(id)
    stacks: list[list[int]] = []
    for ids in alike.values():
        stack: list[int] = []
        for id in ids:
            if stack and not limits.allow([members[each] for each in (*stack, id)]):
                stacks.append(stack)
                stack = []
            stack.append(id)
        stacks.append(stack)
    return stacks
