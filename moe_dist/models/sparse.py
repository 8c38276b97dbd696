"""A sparse mixture layer in one process: every token goes to its first 1 or 2 experts, as far as these have room.

1. The gate's softmax ranks the experts of each token (Shazeer et al. 2017, without noise); the first k are its choices.
2. In training an expert takes ceil(k * capacity factor * T / E) tokens (Switch Transformer, Eq 3). Choices beyond that
   are dropped: the token passes that expert by. In evaluation nothing is dropped.
3. A token's output is the weighted sum of its experts' outputs. The weights are, for k = 1, the probability (Switch,
   Eq 2), and for k = 2 the probabilities divided by the sum of those not dropped (GShard, Algorithm 1).

DeepSpeed's layer, which parallel/sparse.py spreads over ranks, does the same, so both give the same numbers.
Letters in shapes: T tokens, D features of a token, E experts, k choices of a token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from moe_dist.models.experts import seeded_member


@dataclass(frozen=True)
class Routing:
    """Sizes of a sparse layer: tokens [T, width], `experts`, top_k of 1 or 2, capacity_factor or None for no limit."""

    width: int
    experts: int
    top_k: int
    capacity_factor: float | None

    def capacity(self, tokens: int) -> int | None:
        """How many of `tokens` an expert takes (Switch, Eq 3), or None for all."""
        if self.capacity_factor is None:
            return None
        # In single precision, as DeepSpeed: 50 * 1.1 is 55 there, and a little more in double precision: 56 rounded up.
        return int(torch.ceil(tokens / self.experts * torch.tensor(self.capacity_factor * self.top_k)))


@dataclass(frozen=True)
class Routes:
    """choices [T, k]: experts; kept [T, k]: whether they take the token; weights [T, k]: 0 where they do not.

    balance: the balancing loss (Switch, Eq 4 without alpha); 1 where every expert is first choice equally often.
    """

    choices: Tensor
    kept: Tensor
    weights: Tensor
    balance: Tensor

    def by_expert(self, experts: int) -> Tensor:
        """The weights as [T, E], 0 for experts that were not chosen."""
        return self.weights.new_zeros(self.weights.shape[0], experts).scatter(1, self.choices, self.weights)


class SparseExperts(nn.Module):
    """A gate and E experts of one shape, each initialised under its own seed.

    Experts map rows [n, D] to [n, D], each row independently: over ranks they also see rows of padding.
    """

    def __init__(self, factory: Callable[[], nn.Module], routing: Routing, seed: int = 0) -> None:
        super().__init__()
        self.routing = routing
        self.gate = seeded_gate(routing, seed)
        self.members = nn.ModuleDict(
            {str(expert): seeded_member(factory, expert, seed) for expert in range(routing.experts)}
        )

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The mixed outputs [T, D] of tokens [T, D], 0 where all choices were dropped; and the balancing loss []."""
        capacity = self.routing.capacity(len(tokens)) if self.training else None
        routes = route(gate_logits(self.gate, tokens), self.routing.top_k, capacity)
        mixed = tokens.new_zeros(tokens.shape, dtype=torch.float32)
        for expert, member in enumerate(self.members.values()):
            rows, choice = ((routes.choices == expert) & routes.kept).nonzero(as_tuple=True)
            mixed = mixed.index_add(0, rows, routes.weights[rows, choice, None] * member(tokens[rows]))
        return mixed, routes.balance


def seeded_gate(routing: Routing, seed: int) -> nn.Linear:
    """The gate, initialised from `seed` as if it were one more expert."""
    gate = seeded_member(lambda: nn.Linear(routing.width, routing.experts, bias=False), routing.experts, seed)
    assert isinstance(gate, nn.Linear)
    return gate


def gate_logits(gate: nn.Linear, tokens: Tensor) -> Tensor:
    """Logits [T, E] of tokens [T, D], in float32 unless autocast says otherwise."""
    return functional.linear(tokens.float(), gate.weight.float())


def route(logits: Tensor, top_k: int, capacity: int | None = None) -> Routes:
    """The routes of tokens with gate logits [T, E]; an expert takes at most `capacity` of them, or all where None."""
    experts = logits.shape[1]
    probabilities = logits.softmax(1)
    choices = probabilities.argmax(1, keepdim=True)
    if top_k == 2:
        second = logits.scatter(1, choices, float("-inf")).argmax(1, keepdim=True)
        choices = torch.cat([choices, second], 1)
    chosen = functional.one_hot(choices, experts)
    balance = experts * (probabilities.mean(0) * chosen[:, 0].float().mean(0)).sum()
    kept = torch.ones_like(choices, dtype=torch.bool) if capacity is None else _within(chosen, capacity)
    weights = probabilities.gather(1, choices) * kept
    if top_k == 2:
        weights = weights / weights.sum(1, keepdim=True).clamp_min(torch.finfo(weights.dtype).eps)
    return Routes(choices, kept, weights, balance)


def _within(chosen: Tensor, capacity: int) -> Tensor:
    """Which choices are within their expert's capacity, [T, k] bool; chosen: their one-hot experts [T, k, E].

    For k = 2 tokens are served in their order, all first choices before any second one (GShard). For k = 1 DeepSpeed
    keeps the tokens that torch.topk returns among equals; the same call keeps the same ones here.
    """
    if chosen.shape[1] == 1:
        mask = chosen[:, 0]
        taken = mask.topk(min(capacity, len(mask)), dim=0).indices
        return (mask * torch.zeros_like(mask).scatter(0, taken, 1)).sum(1, keepdim=True).bool()
    earlier = chosen.cumsum(0) - chosen
    earlier[:, 1] += chosen[:, 0].sum(0)
    return (chosen * (earlier < capacity)).sum(2).bool()
