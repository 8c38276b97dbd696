"""A stack: members of one batch size (and on a GPU of one optimiser kind), trained by the same tensor operations.

Letters in shapes: M members, A of them that have a step left in this epoch, B samples of a batch, W weights in a
member's row, S image side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from moe_dist.bank.batches import EpochData, ImagesOf, StackedBatch, stacked_batches
from moe_dist.bank.network import pack, shapes, stacked_logits, unpacked, widest
from moe_dist.bank.optimisers import FusedOptimisers, MatrixOptimiser, MemberOptimisers
from moe_dist.models.lenet import LeNetWidths
from moe_dist.settings.training import OptimiserConfig


@dataclass(frozen=True)
class Member:
    """One network of a bank: its widths, how it is trained, and its initial weights by LeNet's names.

    data_group: members of one group are given the same EpochData, so their images are read once; None: the member has
    data of its own.
    """

    widths: LeNetWidths
    optimiser: OptimiserConfig
    batch_size: int
    weights: Mapping[str, Tensor]
    data_group: int | None = None


class Stack:
    """Members by id. What one member computes depends on no other: a loss that is not finite stays its own."""

    def __init__(
        self, members: Mapping[int, Member], image_size: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        (self.batch_size,) = {member.batch_size for member in members.values()}
        self.ids = list(members)
        self._shapes = {id: shapes(member.widths, image_size) for id, member in members.items()}
        self._padded = shapes(widest([member.widths for member in members.values()]), image_size)
        self._rows = pack([member.weights for member in members.values()], self._padded, dtype).to(device)
        optimisers = MatrixOptimiser if self._rows.is_cuda else FusedOptimisers
        self._optimisers: MemberOptimisers = optimisers([each.optimiser for each in members.values()], self._rows)

    def train_epoch(self, epoch: Mapping[int, EpochData], images_of: ImagesOf) -> None:
        """Train every member in `epoch` for one epoch on its data."""
        # Longest first: in every step the members that go on are then the first rows, and nothing is copied.
        steps = {id: data.steps(self.batch_size) for id, data in epoch.items()}
        self.select(sorted(self.ids, key=lambda id: -steps.get(id, 0)))
        trained = [epoch[id] for id in self.ids if id in epoch]
        if trained:
            for batch in stacked_batches(trained, self.batch_size, images_of, self._rows.device, self._rows.dtype):
                self._train_step(batch)

    def _train_step(self, batch: StackedBatch) -> None:
        """Update the batch's A members by the mean of their binary cross-entropies."""
        rows = self._rows[: len(batch.targets)]
        parameters = [value.requires_grad_() for value in unpacked(rows.detach(), self._padded).values()]
        logits = stacked_logits(parameters, batch.images)
        losses = functional.binary_cross_entropy_with_logits(logits, batch.targets, reduction="none")  # [A, B]
        gradients = torch.autograd.grad((batch.weight * losses).sum(dim=1).sum(), parameters)
        self._optimisers.step(rows, torch.cat([gradient.flatten(1) for gradient in gradients], dim=1))

    @torch.no_grad()
    def logits(self, images: Tensor) -> dict[int, Tensor]:
        """Every member's logits [B] of the same `images` [B, 3, S, S]."""
        parameters = list(unpacked(self._rows, self._padded).values())
        return dict(zip(self.ids, stacked_logits(parameters, images.to(self._rows))))

    def weights(self, id: int) -> dict[str, Tensor]:
        """Copies of a member's current parameters, by LeNet's names."""
        row = self.ids.index(id)
        stacked = unpacked(self._rows, self._padded)
        return {
            name: stacked[name][row][tuple(slice(size) for size in shape)].detach().clone()
            for name, shape in self._shapes[id].items()
        }

    def select(self, ids: Sequence[int]) -> None:
        """Keep the members `ids`, in this order, with their weights and the state of their optimisers."""
        if ids == self.ids:
            return
        order = [self.ids.index(id) for id in ids]
        self._rows = self._rows[order]
        self._optimisers.select(order)
        self.ids = list(ids)
