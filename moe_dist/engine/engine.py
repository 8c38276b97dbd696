"""What takes a training step: autocast, backward, accumulation, clipping, optimiser; and the engine of one process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from moe_dist.engine.optimisers import MixedOptimiser, build_optimiser, choose_optimisers
from moe_dist.settings.training import OptimiserConfig

ParameterState = dict[str, dict[str, Tensor]]
"""By parameter name: the optimiser's tensors of that parameter, each of its shape or a single number (the step)."""


class Engine(ABC):
    """A network with its optimiser, and the way its ranks share one step.

    Loss weights are relative to the whole global batch, so the gradients of `accumulate` micro-batches add up, and are
    averaged over the ranks. The network itself is called, not the engine: DeepSpeed's wrapper would only time it and
    switch the caller's autocast off.
    """

    expert_ranks: int = 1
    """Expert-parallel size: rank r holds the experts of place r % expert_ranks."""
    gradient_norm: Tensor | None = None
    """Of the last update, over all parameters of all ranks, before clipping; None where gradients are not clipped."""

    def __init__(
        self, network: nn.Module, optimisers: Mapping[str, OptimiserConfig | None], device: torch.device, bf16: bool
    ) -> None:
        self.network = network
        self.configs = choose_optimisers((name for name, _ in network.named_parameters()), optimisers)
        self.optimiser: MixedOptimiser = build_optimiser(network, self.configs)
        self.device = device
        self.bf16 = bf16

    def autocast(self) -> AbstractContextManager[None]:
        """The context for forward passes: bfloat16 autocast where the engine was made with bf16."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)

    def scale_rates(self, factor: float) -> None:
        """Set every learning rate to `factor` times its initial value."""
        self.optimiser.scale_rates(factor)

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Add one micro-batch's gradients; `loss` is a scalar. Collective over ranks."""

    def gradient_sizes(self, parameters: Sequence[nn.Parameter | None]) -> Tensor:
        """The mean absolute gradient of each of `parameters` [E], 0 for None and for what this stage does not train.

        Asked between the last backward pass of an accumulation and its step. A parameter counts once on every rank
        that holds it, or, where ZeRO divides its gradient, once over all of them.
        """
        sizes = torch.zeros(len(parameters), device=self.device)
        for number, parameter in enumerate(parameters):
            if parameter is not None:
                sizes[number] = self._gradient_size(parameter)
        return sizes

    def _gradient_size(self, parameter: nn.Parameter) -> Tensor | float:
        return 0.0 if parameter.grad is None else parameter.grad.abs().mean()

    @abstractmethod
    def step(self) -> bool:
        """Count one micro-batch; at the last of an accumulation clip, update and clear the gradients.

        Returns whether an update was made. Collective over ranks.
        """

    @abstractmethod
    def optimiser_state(self) -> ParameterState:
        """The whole optimiser state of this rank's parameters, independent of any partitioning. Collective."""

    @abstractmethod
    def load_optimiser_state(self, state: ParameterState) -> None:
        """Take over a state that `optimiser_state` returned, and the parameters as they are in the network now."""

    @abstractmethod
    def synchronise_buffers(self) -> None:
        """Give every replica of a buffer (running statistics drift apart) the value of its first rank. Collective."""

    @abstractmethod
    def close(self) -> None:
        """Take the engine's hooks off the network, so that another engine can be made for it."""


def state_by_parameter(network: nn.Module, optimiser: MixedOptimiser) -> ParameterState:
    """The optimiser's tensors by parameter name, where it keeps its state by parameter (no ZeRO)."""
    return {
        name: {key: value for key, value in optimiser.state[parameter].items() if isinstance(value, Tensor)}
        for name, parameter in network.named_parameters()
        if parameter in optimiser.state
    }


def load_state_by_parameter(network: nn.Module, optimiser: MixedOptimiser, state: ParameterState) -> None:
    """The inverse of `state_by_parameter`; moments move to their parameter's device, step counters stay on the CPU."""
    optimiser.state.clear()
    for name, parameter in network.named_parameters():
        if state.get(name):
            optimiser.state[parameter] = {
                key: value.clone() if key == "step" else value.to(parameter.device, copy=True)
                for key, value in state[name].items()
            }


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
