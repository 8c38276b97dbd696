"""A torch optimiser that combines several kinds for parts of a network, and the schedule of learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau, StepLR

from moe_dist.optimisers import KINDS, hyper_parameters
from moe_dist.settings.training import OptimiserConfig, ScheduleConfig

FUSED_KINDS = ("sgd", "adam", "adamw")
"""Kinds for which torch has a fused kernel."""


class MixedOptimiser(Optimizer):
    """An optimiser with one child of each kind, such as SGD and AdamW, which share its groups and its state.

    A group has its child's name as "kind", and as "initial_lr" the rate that a schedule multiplies. Groups and state
    are shared as objects: whoever changes a group's rate or its parameters (ZeRO replaces them by one flat partition)
    changes them for the child too.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        kinds = sorted({group["kind"] for group in groups})
        self._children = {kind: KINDS[kind]([group for group in groups if group["kind"] == kind]) for kind in kinds}
        super().__init__(groups, {})
        for child in self._children.values():
            child.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Step each child on its groups among `param_groups`, which ZeRO sets to one group at a time."""
        assert closure is None, "a closure would be evaluated once for each child"
        for kind, child in self._children.items():
            child.param_groups = [group for group in self.param_groups if group["kind"] == kind]
            if child.param_groups:
                child.step()

    def is_fused(self, parameter: nn.Parameter) -> bool:
        """Whether the parameter is updated by a fused kernel, whose state is all on the parameter's device."""
        groups = (group for group in self.param_groups if any(parameter is each for each in group["params"]))
        return bool(next(groups).get("fused"))

    def scale_rates(self, factor: float) -> None:
        """Set the rate of every group to `factor` times its initial rate."""
        for group in self.param_groups:
            group["lr"] = group["initial_lr"] * factor


def choose_optimisers(
    names: Iterable[str], optimisers: Mapping[str, OptimiserConfig | None]
) -> dict[str, OptimiserConfig]:
    """The configuration of each parameter name that has one: that of the longest prefix that matches the name."""
    longest_first = sorted(optimisers, key=len, reverse=True)
    chosen = {}
    for name in names:
        prefix = next((prefix for prefix in longest_first if name.startswith(prefix)), None)
        config = None if prefix is None else optimisers[prefix]
        if config is not None:
            chosen[name] = config
    return chosen


def build_optimiser(network: nn.Module, chosen: Mapping[str, OptimiserConfig], fused: bool = False) -> MixedOptimiser:
    """The optimiser of `network`, given the configuration of each parameter by name.

    Parameters without a configuration are frozen, all others are not. Dense parameters have one group for each
    configuration. Experts that are spread over ranks have groups of their own, marked "moe" and named after their
    process group, because DeepSpeed averages their gradients over fewer ranks. fused: use torch's fused kernels for the
    kinds that have one, whose results are equal up to rounding.
    """
    groups: dict[tuple[str, OptimiserConfig], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        config = chosen.get(name)
        parameter.requires_grad_(config is not None)
        if config is None:
            continue
        process_group = getattr(parameter, "group_name", "")
        key = (process_group, config)
        if key not in groups:
            groups[key] = {"params": [], "kind": config.kind, "initial_lr": config.learning_rate}
            groups[key] |= hyper_parameters(config)
            groups[key] |= {"fused": True} if fused and config.kind in FUSED_KINDS else {}
            groups[key] |= {"name": process_group, "moe": True} if process_group else {}
        groups[key]["params"].append(parameter)
    assert groups, "the stage trains nothing on this rank: no parameter has an optimiser"
    return MixedOptimiser([groups[key] for key in sorted(groups, key=lambda key: bool(key[0]))])


def state_keys(config: OptimiserConfig) -> set[str]:
    """The names of the tensors that the optimiser of `config` keeps for a parameter after its first step."""
    if config.kind == "sgd":
        return {"momentum_buffer"} if config.momentum else set()
    return {"step", "square_avg"} if config.kind == "rmsprop" else {"step", "exp_avg", "exp_avg_sq"}


class RateFactor:
    """The factor by which a schedule multiplies every initial learning rate.

    A torch scheduler drives an optimiser of its own, with rate 1. So a schedule does not depend on what an engine wraps
    around the real optimiser.
    """

    def __init__(self, config: ScheduleConfig, length: int) -> None:
        """length: the length of the stage, in epochs or in steps, whichever `advance` counts."""
        self._unit = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        self._scheduler = _scheduler(self._unit, config, length)
        self._unit.step()  # torch warns when a scheduler steps before its optimiser

    @property
    def factor(self) -> float:
        """The factor of the next epoch or step."""
        return self._unit.param_groups[0]["lr"]

    def advance(self, validation_loss: float | None) -> None:
        """Go to the next epoch or step. Only the plateau schedule uses the loss, and it needs one."""
        if isinstance(self._scheduler, ReduceLROnPlateau):
            assert validation_loss is not None  # require_trainable refuses the schedule without validation
            self._scheduler.step(validation_loss)
        else:
            self._scheduler.step()

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint, as JSON values."""
        return {"factor": self.factor, "scheduler": self._scheduler.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Load a state that `state` returned."""
        self._scheduler.load_state_dict(state["scheduler"])
        self._unit.param_groups[0]["lr"] = state["factor"]


def _scheduler(unit: torch.optim.Optimizer, config: ScheduleConfig, epochs: int) -> Any:
    if config.kind == "plateau":
        return ReduceLROnPlateau(unit, factor=config.factor, patience=config.patience_epochs)
    if config.kind == "step":
        return StepLR(unit, step_size=config.step_epochs, gamma=config.factor)
    if config.kind == "cosine":
        return LambdaLR(unit, lambda epoch: _cosine(epoch, epochs, config.warmup_epochs, config.warmup_start))
    return LambdaLR(unit, lambda epoch: 1.0)


def _cosine(epoch: int, epochs: int, warmup: int, start: float | None) -> float:
    if epoch < warmup:
        return (epoch + 1) / (warmup + 1) if start is None else start + (1 - start) * epoch / warmup
    return 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / max(1, epochs - warmup)))
