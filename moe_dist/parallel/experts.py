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

from moe_dist.models.experts import add_up, of_pairs, seeded_member
from moe_dist.parallel.exchange import batch_sizes, gather_samples, row_counts, send, send_flags, tie
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
        own = outputs.shape[1]
        received = self._send_back(
            outputs.reshape(-1), gathered, [size * own for size in sizes], [samples * width for width in widths]
        )
        result: dict[int, Any] = {}
        for rank, part, width in zip(by_rank, received.split([samples * width for width in widths]), widths):
            for layout, flat in zip(rank, part.view(samples, width).split([layout.width for layout in rank], 1)):
                result[layout.expert] = layout.unpack(flat)
        return [result[expert] for expert in range(self.num_experts)]

    def of_chosen(self, inputs: Tensor, chosen: Tensor) -> Tensor:
        """As Experts.of_chosen: a sample goes only to ranks that hold experts chosen for it. Collective.

        inputs [B, ...], chosen [B, E] bool -> [B, E, D]. A sample goes to a rank once, and each of its chosen experts'
        outputs comes back.
        """
        assert self.group is not None, "the engine makes the process group before the first forward pass"
        wanted = [chosen[:, experts] for experts in self.placement]  # per rank [B, its experts]
        rows = [part.any(1).nonzero().squeeze(1) for part in wanted]
        to_ranks = [len(part) for part in rows]
        from_ranks = row_counts(to_ranks, inputs.device, self.group)
        arrived = send(inputs[torch.cat(rows)], to_ranks, from_ranks, self.group)
        asked = send_flags([part[own] for part, own in zip(wanted, rows)], len(self.local), from_ranks, self.group)
        outputs, (at, experts) = of_pairs(list(self.members.values()), arrived, asked)
        by_sample = torch.argsort(at * len(self.local) + experts)  # as the ranks that sent the samples count the pairs
        width = outputs.shape[1]
        pairs_for = [int(part.sum()) for part in asked.split(from_ranks)]
        mine = [part.nonzero(as_tuple=True) for part in wanted]
        received = self._send_back(
            outputs[by_sample].reshape(-1),
            [arrived],
            [pairs * width for pairs in pairs_for],
            [len(own) * width for own, _ in mine],
        )
        ids = [torch.tensor(held, device=inputs.device)[number] for held, (_, number) in zip(self.placement, mine)]
        pairs = (torch.cat([own for own, _ in mine]), torch.cat(ids))
        return received.new_zeros(*chosen.shape, width).index_put(pairs, received.view(-1, width))

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
        to_ranks = [size * width for size in sizes]
        received = self._send_back(own.reshape(-1), gathered, to_ranks, [samples * width] * self.ep_size)
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
        self, outputs: Tensor, gathered: Sequence[Tensor], to_ranks: Sequence[int], from_ranks: Sequence[int]
    ) -> Tensor:
        """This rank's elements of all experts' outputs, flat; outputs, flat: those of this rank's experts.

        Every rank takes part in the backward exchanges, even where its experts do not use their inputs.
        """
        assert self.group is not None
        if torch.is_grad_enabled():
            outputs = tie(outputs, *gathered)
            if not outputs.requires_grad:  # frozen experts on frozen inputs
                outputs.requires_grad_()
        received = send(outputs, to_ranks, from_ranks, self.group)
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
