"""The flat partitions of ZeRO as whole parameters, so that a checkpoint does not depend on how they are divided.

ZeRO 1 and 2 concatenate the parameters of an optimiser group and divide the result equally over the ranks of the
group's process group. Each rank keeps the master weights and the optimiser's moments of its slice.

Letters: n elements of a rank's slice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from moe_dist.engine.engine import ParameterState
from moe_dist.engine.optimisers import MixedOptimiser


@dataclass(frozen=True)
class FlatGroup:
    """An optimiser group: this rank's `partition` [n], and the offset of each parameter in all partitions joined."""

    partition: Tensor
    offsets: Mapping[str, int]
    shapes: Mapping[str, torch.Size]
    process_group: ProcessGroup

    def gather(self, partition: Tensor) -> dict[str, Tensor]:
        """The whole tensors by parameter name, of which `partition` [n] is this rank's slice. Collective."""
        parts = [torch.empty_like(partition) for _ in range(dist.get_world_size(self.process_group))]
        dist.all_gather(parts, partition, group=self.process_group)
        flat = torch.cat(parts)
        return {
            name: flat[start : start + self.shapes[name].numel()].view(self.shapes[name])
            for name, start in self.offsets.items()
        }

    def slice(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """This rank's slice [n] of whole tensors; the inverse of `gather`, without communication."""
        size = self.partition.numel()
        flat = self.partition.new_zeros(size * dist.get_world_size(self.process_group))
        for name, start in self.offsets.items():
            flat[start : start + self.shapes[name].numel()] = tensors[name].flatten()
        rank = dist.get_rank(self.process_group)
        return flat[rank * size : (rank + 1) * size]

    def magnitude(self, name: str, gradients: Sequence[Tensor]) -> Tensor:
        """The sum of the absolute gradients of `name` in this rank's slice, whose gradients are `gradients` joined."""
        total = self.partition.new_zeros(())
        position = dist.get_rank(self.process_group) * self.partition.numel()
        for gradient in gradients:
            start = self.offsets[name] - position
            own = gradient.flatten()[max(0, start) : max(0, start + self.shapes[name].numel())]
            if own.numel():
                total += own.abs().sum()
            position += gradient.numel()
        return total


def flat_groups(zero: Any, network: nn.Module) -> list[FlatGroup]:
    """The optimiser groups of `zero`, a DeepSpeedZeroOptimizer of stage 1 or 2."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    return [
        FlatGroup(
            partition=partition,
            offsets={names[parameter]: start for parameter, start in zip(parameters, offsets)},
            shapes={names[parameter]: parameter.shape for parameter in parameters},
            process_group=process_group,
        )
        for partition, parameters, offsets, process_group in zip(
            zero.single_partition_of_fp32_groups,
            zero.round_robin_bit16_groups,
            zero.round_robin_bit16_offsets,
            zero.real_dp_process_group,
        )
    ]


def gather_state(groups: list[FlatGroup], optimiser: MixedOptimiser) -> ParameterState:
    """The optimiser's state by parameter. Moments are gathered; the step counter is the group's. Collective."""
    state: ParameterState = {name: {} for group in groups for name in group.offsets}
    for group in groups:
        for key, value in sorted(optimiser.state[group.partition].items()):
            whole = dict.fromkeys(group.offsets, value) if key == "step" else group.gather(value)
            for name, tensor in whole.items():
                state[name][key] = tensor
    return state


def load_state(groups: list[FlatGroup], optimiser: MixedOptimiser, state: ParameterState, network: nn.Module) -> None:
    """Fill the partitions with the network's current parameters, and the optimiser's state with `state`."""
    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}
    for group in groups:
        group.partition.data.copy_(group.slice(parameters))
        first = next(iter(group.offsets))
        optimiser.state[group.partition] = {
            key: state[first][key].clone()
            if key == "step"
            else group.slice({name: state[name][key].to(group.partition.device) for name in group.offsets})
            for key in state.get(first, {})
        }
