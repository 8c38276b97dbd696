"""The engine of one process: plain torch, the reference that the one over ranks equals."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from moe_dist.engine.base import Engine, ParameterState, load_state_by_parameter, state_by_parameter
from moe_dist.settings.training import OptimiserConfig


class LocalEngine(Engine):
    """Plain torch in one process: the reference that the distributed engine equals."""

    def __init__(
        self,
        network: nn.Module,
        optimisers: Mapping[str, OptimiserConfig | None],
        *,
        accumulate: int,
        clip_norm: float | None,
        device: torch.device,
        bf16: bool,
    ) -> None:
        network.to(device)
        super().__init__(network, optimisers, device, bf16)
        self.accumulate = accumulate
        self.clip_norm = clip_norm
        self._micro_batches = 0
        self._trained = [parameter for parameter in network.parameters() if parameter.requires_grad]

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> bool:
        self._micro_batches += 1
        if self._micro_batches % self.accumulate:
            return False
        for parameter in self._trained:
            if parameter.grad is None:  # untouched by the loss: as over ranks, it still decays and counts the step
                parameter.grad = torch.zeros_like(parameter)
        if self.clip_norm is not None:
            self.gradient_norm = torch.nn.utils.clip_grad_norm_(self._trained, self.clip_norm)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return True

    def optimiser_state(self) -> ParameterState:
        return state_by_parameter(self.network, self.optimiser)

    def load_optimiser_state(self, state: ParameterState) -> None:
        load_state_by_parameter(self.network, self.optimiser, state)

    def synchronise_buffers(self) -> None:
        """One process: nothing can have drifted."""

    def close(self) -> None:
        """A local engine leaves nothing on the network."""
