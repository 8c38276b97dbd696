"""One torch optimiser made of several: every part of a network has its own kind, rate and decay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from moe_dist.optimisers import KINDS, hyper_parameters
from moe_dist.settings.training import OptimiserConfig


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
