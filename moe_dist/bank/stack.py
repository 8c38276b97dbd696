"""A stack: members of one batch size (and on a GPU one optimiser kind), trained by the same tensor operations.

Letters: P members, A of them that have a step left in this epoch, B samples, L numbers in a member's row.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from moe_dist.bank.batches import ImagesOf, Lesson, StackedBatch, stacked_batches, steps
from moe_dist.bank.network import cut, pack, shapes, stacked_logits, unpacked, widest
from moe_dist.bank.optimisers import member_optimisers
from moe_dist.models.lenet import LeNetWidths
from moe_dist.settings.training import OptimiserConfig


@dataclass(frozen=True)
class Member:
    """A network of a bank: its widths, how it is trained, and the weights it starts from, by LeNet's names.

    course: members of one course are given the same lessons, and need their images only once; None: its own lessons.
    """

    widths: LeNetWidths
    optimiser: OptimiserConfig
    batch_size: int
    weights: Mapping[str, Tensor]
    course: int | None = None


class Stack:
    """Members by id. Nothing one member computes depends on another: a loss that is not finite stays its own."""

    def __init__(
        self, members: Mapping[int, Member], image_size: int, outputs: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        (self.batch_size,) = {member.batch_size for member in members.values()}
        self.ids = list(members)
        self._shapes = {id: shapes(member.widths, outputs, image_size) for id, member in members.items()}
        self._padded = shapes(widest([member.widths for member in members.values()]), outputs, image_size)
        self._rows = pack([member.weights for member in members.values()], self._padded, dtype).to(device)
        self._optimisers = member_optimisers([member.optimiser for member in members.values()], self._rows)

    def train_epoch(self, lessons: Mapping[int, Lesson], images_of: ImagesOf) -> dict[int, float]:
        """One epoch of every member that has a lesson; their mean losses over its samples, before each one's update."""
        # Longest first: in every step the members that go on are then the first rows, and nothing is copied.
        self._select(sorted(self.ids, key=lambda id: -steps(lessons.get(id), self.batch_size)))
        taught = [lessons[id] for id in self.ids if id in lessons]
        if not taught:
            return {}
        totals = torch.zeros(len(taught), dtype=torch.float64, device=self._rows.device)
        for batch in stacked_batches(taught, self.batch_size, images_of, self._rows.device, self._rows.dtype):
            totals[: len(batch.counts)] += self._step(batch) * batch.counts
        return {id: total / len(lessons[id].samples) for id, total in zip(self.ids, totals.tolist())}

    def _step(self, batch: StackedBatch) -> Tensor:
        """Train the batch's A members on it; their losses [A]."""
        rows = self._rows[: len(batch.counts)]
        parameters = [value.requires_grad_() for value in unpacked(rows.detach(), self._padded).values()]
        logits = stacked_logits(parameters, batch.images)
        losses = (batch.weight * _sample_losses(logits, batch.targets)).sum(dim=1)
        gradients = torch.autograd.grad(losses.sum(), parameters)
        self._optimisers.step(rows, torch.cat([gradient.flatten(1) for gradient in gradients], dim=1))
        return losses.detach()

    @torch.no_grad()
    def logits(self, images: Tensor) -> dict[int, Tensor]:
        """Every member's logits [N, outputs] of the same `images` [N, 3, S, S]."""
        parameters = list(unpacked(self._rows, self._padded).values())
        return dict(zip(self.ids, stacked_logits(parameters, images.to(self._rows))))

    def weights(self, id: int) -> dict[str, Tensor]:
        """A member's parameters as they are now, by LeNet's names: copies."""
        return cut(unpacked(self._rows, self._padded), self.ids.index(id), self._shapes[id])

    def diverged(self) -> list[int]:
        """The members with a parameter that is not finite."""
        finite = self._rows.isfinite().all(dim=1).tolist()
        return [id for id, sound in zip(self.ids, finite) if not sound]

    def drop(self, ids: Collection[int]) -> None:
        """Forget members; those that stay keep their weights and the state of their optimisers."""
        self._select([id for id in self.ids if id not in ids])

    def _select(self, ids: Sequence[int]) -> None:
        if ids == self.ids:
            return
        order = [self.ids.index(id) for id in ids]
        self._rows = self._rows[order]
        self._optimisers.select(order)
        self.ids = list(ids)


def _sample_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Losses [A, B] of logits [A, B, outputs]: binary cross-entropy for one output, cross-entropy for several."""
    if logits.shape[2] == 1:
        return functional.binary_cross_entropy_with_logits(logits.squeeze(2), targets, reduction="none")
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
