"""A bank: many small networks of different widths, optimisers, rates and batch sizes trained together on one device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from moe_dist.bank.batches import ImagesOf, Lesson
from moe_dist.bank.network import widest
from moe_dist.bank.stack import Member, Stack
from moe_dist.models.lenet import LeNet


@dataclass(frozen=True)
class StackLimits:
    """How large a stack of several members may be: images of a step, and its multiply-adds over the members' own.

    of: "course": members of one course, of all optimiser kinds; "kind": members of one kind, of all courses.
    """

    images: int
    padding: float
    of: Literal["course", "kind"]


CPU_STACK = StackLimits(images=128, padding=1.25, of="course")
"""A step's maps stay in the cache; more images are no faster, and what is computed on padding is time lost."""
GPU_STACK = StackLimits(images=4096, padding=2.0, of="kind")
"""A GPU wants much work at once more than little."""


class Bank:
    """Members by number, from 0; each is trained as it would be alone, up to rounding.

    outputs: logits of every member. Members are divided into stacks (see `divided`), which are trained in turn.
    Raises UserError where the images are too small for a LeNet.
    """

    def __init__(
        self,
        members: Sequence[Member],
        image_size: int,
        outputs: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        device = torch.device(device)
        self._stacks = [
            Stack({id: members[id] for id in ids}, image_size, outputs, device, dtype)
            for ids in divided(members, stack_limits(device))
        ]

    @property
    def members(self) -> list[int]:
        """The members that were not dropped, in ascending order."""
        return sorted(id for stack in self._stacks for id in stack.ids)

    def train_epoch(self, lessons: Mapping[int, Lesson], images_of: ImagesOf) -> dict[int, float]:
        """One epoch of every member that has a lesson: its mean loss over the samples, each seen before its update.

        A member without a lesson stays as it is: so members may finish after different numbers of epochs.
        `images_of` is asked for the samples of several members at once.
        """
        assert lessons.keys() <= set(self.members)
        losses: dict[int, float] = {}
        for stack in self._stacks:
            losses |= stack.train_epoch(lessons, images_of)
        return losses

    def logits(self, images: Tensor) -> Tensor:
        """Logits [members, N, outputs] of the same `images` [N, 3, S, S], in the order of `members`."""
        found: dict[int, Tensor] = {}
        for stack in self._stacks:
            found |= stack.logits(images)
        return torch.stack([found[id] for id in self.members])

    def weights(self, member: int) -> dict[str, Tensor]:
        """A member's parameters as they are now, by the names of LeNet's state_dict: copies."""
        return next(stack for stack in self._stacks if member in stack.ids).weights(member)

    def diverged(self) -> list[int]:
        """The members with a parameter that is NaN or infinite; the others are not touched by that."""
        return sorted(id for stack in self._stacks for id in stack.diverged())

    def drop(self, members: Collection[int]) -> None:
        """End the training of `members` and forget them; the others go on as if nothing had happened."""
        for stack in self._stacks:
            stack.drop(members)
        self._stacks = [stack for stack in self._stacks if stack.ids]


def stack_limits(device: torch.device) -> StackLimits:
    """The limits of a stack on a device."""
    return GPU_STACK if device.type == "cuda" else CPU_STACK


def divided(members: Sequence[Member], limits: StackLimits) -> list[list[int]]:
    """The members' numbers in stacks of one batch size, each within `limits` or of one member.

    Members of like cost go together, so that little is computed on padding.
    """
    alike: dict[tuple[Hashable, int], list[int]] = defaultdict(list)
    for id in sorted(range(len(members)), key=lambda id: LeNet.multiply_adds(members[id].widths)):
        member = members[id]
        alike[member.course if limits.of == "course" else member.optimiser.kind, member.batch_size].append(id)
    stacks: list[list[int]] = []
    for ids in alike.values():
        stack: list[int] = []
        for id in ids:
            if stack and not _fits([members[each] for each in (*stack, id)], limits):
                stacks.append(stack)
                stack = []
            stack.append(id)
        stacks.append(stack)
    return stacks


def _fits(members: Sequence[Member], limits: StackLimits) -> bool:
    padded = len(members) * LeNet.multiply_adds(widest([member.widths for member in members]))
    own = sum(LeNet.multiply_adds(member.widths) for member in members)
    return len(members) * members[0].batch_size <= limits.images and padded <= limits.padding * own
