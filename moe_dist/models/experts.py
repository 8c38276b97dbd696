"""A group of experts in one process, with the interface of parallel/experts.py, which spreads it over ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn


class Experts(nn.Module):
    """All experts side by side. Members are named and seeded by their global ids, so placement does not matter."""

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

    def of_chosen(self, inputs: Tensor, chosen: Tensor) -> Tensor:
        """The outputs [B, E, D] of experts that return [B, D], 0 where `chosen` [B, E] bool is false; inputs [B, ...].

        An expert computes its own samples alone; one without a sample has gradients of 0.
        """
        outputs, (rows, experts) = of_pairs(list(self.members.values()), inputs, chosen)
        return outputs.new_zeros(*chosen.shape, outputs.shape[1]).index_put((rows, experts), outputs)

    def weighted_sum(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """The sum over the experts e of what e gives for (inputs, weights[:, e]): it applies its weights itself.

        inputs [B, ...], weights [B, E, ...].
        """
        members = self.members.values()
        return add_up(member(inputs, own) for member, own in zip(members, weights.unbind(1), strict=True))


def of_pairs(members: Sequence[nn.Module], inputs: Tensor, chosen: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The outputs [P, D] of the chosen pairs, expert by expert, and each pair's (row of the inputs, expert), [P] each.

    inputs [B, ...], chosen [B, E] bool. Also experts without a sample take part, so that they have gradients, of 0.
    """
    experts, rows = chosen.T.nonzero(as_tuple=True)
    if inputs.dim() == 4:  # for few images of ever other numbers, convolutions are 1.5 times as fast channels last
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    parts = inputs[rows].split(chosen.sum(0).tolist())
    return torch.cat([member(part) for member, part in zip(members, parts, strict=True)]), (rows, experts)


def add_up(parts: Iterable[Tensor]) -> Tensor:
    """The sum of tensors of one shape, which are results that nothing else needs: the first one takes it."""
    return reduce(Tensor.add_, parts)


def seeded(seed: int, build: Callable[[], nn.Module]) -> nn.Module:
    """The module that `build` returns, initialised from `seed`; the caller's random generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def seeded_member(factory: Callable[[], nn.Module], expert: int, seed: int) -> nn.Module:
    """The expert with global id `expert`, initialised from (seed, expert) alone."""
    return seeded(seed * 100_003 + expert, factory)
