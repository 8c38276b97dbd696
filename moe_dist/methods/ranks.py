"""Exchanges between ranks for a loss that is not a sum over samples, so that it is computed of the whole global batch.

Letters in shapes: B samples of a rank's share, R ranks. A rank's share is every R-th row of the global batch
(data/order.py). In one process these functions change nothing.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def ranks() -> int:
    """The number of ranks that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def global_mean(local: Tensor) -> Tensor:
    """The ranks' average of `local`, with the gradient of this rank's `local`.

    On every rank, a function of it has its value for the whole batch, and the ranks' average of its gradients is its
    gradient for the whole batch. Collective.
    """
    if ranks() == 1:
        return local
    average = local.detach().clone()
    dist.all_reduce(average)
    return average / ranks() + (local - local.detach())


def gather(rows: Tensor) -> Tensor:
    """All ranks' `rows` [B, ...] in the order of the global batch, [R * B, ...]; without gradient. Collective."""
    if ranks() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(ranks())]
    dist.all_gather(parts, rows.contiguous())
    return torch.stack(parts, 1).flatten(0, 1)


def own_rows(rows: Tensor) -> Tensor:
    """This rank's share [B, ...] of `rows` [R * B, ...] of the global batch: what `gather` joins, parted again."""
    return rows if ranks() == 1 else rows[dist.get_rank() :: ranks()]
