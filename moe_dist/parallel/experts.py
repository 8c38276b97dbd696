"""Experts divided over the ranks of an expert-parallel group: the interface of models/experts.py, same numbers.

One step, with letters R ranks of the group, B samples of this rank, G samples of all its ranks, E experts:
1. every rank's samples go to all ranks: inputs [B, ...] -> [G, ...];
2. each rank runs its own experts on all G samples;
3. every expert's outputs go back to the ranks that the samples came from.
The backward pass runs the same exchanges the other way, so an expert's gradient is the sum over all samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moe_dist.models.experts import add_up, seeded_member
from moe_dist.parallel.exchange import batch_sizes, gather_samples, send, tie
from moe_dist.parallel.placement import Placement, place
from moe_dist.parallel.spread import SpreadExperts


@dataclass(frozen=True)
class OutputLayout:
    """What an expert returns for a sample: one tensor or a tuple, each of `shapes` without the samples' dimension."""

    expert: int
    single: bool
    shapes: list[torch.Size]
    dtypes: list[torch.dtype]

    @property
    def width(self) -> int:
        """Elements per sample."""
        return sum(prod(shape) for shape in self.shapes)

    def unpack(self, flat: Tensor) -> Any:
        """The expert's output from `flat` [B, width]."""
        parts = flat.split([prod(shape) for shape in self.shapes], 1)
        tensors = tuple(
            part.reshape(part.shape[0], *shape).to(dtype) for part, shape, dtype in zip(parts, self.shapes, self.dtypes)
        )
        return tensors[0] if self.single else tensors


class ExpertParallel(SpreadExperts):
    """Experts of any widths, at least `ep_size` of them, placed by their costs.

    They are seeded by their global ids, so that placement does not matter.
    """

    def __init__(
        self, factories: Sequence[Callable[[], nn.Module]], costs: Sequence[float] = (), seed: int = 0, *, ep_size: int
    ) -> None:
        super().__init__(len(factories), ep_size)
        self.placement: Placement = place(costs or [1.0] * len(factories), ep_size)
        self.local = self.placement[self.group_rank]
        self.set_members({expert: seeded_member(factories[expert], expert, seed) for expert in self.local})
        self._layouts: dict[Any, list[list[OutputLayout]]] = {}

    def forward(self, *inputs: Tensor) -> list[Any]:  # type: ignore[override]
        """Every expert's output for this rank's samples, in order of the global ids. Collective."""
        assert self.group is not None, "the engine makes the process group before the first forward pass"
        samples = inputs[0].shape[0]
        sizes = batch_sizes(samples, inputs[0].device, self.group)
        gathered = [gather_samples(rows, sizes, self.group) for rows in inputs]
        layouts, flats = [], []
        for expert, member in zip(self.local, self.members.values()):
            layout, flat = _flatten(expert, member(*gathered))
            layouts.append(layout)
            flats += flat
        by_rank = self._layouts_by_rank(inputs, layouts)
        # One type holds the outputs of all experts, which differ under autocast.
        dtype = reduce(torch.promote_types, (dtype for rank in by_rank for layout in rank for dtype in layout.dtypes))
        outputs = torch.cat([flat.to(dtype) for flat in flats], 1)
        widths = [sum(layout.width for layout in rank) for rank in by_rank]
        received = self._send_back(outputs, gathered, sizes, [samples * width for width in widths])
        result: dict[int, Any] = {}
        for rank, part, width in zip(by_rank, received.split([samples * width for width in widths]), widths):
            for layout, flat in zip(rank, part.view(samples, width).split([layout.width for layout in rank], 1)):
                result[layout.expert] = layout.unpack(flat)
        return [result[expert] for expert in range(self.num_experts)]

    def weighted_sum(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """The sum over the experts e of what e gives for (inputs, weights[:, e]). Collective.

        inputs [B, ...], weights [B, E, ...]. A rank adds up its own experts before it sends, so that a sample's output
        comes back once from every rank, and not from every expert.
        """
        assert self.group is not None, "the engine makes the process group before the first forward pass"
        samples = inputs.shape[0]
        sizes = batch_sizes(samples, inputs.device, self.group)
        gathered = [gather_samples(rows, sizes, self.group) for rows in (inputs, weights)]
        parts = (member(gathered[0], gathered[1][:, e]) for e, member in zip(self.local, self.members.values()))
        own = add_up(parts)
        width = own[0].numel()
        flat = own.reshape(len(own), width)
        received = self._send_back(flat, gathered, sizes, [samples * width] * self.ep_size)
        return received.view(self.ep_size, samples, *own.shape[1:]).sum(0)

    def _layouts_by_rank(self, inputs: Sequence[Tensor], mine: list[OutputLayout]) -> list[list[OutputLayout]]:
        """Every rank's layouts. They are exchanged once per kind of inputs, which must be the same on all ranks."""
        kinds = tuple((tensor.shape[1:], tensor.dtype) for tensor in inputs)
        key = (kinds, self.training, torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda"))
        if key not in self._layouts:
            by_rank: list[Any] = [None] * self.ep_size
            dist.all_gather_object(by_rank, mine, group=self.group)
            self._layouts[key] = by_rank
        return self._layouts[key]

    def _send_back(
        self, outputs: Tensor, gathered: Sequence[Tensor], sizes: Sequence[int], from_ranks: Sequence[int]
    ) -> Tensor:
        """This rank's elements of all experts' outputs, flat; outputs [G, width]: those of this rank's experts.

        Every rank takes part in the backward exchanges, even where its experts do not use their inputs.
        """
        assert self.group is not None
        if torch.is_grad_enabled():
            outputs = tie(outputs, *gathered)
            if not outputs.requires_grad:  # frozen experts on frozen inputs
                outputs.requires_grad_()
        to_ranks = [size * outputs.shape[1] for size in sizes]
        received = send(outputs.reshape(-1), to_ranks, from_ranks, self.group)
        if torch.is_grad_enabled():
            self.received.append(received)
        return received


def _flatten(expert: int, output: Any) -> tuple[OutputLayout, list[Tensor]]:
    """The layout of an expert's output and its tensors as [G, elements]."""
    tensors = (output,) if isinstance(output, Tensor) else tuple(output)
    layout = OutputLayout(
        expert=expert,
        single=isinstance(output, Tensor),
        shapes=[tensor.shape[1:] for tensor in tensors],
        dtypes=[tensor.dtype for tensor in tensors],
    )
    return layout, [tensor.reshape(tensor.shape[0], prod(tensor.shape[1:])) for tensor in tensors]
