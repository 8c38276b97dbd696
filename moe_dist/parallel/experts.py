"""Experts divided over the ranks of an expert-parallel group: the interface of models/experts.py, same numbers.

One step, with letters R ranks of the group, b samples of this rank, N of all its ranks, E experts:
1. every rank's samples go to all ranks: inputs [b, ...] -> [N, ...];
2. each rank runs its own experts on all N samples;
3. outputs go back to the ranks the samples came from: every expert's (`forward`), or their weighted sum (`mix`).
The backward pass runs the same exchanges the other way, so an expert's gradient is the sum over all samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moe_dist.models.experts import seeded_member, weighted
from moe_dist.parallel.exchange import batch_sizes, gather_samples, send, tie
from moe_dist.parallel.placement import Placement, place
from moe_dist.parallel.spread import SpreadExperts


@dataclass(frozen=True)
class OutputLayout:
    """What an expert returns per sample: one tensor or a tuple, each of `shapes` (without the sample's dimension)."""

    expert: int
    single: bool
    shapes: list[torch.Size]
    dtypes: list[torch.dtype]

    @property
    def width(self) -> int:
        """Elements per sample."""
        return sum(prod(shape) for shape in self.shapes)

    def unpack(self, flat: Tensor) -> Any:
        """An expert's output from `flat` [b, width]."""
        parts = flat.split([prod(shape) for shape in self.shapes], 1)
        tensors = tuple(
            part.reshape(part.shape[0], *shape).to(dtype) for part, shape, dtype in zip(parts, self.shapes, self.dtypes)
        )
        return tensors[0] if self.single else tensors


class ExpertParallel(SpreadExperts):
    """Heterogeneous experts, any number of them not below `ep_size`, placed by their costs.

    They are seeded by their global ids, so that placement does not matter.
    """

    def __init__(
        self, factories: Sequence[Callable[[], nn.Module]], costs: Sequence[float] = (), seed: int = 0, *, ep_size: int
    ) -> None:
        super().__init__(len(factories), ep_size)
        self.placement: Placement = place(costs or [1.0] * len(factories), ep_size)
        self.local = self.placement[self.place]
        self.hold({expert: seeded_member(factories[expert], expert, seed) for expert in self.local})
        self._agreed: dict[Any, list[Any]] = {}

    def forward(self, *inputs: Tensor) -> list[Any]:  # type: ignore[override]
        """Every expert's output for this rank's samples, in order of the global ids. Collective."""
        sizes, gathered = self._dispatch(inputs)
        layouts, flats = [], []
        for expert, member in zip(self.local, self.members.values()):
            layout, flat = _flatten(expert, member(*gathered))
            layouts.append(layout)
            flats += flat
        by_rank: list[list[OutputLayout]] = self._agree(("forward", *map(_kind, inputs)), layouts)
        dtype = _common([dtype for rank in by_rank for layout in rank for dtype in layout.dtypes])
        outputs = torch.cat([flat.to(dtype) for flat in flats], 1)
        samples = inputs[0].shape[0]
        counts = [samples * sum(layout.width for layout in rank) for rank in by_rank]
        received = self._send_back(outputs.reshape(-1), gathered, [size * outputs.shape[1] for size in sizes], counts)
        result: dict[int, Any] = {}
        for rank, part in zip(by_rank, received.split(counts)):
            widths = [layout.width for layout in rank]
            for layout, flat in zip(rank, part.view(samples, sum(widths)).split(widths, 1)):
                result[layout.expert] = layout.unpack(flat)
        return [result[expert] for expert in range(self.num_experts)]

    def mix(self, weights: Tensor, *inputs: Tensor) -> Tensor:
        """sum over experts e of weights[:, e] * output_e(inputs); one output per rank travels, not one per expert.

        weights [b, E] or [b, E, ...] of the outputs' last dimensions. Collective.
        """
        sizes, (all_weights, *gathered) = self._dispatch((weights, *inputs))
        mixed: Any = 0
        for expert, member in zip(self.local, self.members.values()):
            mixed = mixed + weighted(all_weights[:, expert], member(*gathered))
        dtypes = self._agree(("mix", *map(_kind, (weights, *inputs))), mixed.dtype)
        samples = weights.shape[0]
        received = self._send_back(mixed.to(_common(dtypes)), (all_weights, *gathered), sizes, [samples] * self.ep_size)
        return received.view(self.ep_size, samples, *mixed.shape[1:]).sum(0)

    def _dispatch(self, inputs: Sequence[Tensor]) -> tuple[list[int], list[Tensor]]:
        assert self.group is not None, "the engine makes the process group before the first forward pass"
        sizes = batch_sizes(inputs[0].shape[0], inputs[0].device, self.group)
        return sizes, [gather_samples(rows, sizes, self.group) for rows in inputs]

    def _send_back(
        self, outputs: Tensor, gathered: Sequence[Tensor], to_ranks: list[int], from_ranks: list[int]
    ) -> Tensor:
        """Send outputs back, such that every rank takes part in the backward exchanges whatever its experts use."""
        assert self.group is not None
        if torch.is_grad_enabled():
            outputs = tie(outputs, *gathered)
            if not outputs.requires_grad:  # frozen experts on frozen inputs
                outputs.requires_grad_()
        received = send(outputs, to_ranks, from_ranks, self.group)
        if torch.is_grad_enabled():
            self._received.append(received)
        return received

    def _agree(self, call: Any, mine: Any) -> list[Any]:
        """Every rank's `mine`; exchanged once per kind of `call`, which must be the same on all ranks."""
        key = (call, self.training, torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda"))
        if key not in self._agreed:
            everyones: list[Any] = [None] * self.ep_size
            dist.all_gather_object(everyones, mine, group=self.group)
            self._agreed[key] = everyones
        return self._agreed[key]


def _flatten(expert: int, output: Any) -> tuple[OutputLayout, list[Tensor]]:
    tensors = (output,) if isinstance(output, Tensor) else tuple(output)
    layout = OutputLayout(
        expert=expert,
        single=isinstance(output, Tensor),
        shapes=[tensor.shape[1:] for tensor in tensors],
        dtypes=[tensor.dtype for tensor in tensors],
    )
    return layout, [tensor.reshape(tensor.shape[0], prod(tensor.shape[1:])) for tensor in tensors]


def _common(dtypes: Sequence[torch.dtype]) -> torch.dtype:
    """The type that holds all `dtypes`: heterogeneous experts under autocast differ."""
    common = dtypes[0]
    for dtype in dtypes[1:]:
        common = torch.promote_types(common, dtype)
    return common


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape[1:], tensor.dtype
