"""One torch optimiser made of several kinds, for parts of a network with their own rates and decays; its schedule."""

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


class MixedOptimiser(Optimizer):
    """An optimiser that owns one child per kind, shares its groups and its state with them, and steps them all.

    A group names its child under "kind" and carries "initial_lr", the rate a schedule multiplies. Because the group
    dictionaries and the state are the children's own, whoever replaces a group's parameters (ZeRO puts one flat
    partition in their place) or its rate does so for the child too.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        kinds = sorted({group["kind"] for group in groups})
        self._children = {kind: KINDS[kind](_of_kind(groups, kind)) for kind in kinds}
        super().__init__(groups, {})
        for child in self._children.values():
            child.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Step every child on those of its groups that are in `param_groups` now (ZeRO passes them one by one)."""
        assert closure is None, "a closure would be evaluated once per child"
        for kind, child in self._children.items():
            child.param_groups = _of_kind(self.param_groups, kind)
            if child.param_groups:
                child.step()

    def scale_rates(self, factor: float) -> None:
        """Set every group's rate to `factor` times its initial rate."""
        for group in self.param_groups:
            group["lr"] = group["initial_lr"] * factor


def choose_optimisers(
    names: Iterable[str], optimisers: Mapping[str, OptimiserConfig | None]
) -> dict[str, OptimiserConfig]:
    """For each parameter name the configuration of the longest prefix that fits; names without one are left out."""
    longest_first = sorted(optimisers, key=len, reverse=True)
    chosen = {}
    for name in names:
        prefix = next((prefix for prefix in longest_first if name.startswith(prefix)), None)
        config = None if prefix is None else optimisers[prefix]
        if config is not None:
            chosen[name] = config
    return chosen


def build_optimiser(network: nn.Module, chosen: Mapping[str, OptimiserConfig]) -> MixedOptimiser:
    """The optimiser of `network` from the configuration of each parameter, by name.

    Parameters without one are frozen (requires_grad False), all others are thawed. There is one group per
    configuration for the dense parameters and one for the experts of expert parallelism, which DeepSpeed averages over
    fewer ranks and therefore wants apart, marked "moe" and named after their process group.
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
            groups[key] = _group(config) | ({"name": process_group, "moe": True} if process_group else {})
        groups[key]["params"].append(parameter)
    assert groups, "the stage trains nothing on this rank: no parameter has an optimiser"
    return MixedOptimiser([groups[key] for key in sorted(groups, key=lambda key: bool(key[0]))])


def state_keys(config: OptimiserConfig) -> set[str]:
    """What the optimiser of `config` keeps of a parameter after its first step."""
    if config.kind == "sgd":
        return {"momentum_buffer"} if config.momentum else set()
    return {"step", "square_avg"} if config.kind == "rmsprop" else {"step", "exp_avg", "exp_avg_sq"}


def _group(config: OptimiserConfig) -> dict[str, Any]:
    return {"params": [], "kind": config.kind, "initial_lr": config.learning_rate, **hyper_parameters(config)}


def _of_kind(groups: Iterable[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [group for group in groups if group["kind"] == kind]


class RateFactor:
    """The factor that multiplies every initial learning rate in the current epoch.

    The scheduler drives an optimiser of its own with rate 1, so that the same schedule serves any engine, whatever it
    wraps around the real optimiser.
    """

    def __init__(self, config: ScheduleConfig, length: int) -> None:
        """length: of the whole stage, in what `advance` moves by: epochs or steps."""
        self._unit = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        self._scheduler = _scheduler(self._unit, config, length)
        self._unit.step()  # torch warns when a scheduler steps before its optimiser

    @property
    def factor(self) -> float:
        """The factor of the epoch to come."""
        return self._unit.param_groups[0]["lr"]

    def advance(self, validation_loss: float | None) -> None:
        """Move on by an epoch, or by a step; only the plateau schedule looks at the loss, and it needs one."""
        if isinstance(self._scheduler, ReduceLROnPlateau):
            assert validation_loss is not None  # run.py refuses the schedule where there is no validation
            self._scheduler.step(validation_loss)
        else:
            self._scheduler.step()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; plain JSON values."""
        return {"factor": self.factor, "scheduler": self._scheduler.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self._scheduler.load_state_dict(state["scheduler"])
        self._unit.param_groups[0]["lr"] = state["factor"]


def _scheduler(unit: torch.optim.Optimizer, config: ScheduleConfig, epochs: int) -> Any:
    if config.kind == "plateau":
        return ReduceLROnPlateau(unit, factor=config.factor, patience=config.patience_epochs)
    if config.kind == "step":
        return StepLR(unit, step_size=config.step_epochs, gamma=config.factor)
    if config.kind == "cosine":
        return LambdaLR(unit, lambda epoch: _cosine(epoch, epochs, config.warmup_epochs))
    return LambdaLR(unit, lambda epoch: 1.0)


def _cosine(epoch: int, epochs: int, warmup: int) -> float:
    if epoch < warmup:
        return (epoch + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / max(1, epochs - warmup)))
