"""Each expert's share of the gradient over an epoch, kept through restarts and over ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_dist.train.worker import sum_over_ranks


class GradientShares:
    """Sums of the experts' gradient sizes [E] over the steps of an epoch so far, as `Engine.gradient_sizes` tells them.

    A rank tells 0 for experts it does not hold, and every expert is held by equally many ranks, so shares of the
    ranks' sum are shares of the experts.
    """

    def __init__(self, rank: int, world: int) -> None:
        self._rank, self._world = rank, world
        self._sums: Tensor | None = None

    def add(self, sizes: Tensor) -> None:
        """Count one step's gradient sizes [E]; E is 0 where the method compares none."""
        if len(sizes):
            self._sums = sizes.double() if self._sums is None else self._sums + sizes

    def take(self) -> dict[str, float]:
        """Each expert's share by its name in the log, {} where there is none; a new epoch begins. Collective."""
        sums = self.state()
        self._sums = None
        total = sum(sums)
        return {f"gradient_share/expert_{expert}": value / total for expert, value in enumerate(sums) if total}

    def state(self) -> list[float]:
        """The sums over all ranks. Collective."""
        return [] if self._sums is None else sum_over_ranks(self._sums.clone(), self._world).tolist()

    def load(self, state: list[float], device: torch.device) -> None:
        """Go on from a checkpoint's state: rank 0 takes the sums over, the others start from nothing."""
        sums = torch.tensor(state, dtype=torch.float64, device=device)
        self._sums = (sums if self._rank == 0 else torch.zeros_like(sums)) if state else None
