"""What ranks tell each other for a loss that is no sum over samples: its value is that of the whole global batch.

A rank's share is every W-th row of the global batch (data/order.py). In one process both functions change nothing.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def ranks() -> int:
    """How many ranks train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def global_mean(local: Tensor) -> Tensor:
    """The ranks' average of `local`, with the gradient of this rank's own.

    A function of it has, on every rank, the value it has for the whole batch; and the ranks' average of its gradients
    is its gradient for the whole batch. Collective.
    """
    if ranks() == 1:
        return local
    average = local.detach().clone()
    dist.all_reduce(average)
    return average / ranks() + (local - local.detach())


def gather(rows: Tensor) -> Tensor:
    """The rows [W * B, ...] of all ranks' `rows` [B, ...], as the global batch has them; no gradient. Collective."""
    if ranks() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(ranks())]
    dist.all_gather(parts, rows.contiguous())
    return torch.stack(parts, 1).flatten(0, 1)
