"""A group of experts in one process: the interface that parallel/experts.py spreads over ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Experts(nn.Module):
    """All experts side by side; members are keyed and seeded by their global id, so that placement does not matter."""

    def __init__(
        self, factories: Sequence[Callable[[], nn.Module]], costs: Sequence[float] = (), seed: int = 0
    ) -> None:
        super().__init__()
        self.members = nn.ModuleDict(
            {str(expert): seeded_member(factory, expert, seed) for expert, factory in enumerate(factories)}
        )

    def forward(self, *inputs: Tensor) -> list[Any]:
        """Every expert's output, in order of the global ids."""
        return [member(*inputs) for member in self.members.values()]

    def mix(self, weights: Tensor, *inputs: Tensor) -> Tensor:
        """sum over experts e of weights[:, e] * output_e(inputs); weights [B, E] or [B, E, ...]."""
        mixed: Any = 0
        for expert, member in enumerate(self.members.values()):
            mixed = mixed + weighted(weights[:, expert], member(*inputs))
        return mixed


def weighted(weight: Tensor, output: Tensor) -> Tensor:
    """weight [B, ...] * output [B, features, ...]: the weight's trailing dimensions are the output's last ones."""
    shape = (weight.shape[0], *[1] * (output.dim() - weight.dim()), *weight.shape[1:])
    return weight.reshape(shape) * output


def seeded_member(factory: Callable[[], nn.Module], expert: int, seed: int) -> nn.Module:
    """The expert with global id `expert`, initialised from (seed, expert) alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed * 100_003 + expert)
        return factory()
