"""What all modules of experts divided over ranks share: how DeepSpeed's engine and ours find and treat them."""

from __future__ import annotations

from collections.abc import Mapping

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from moe_dist.errors import UserError
from moe_dist.parallel.exchange import tie
from moe_dist.parallel.runtime import deepspeed

groups = deepspeed.utils.groups


class SpreadExperts(deepspeed.moe.layer.MoE):
    """Experts divided over groups of `ep_size` consecutive ranks; `members` holds this rank's experts by global id.

    A subclass of DeepSpeed's MoE, because its engine finds experts by that class, averages their gradients over the
    right ranks and makes the process groups. MoE's own constructor is skipped: it clones one expert. Raises UserError
    where ep_size does not divide the number of ranks.
    """

    members: nn.ModuleDict

    def __init__(self, experts: int, ep_size: int) -> None:
        nn.Module.__init__(self)
        if dist.get_world_size() % ep_size:
            raise UserError(f"parallel.expert = {ep_size} does not divide the number of ranks, {dist.get_world_size()}")
        self.ep_size = ep_size
        self.num_experts = experts  # DeepSpeed's engine reads it
        self.expert_group_name = f"ep_size_{ep_size}"
        self.group_rank = dist.get_rank() % ep_size
        self.group: ProcessGroup | None = None
        self.received: list[Tensor] = []  # outputs from other ranks that `tie_exchanges` has still to tie in

    def set_members(self, members: Mapping[int, nn.Module]) -> None:
        """Make `members`, by global id, this rank's experts."""
        self.members = nn.ModuleDict({str(expert): member for expert, member in members.items()})
        for parameter in self.members.parameters():  # how DeepSpeed knows an expert's parameter
            parameter.allreduce = False  # type: ignore[attr-defined]
            parameter.group_name = self.expert_group_name  # type: ignore[attr-defined]

    def set_deepspeed_parallelism(self, use_data_before_expert_parallel_: bool = False) -> None:
        """Make the process groups. Called by DeepSpeed's engine; collective over all ranks."""
        assert not use_data_before_expert_parallel_, "experts are placed over consecutive ranks"
        groups._create_expert_and_data_parallel(self.ep_size)
        self.group = groups._get_expert_parallel_group(self.expert_group_name)


def tie_exchanges(loss: Tensor, network: nn.Module) -> Tensor:
    """`loss`, with a backward path through every exchange since the last call, whether the loss used it or not.

    Without it, a rank whose loss leaves a group of experts out would not join the others' backward collectives, and
    they would wait for it forever.
    """
    received: list[Tensor] = []
    for module in expert_groups(network):
        received += module.received
        module.received = []
    return tie(loss, *received) if received else loss


def expert_groups(network: nn.Module) -> list[SpreadExperts]:
    """The modules of a network whose experts are divided over ranks."""
    return [module for module in network.modules() if isinstance(module, SpreadExperts)]
