"""Engines take training steps: autocast, backward, accumulation, clipping, optimiser. LocalEngine does so by torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from moe_dist.engine.casts import WeightCasts
from moe_dist.engine.optimisers import MixedOptimiser, build_optimiser, choose_optimisers
from moe_dist.settings.training import OptimiserConfig

ParameterState = dict[str, dict[str, Tensor]]
"""The optimiser's tensors of each parameter, by name: moments of the parameter's shape, and the step, a scalar."""


class Engine(ABC):
    """Trains a network: gradients are accumulated over micro-batches, averaged over ranks, clipped and applied.

    Losses are weighted relative to the global batch, so the gradients of micro-batches are added and those of ranks are
    averaged. Forward passes call the network, not the engine: DeepSpeed's wrapper would only measure times and disable
    the caller's autocast.
    """

    expert_ranks: int = 1
    """Expert-parallel size: rank r holds the experts placed on r % expert_ranks."""
    gradient_norm: Tensor | None = None
    """Norm of the last update's gradient over all parameters of all ranks, before clipping; None without clipping."""

    def __init__(
        self,
        network: nn.Module,
        optimisers: Mapping[str, OptimiserConfig | None],
        device: torch.device,
        bf16: bool,
        fused: bool = False,
    ) -> None:
        """fused: let the optimiser update all parameters by one kernel, where torch has one for its kind."""
        self.network = network
        self.configs = choose_optimisers((name for name, _ in network.named_parameters()), optimisers)
        self.optimiser: MixedOptimiser = build_optimiser(network, self.configs, fused)
        self.device = device
        self.bf16 = bf16
        self._casts = WeightCasts(network)

    @contextmanager
    def autocast(self, together: bool = False) -> Iterator[None]:
        """A context for forward passes: bfloat16 autocast if the engine was made with bf16.

        together: cast the convolutions' weights all at once (casts.py). The network must not compute with them in
        float32 anywhere.
        """
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            if not (together and self.bf16):
                yield
                return
            with self._casts.used():
                yield

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one micro-batch; `loss` is a scalar. Collective."""

    def gradient_sizes(self, parameters: Sequence[nn.Parameter | None]) -> Tensor:
        """The mean absolute gradient [E] of each parameter, 0 for None and for a parameter without gradient.

        Call it after the last backward pass of an accumulation and before `step`. Every rank that holds a parameter
        returns its whole mean, or, if ZeRO divides the gradient, a part: the parts add up to the mean.
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
        """Count one micro-batch. After the last one of an accumulation, clip, update and clear the gradients.

        Returns whether parameters were updated. Collective.
        """

    def optimiser_state(self) -> ParameterState:
        """The optimiser state of the parameters on this rank, whole even if ZeRO divides it. Collective."""
        return {
            name: {key: value for key, value in self.optimiser.state[parameter].items() if isinstance(value, Tensor)}
            for name, parameter in self.network.named_parameters()
            if parameter in self.optimiser.state
        }

    def load_optimiser_state(self, state: ParameterState) -> None:
        """Load a state that `optimiser_state` returned. ZeRO also takes the network's current parameters over."""
        self.optimiser.state.clear()
        for name, parameter in self.network.named_parameters():
            if state.get(name):
                stays = set() if self.optimiser.is_fused(parameter) else {"step"}  # else counted on the CPU
                self.optimiser.state[parameter] = {
                    key: value.clone() if key in stays else value.to(parameter.device, copy=True)
                    for key, value in state[name].items()
                }

    def synchronise_buffers(self) -> None:  # noqa: B027 (one process has no replicas)
        """Set each buffer, such as running statistics, to the first replica's value on all replicas. Collective."""

    def close(self) -> None:  # noqa: B027 (plain torch has no hooks)
        """Remove the engine's hooks from the network, so that another engine can be made for it."""


class LocalEngine(Engine):
    """Trains a network in one process by plain torch; the reference for the results of DeepSpeedEngine."""

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
        super().__init__(network, optimisers, device, bf16, fused=device.type == "cuda")
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
            if parameter.grad is None:  # no loss used it: it decays and counts the step, as with DeepSpeed
                parameter.grad = torch.zeros_like(parameter)
        if self.clip_norm is not None:
            self.gradient_norm = torch.nn.utils.clip_grad_norm_(self._trained, self.clip_norm)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return True
