"""MixedOptimiser gives the same results as its torch optimisers, each run separately."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from moe_dist.engine.optimisers import RateFactor, build_optimiser, choose_optimisers, state_keys
from moe_dist.settings.training import OptimiserConfig, ScheduleConfig

SGD = OptimiserConfig(kind="sgd", learning_rate=0.1, momentum=0.8, weight_decay=0.01)
RMSPROP = OptimiserConfig(kind="rmsprop", learning_rate=0.01)
ADAM = OptimiserConfig(kind="adam", learning_rate=0.02, weight_decay=0.1)
ADAMW = OptimiserConfig(kind="adamw", learning_rate=0.02, weight_decay=0.1)
PARTS = {"0.": SGD, "1.": RMSPROP, "2.": ADAM, "3.": ADAMW}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(5)))


def separate_optimisers(parts: nn.Sequential) -> list[torch.optim.Optimizer]:
    return [
        torch.optim.SGD(parts[0].parameters(), lr=0.1, momentum=0.8, weight_decay=0.01),
        torch.optim.RMSprop(parts[1].parameters(), lr=0.01),
        torch.optim.Adam(parts[2].parameters(), lr=0.02, weight_decay=0.1),
        torch.optim.AdamW(parts[3].parameters(), lr=0.02, weight_decay=0.1),
    ]


def test_equals_separate_torch_optimisers() -> None:
    mixed, reference = network(), network()
    optimiser = build_optimiser(mixed, choose_optimisers([name for name, _ in mixed.named_parameters()], PARTS))
    separate = separate_optimisers(reference)
    for step in range(6):
        factor = 0.5 if step >= 3 else 1.0
        optimiser.scale_rates(factor)
        for group in (group for one in separate for group in one.param_groups):
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
        images = torch.full((2, 4), 0.1 * step)
        for net, optimisers in ((mixed, [optimiser]), (reference, separate)):
            net(images).square().sum().backward()
            for one in optimisers:
                one.step()
            net.zero_grad()
    for name, parameter in mixed.named_parameters():
        assert torch.equal(parameter, reference.get_parameter(name)), name
    assert not torch.equal(mixed[0].weight, network()[0].weight)


def test_what_no_prefix_fits_is_frozen_and_thaws_again() -> None:
    net = network()
    build_optimiser(net, choose_optimisers([name for name, _ in net.named_parameters()], PARTS))
    assert [name for name, parameter in net.named_parameters() if not parameter.requires_grad] == ["4.weight", "4.bias"]
    build_optimiser(net, choose_optimisers([name for name, _ in net.named_parameters()], {"": ADAM}))
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_the_longest_prefix_wins() -> None:
    names = ["experts.members.3.weight", "experts.members.31.weight", "gate.weight", "trunk.weight"]
    chosen = choose_optimisers(names, {"experts.": SGD, "experts.members.3.": ADAM, "gate": ADAMW})
    assert chosen == {names[0]: ADAM, names[1]: SGD, names[2]: ADAMW}


def test_one_group_per_configuration_and_experts_apart() -> None:
    """DeepSpeed needs experts that are spread over ranks in groups of their own, named after the process group."""
    net = network()
    for parameter in net[0].parameters():
        parameter.group_name = "ep_size_2"  # type: ignore[attr-defined]
    names = [name for name, _ in net.named_parameters()]
    equal = copy.deepcopy(ADAM)
    optimiser = build_optimiser(net, choose_optimisers(names, {"0.": ADAM, "1.": equal, "2.": ADAM, "3.": SGD}))
    summary = [
        (group["kind"], len(group["params"]), group.get("moe", False), group.get("name"))
        for group in optimiser.param_groups
    ]
    assert summary == [("adam", 4, False, None), ("sgd", 2, False, None), ("adam", 2, True, "ep_size_2")]


def test_nothing_to_train_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="the stage trains nothing"):
        build_optimiser(network(), {})


@pytest.mark.parametrize("config", [SGD, OptimiserConfig(kind="sgd", momentum=0), RMSPROP, ADAM, ADAMW], ids=str)
def test_state_keys_are_torch_s(config: OptimiserConfig) -> None:
    net = nn.Linear(2, 2)
    optimiser = build_optimiser(net, {"weight": config})
    net(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    assert optimiser.state[net.weight].keys() == state_keys(config)


def test_a_warm_up_starts_where_it_is_told_to() -> None:
    """SHIKE's public code: rates 0.0375, 0.05, ... 0.0875 of stage two's 0.1, then the cosine over the last 15."""
    config = ScheduleConfig(kind="cosine", warmup_epochs=5, warmup_start=0.375)
    schedule, rates = RateFactor(config, 20), []
    for _ in range(20):
        rates.append(0.1 * schedule.factor)
        schedule.advance(None)
    assert rates[:5] == pytest.approx([0.0375, 0.05, 0.0625, 0.075, 0.0875])
    assert rates[5:] == pytest.approx([0.05 * (1 + math.cos(math.pi * epoch / 15)) for epoch in range(15)])
