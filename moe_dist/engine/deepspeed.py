"""The engine of several ranks, by DeepSpeed: experts spread over ranks, and gradients clipped by their exact norm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moe_dist.engine.engine import Engine, ParameterState
from moe_dist.engine.optimisers import choose_optimisers
from moe_dist.engine.partitions import FlatGroup, flat_groups, gather_state, load_state
from moe_dist.errors import UserError
from moe_dist.parallel.runtime import deepspeed, start_deepspeed
from moe_dist.parallel.spread import expert_groups, groups, tie_exchanges
from moe_dist.settings.resources import ParallelConfig
from moe_dist.settings.training import OptimiserConfig


class DeepSpeedEngine(Engine):
    """Trains a network on all ranks of the process group, with ZeRO 0, 1 or 2. Results equal those of LocalEngine.

    The constructor is collective. It raises UserError if a rank would have nothing to train.
    """

    def __init__(
        self,
        network: nn.Module,
        optimisers: Mapping[str, OptimiserConfig | None],
        *,
        parallel: ParallelConfig,
        clip_norm: float | None,
        device: torch.device,
        bf16: bool,
    ) -> None:
        start_deepspeed(device)
        scalars = [name for name, parameter in network.named_parameters() if not parameter.dim()]
        assert not scalars, f"DeepSpeed cannot broadcast parameters without dimensions: give {scalars} the shape [1]"
        _require_work_on_every_rank(network, optimisers, parallel.zero, device)
        super().__init__(network, optimisers, device, bf16)
        self.clip_norm = clip_norm
        self.zero = parallel.zero
        self._experts = expert_groups(network)
        self.expert_ranks = self._experts[0].ep_size if self._experts else 1
        self._engine, *_ = deepspeed.initialize(
            model=network,
            optimizer=self.optimiser,
            config=deepspeed_config(network, parallel, device),
            dist_init_required=False,
        )
        # They only serve timers and ZeRO 3, and `destroy` would leave them on the network for the next stage.
        self._engine.module_forward_pre_hook.remove()
        self._engine.module_forward_post_hook.remove()
        self._flat: list[FlatGroup] = flat_groups(self._engine.optimizer, network) if self.zero else []
        self._names = {parameter: name for name, parameter in network.named_parameters()}

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(tie_exchanges(loss, self.network), scale_wrt_gas=False)

    def step(self) -> bool:
        updates = self._engine.is_gradient_accumulation_boundary()
        if updates and self.clip_norm is not None:
            self._clip(self.clip_norm)
        self._engine.step()
        return updates

    def optimiser_state(self) -> ParameterState:
        return gather_state(self._flat, self.optimiser) if self.zero else super().optimiser_state()

    def load_optimiser_state(self, state: ParameterState) -> None:
        if self.zero:
            load_state(self._flat, self.optimiser, state, self.network)
        else:
            super().load_optimiser_state(state)

    def synchronise_buffers(self) -> None:
        of_experts = {id(buffer) for module in self._experts for buffer in module.buffers()}
        for buffer in self.network.buffers():
            if id(buffer) not in of_experts:
                dist.broadcast(buffer, 0)
            else:
                replicas = groups._get_expert_data_parallel_group(self._experts[0].expert_group_name)
                dist.broadcast(buffer, dist.get_rank() % self.expert_ranks, group=replicas)

    def close(self) -> None:
        self._engine.destroy()

    def _clip(self, limit: float) -> None:
        """Scale the averaged gradients so that their norm, over all parameters of all ranks, is at most `limit`.

        Without ZeRO, the clipping of DeepSpeed uses the mean of the ranks' norms, and it hangs if ranks have different
        numbers of optimiser groups.
        """
        gradients = self._owned_gradients()
        self.gradient_norm = self._squares().sqrt()
        torch._foreach_mul_(gradients, (limit / (self.gradient_norm + 1e-6)).clamp(max=1.0))

    def _gradient_size(self, parameter: nn.Parameter) -> Tensor | float:
        if not self.zero:
            return super()._gradient_size(parameter)
        # ZeRO clears .grad as soon as the gradient is averaged, and keeps this rank's slice of it.
        name = self._names[parameter]
        for number, group in enumerate(self._flat):
            if name in group.offsets:
                return group.magnitude(name, self._engine.optimizer.averaged_gradients[number]) / parameter.numel()
        return 0.0

    def _owned_gradients(self) -> list[Tensor]:
        """The gradients that this rank's update uses: those of its partitions, or without ZeRO of its parameters."""
        if self.zero:
            return [gradient for part in self._engine.optimizer.averaged_gradients.values() for gradient in part]
        return [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]

    def _squares(self) -> Tensor:
        """The squared norm of the gradient of all ranks, in which each parameter counts once. Collective."""
        if self.zero:  # partitions of all ranks are disjoint
            total = _squared_norm(self._owned_gradients(), self.device)
            dist.all_reduce(total)
            return total
        dense: list[Tensor] = []
        experts: list[Tensor] = []
        for parameter in self.network.parameters():
            if parameter.grad is not None:
                (dense if getattr(parameter, "allreduce", True) else experts).append(parameter.grad)
        of_experts = _squared_norm(experts, self.device)
        if self._experts:
            dist.all_reduce(of_experts, group=self._experts[0].group)
        return _squared_norm(dense, self.device) + of_experts


def deepspeed_config(network: nn.Module, parallel: ParallelConfig, device: torch.device) -> dict[str, Any]:
    """The configuration of DeepSpeed. Collective: the ranks agree on the size of the bucket."""
    largest = torch.tensor([sum(parameter.numel() for parameter in network.parameters())], device=device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    zero = {
        # One bucket for all parameters: ranks with unequal experts would send smaller buckets in different orders and
        # hang. DeepSpeed's default size is allocated even for a small network.
        "reduce_bucket_size": int(largest),
        "compute_grad_norm": False,
    }
    return {
        "train_micro_batch_size_per_gpu": 1,  # only used to count samples, which nothing reads
        "gradient_accumulation_steps": parallel.accumulate(torch.distributed.get_world_size()),
        "gradient_clipping": 0.0,  # no clipping (the default is 1): `DeepSpeedEngine.step` clips
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": parallel.zero} | (zero if parallel.zero else {}),
        "timers": {"throughput": {"enabled": False}},
    }


def _require_work_on_every_rank(
    network: nn.Module, optimisers: Mapping[str, OptimiserConfig | None], zero: int, device: torch.device
) -> None:
    """Raise UserError on all ranks if one has nothing to train, or with ZeRO no expert: each needs a partition."""
    trained = choose_optimisers((name for name, _ in network.named_parameters()), optimisers)
    experts = {name for name, parameter in network.named_parameters() if not getattr(parameter, "allreduce", True)}
    wanted = trained.keys() & experts if zero and experts else trained
    everywhere = torch.tensor([int(bool(wanted))], device=device)
    dist.all_reduce(everywhere, op=dist.ReduceOp.MIN)
    if not everywhere and zero:
        raise UserError(
            f"parallel.zero = {zero}: in this stage some rank holds only frozen experts, and ZeRO needs an expert to "
            f"train on every rank; set parallel.zero to 0, or parallel.expert lower"
        )
    if not everywhere:
        raise UserError("parallel.expert: in this stage some rank has nothing to train; set parallel.expert lower")


def _squared_norm(gradients: list[Tensor], device: torch.device) -> Tensor:
    """The sum of squares of all elements, as a scalar tensor."""
    if not gradients:
        return torch.zeros((), device=device)
    return torch.stack(torch._foreach_norm(gradients)).square().sum()
