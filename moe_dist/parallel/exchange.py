"""What the ranks of an expert-parallel group send each other, with gradients: samples to experts, outputs back.

Letters in shapes: R ranks of the group, B samples of this rank, G samples of all its ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

# torch 2.13 renamed both; the older names still exist in 2.11.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def batch_sizes(samples: int, device: torch.device, group: ProcessGroup) -> list[int]:
    """The number of samples of each of the group's ranks, [R]. Collective."""
    sizes = torch.empty(dist.get_world_size(group), dtype=torch.int64, device=device)
    _all_gather(sizes, torch.tensor([samples], device=device), group=group)
    return sizes.tolist()


def gather_samples(rows: Tensor, sizes: Sequence[int], group: ProcessGroup) -> Tensor:
    """The rows [G, ...] of all ranks, in order of the ranks; rows [B, ...]: this rank's, sizes [R]. Collective."""
    if len(set(sizes)) == 1:
        return _Gather.apply(rows, group)
    copies = rows.repeat(len(sizes), *[1] * (rows.dim() - 1))
    return send(copies, [rows.shape[0]] * len(sizes), sizes, group)


def send(rows: Tensor, to_ranks: Sequence[int], from_ranks: Sequence[int], group: ProcessGroup) -> Tensor:
    """Send the first to_ranks[0] of `rows` to rank 0, the next to_ranks[1] to rank 1, ...; return what the ranks sent.

    from_ranks [R]: how many rows each rank sends to this one. The gradient travels the opposite way. Collective.
    """
    return _AllToAll.apply(rows, list(to_ranks), list(from_ranks), group)


def row_counts(to_ranks: Sequence[int], device: torch.device, group: ProcessGroup) -> list[int]:
    """How many rows each rank sends to this one [R]; to_ranks [R]: how many this one sends to each. Collective."""
    counts = torch.tensor(to_ranks, device=device)
    everyones = counts.new_empty(len(to_ranks) ** 2)
    _all_gather(everyones, counts, group=group)
    return everyones.view(len(to_ranks), -1)[:, dist.get_rank(group)].tolist()


def send_flags(flags: Sequence[Tensor], width: int, from_ranks: Sequence[int], group: ProcessGroup) -> Tensor:
    """The flags [n, width] that the ranks have for this one; flags [R]: bool [n, W] for each rank, of its width W.

    from_ranks [R]: how many rows each rank sends. A flag is a byte. Collective.
    """
    flat = torch.cat([part.reshape(-1) for part in flags]).to(torch.uint8)
    received = flat.new_empty(sum(from_ranks) * width)
    to = [part.numel() for part in flags]
    dist.all_to_all_single(received, flat, [rows * width for rows in from_ranks], to, group=group)
    return received.view(-1, width).bool()


def tie(tensor: Tensor, *others: Tensor) -> Tensor:
    """`tensor`, with a backward path (of zero gradient) through `others`.

    A collective runs in the backward pass only if the loss depends on its output, and all ranks must run it or none. So
    outputs that the loss of some rank may leave out are tied in.
    """
    return _Tie.apply(tensor, *others)


class _Gather(torch.autograd.Function):
    """All-gather; backward is reduce-scatter with a sum."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group, ctx.shape = group, rows.shape
        gathered = rows.new_empty((dist.get_world_size(group) * rows.shape[0], *rows.shape[1:]))
        _all_gather(gathered, rows.contiguous(), group=group)
        return gathered

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        mine = gradients[0].new_empty(ctx.shape)
        _reduce_scatter(mine, gradients[0].contiguous(), group=ctx.group)
        return mine, None


class _AllToAll(torch.autograd.Function):
    """All-to-all of rows; backward is all-to-all with the two lists of counts swapped."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, to_ranks: list[int], from_ranks: list[int], group: ProcessGroup) -> Tensor:
        ctx.to_ranks, ctx.from_ranks, ctx.group = to_ranks, from_ranks, group
        received = rows.new_empty((sum(from_ranks), *rows.shape[1:]))
        dist.all_to_all_single(received, rows.contiguous(), from_ranks, to_ranks, group=group)
        return received

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return send(gradients[0], ctx.from_ranks, ctx.to_ranks, ctx.group), None, None, None


class _Tie(torch.autograd.Function):
    """Identity of the first argument. The others get no gradient, and autograd still runs the nodes they came from."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, *others: Tensor) -> Tensor:
        ctx.others = len(others)
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0], *[None] * ctx.others
