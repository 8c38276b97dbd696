"""A sparse mixture layer over the ranks of an expert-parallel group, by DeepSpeed's own MoE layer.

It has the interface, the parameters' names, the initial weights and the numbers of models/sparse.py, so that
checkpoints fit both. Capacity and the balancing loss are counted over the tokens of one call, which are one rank's. One
process counts the same tokens where it has as many micro-batches as there are ranks.

Letters in shapes: T tokens, D features of a token, E experts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from moe_dist.errors import UserError
from moe_dist.models.experts import seeded_member
from moe_dist.models.sparse import Routing, seeded_gate
from moe_dist.parallel.runtime import deepspeed
from moe_dist.parallel.spread import SpreadExperts


class SparseParallel(SpreadExperts):
    """The gate on every rank, and E / ep_size consecutive experts on each rank of a group.

    All ranks of a group must have equally many tokens. Raises UserError where ep_size does not divide the number of
    experts.
    """

    def __init__(self, factory: Callable[[], nn.Module], routing: Routing, seed: int = 0, *, ep_size: int) -> None:
        super().__init__(routing.experts, ep_size)
        if routing.experts % ep_size:
            raise UserError(
                f"parallel.expert = {ep_size} does not divide method.experts = {routing.experts}: DeepSpeed's sparse "
                f"layer gives every rank equally many; change one of the two"
            )
        self.routing = routing
        self.gate = seeded_gate(routing, seed)
        count = routing.experts // ep_size
        first = self.group_rank * count
        self.set_members({expert: seeded_member(factory, expert, seed) for expert in range(first, first + count)})
        # Not a submodule: its parameters would be named, and saved, once more.
        object.__setattr__(self, "_layer", self._deepspeed_layer())

    def set_deepspeed_parallelism(self, use_data_before_expert_parallel_: bool = False) -> None:
        """Make the process groups. Called by DeepSpeed's engine; collective over all ranks."""
        super().set_deepspeed_parallelism(use_data_before_expert_parallel_)
        inner = self._layer.deepspeed_moe
        inner.ep_group = inner.gate.ep_group = self.group

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """The mixed outputs [T, D] of this rank's tokens [T, D], and their balancing loss []. Collective."""
        assert self.group is not None, "the engine makes the process group before the first forward pass"
        gate = self._layer.deepspeed_moe.gate
        gate.training = self.training
        gate.drop_tokens = self.training and self.routing.capacity_factor is not None
        mixed, balance, _ = self._layer(tokens)
        if torch.is_grad_enabled():
            self.received.append(mixed)
        return mixed, balance

    def _deepspeed_layer(self) -> nn.Module:
        """DeepSpeed's layer, made deterministic, with our gate and experts instead of its own."""
        routing = self.routing
        layer = deepspeed.moe.layer.MoE(
            routing.width,
            nn.Identity(),
            routing.experts,
            self.ep_size,
            routing.top_k,
            capacity_factor=routing.capacity_factor or 1.0,
            min_capacity=0,
            use_rts=False,
            top2_2nd_expert_sampling=False,
        )
        layer.deepspeed_moe.gate.wg = self.gate
        layer.deepspeed_moe.experts.deepspeed_experts = nn.ModuleList(self.members.values())
        return layer
