"""What DeepSpeed does wrong by default with experts like ours; each trap has cost somebody a day."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from networks import CLASSES, SIDE, BranchesOnTrunk, LeNetMixture, build
from torch import Tensor, nn
from training import ADAM, GLOBAL_BATCH, SGD, Case, largest_difference, share, take_steps, train_alone, train_rank
from training import engine_of as engine_of_case
from worlds import World

from moe_dist.engine.choose import make_engine
from moe_dist.engine.engine import Engine
from moe_dist.errors import UserError
from moe_dist.models.experts import Experts
from moe_dist.settings.resources import ParallelConfig
from moe_dist.settings.training import OptimiserConfig

STEPS = range(10)


def engine_of(
    network: nn.Module, optimisers: dict[str, OptimiserConfig], ranks: int, zero: int = 0, bf16: bool = False
) -> Engine:
    return make_engine(
        network,
        optimisers,
        parallel=ParallelConfig(zero=zero),
        clip_norm=None,
        device=torch.device("cpu"),
        bf16=bf16,
        ranks=max(ranks, 1),
        deepspeed=ranks > 0,
    )


def experts_class(ep_size: int) -> Any:
    """What makes experts: spread over `ep_size` ranks, or (0) side by side in one process."""
    if not ep_size:
        return Experts
    from moe_dist.parallel.experts import ExpertParallel

    return partial(ExpertParallel, ep_size=ep_size)


def spread(name: str, ep_size: int) -> nn.Module:
    return build(name, experts_class(ep_size))


@pytest.mark.parametrize("zero", [0, 1])
def test_unclipped_means_unclipped(worlds: dict[int, World], zero: int) -> None:
    """DeepSpeed clips at 1 where its configuration says nothing."""
    case = Case("icl", "sgd", loss_factor=10)
    reference = train_alone(case, STEPS)
    assert largest_difference(reference, [train_alone(replace(case, clip_norm=1.0), STEPS)]) > 1e-2
    assert largest_difference(reference, worlds[2].run(train_rank, replace(case, expert=2, zero=zero), STEPS)) < 1e-6


def test_clips_by_the_norm_of_all_ranks(worlds: dict[int, World]) -> None:
    """Without ZeRO, DeepSpeed averages the ranks' norms, which unequal experts make unequal."""
    case = Case("icl", "sgd", clip_norm=0.05)
    reference = train_alone(case, STEPS)
    assert largest_difference(reference, [train_alone(replace(case, clip_norm=0.06), STEPS)]) > 1e-4
    assert largest_difference(reference, worlds[3].run(train_rank, replace(case, expert=3), STEPS)) < 1e-6


def test_zero_2_reduces_unequal_experts_in_one_bucket(worlds: dict[int, World]) -> None:
    """Buckets smaller than the network fill at different moments on ranks whose experts differ: a hang."""
    case = Case("dfcp5", "adam", accumulate=3)
    ranks = worlds[3].run(train_rank, replace(case, expert=3, zero=2), STEPS)
    assert largest_difference(train_alone(case, STEPS), ranks) < 1e-6
    for bucket, parameters in worlds[3].run(bucket_and_parameters):
        assert bucket >= parameters


def bucket_and_parameters(rank: int, ranks: int) -> tuple[int, int]:
    from moe_dist.engine.deepspeed import deepspeed_config

    network = spread("dfcp5", 3)
    config = deepspeed_config(network, ParallelConfig(zero=2), torch.device("cpu"))
    return config["zero_optimization"]["reduce_bucket_size"], sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("zero", [0, 1, 2])
def test_a_loss_may_leave_the_experts_out_on_some_ranks(worlds: dict[int, World], zero: int) -> None:
    """The backward exchanges are collective; a rank that skipped them would leave the others waiting."""
    reference = gate_loss_on_second_half(0, 0, 0)
    assert largest_difference(reference, worlds[2].run(gate_loss_on_second_half, zero)) < 1e-6


def gate_loss_on_second_half(rank: int, ranks: int, zero: int) -> dict[str, Tensor]:
    """Samples of the first half of a global batch train the mixture, those of the second half the gate alone."""
    network = spread("dfcp5", ranks)
    assert isinstance(network, LeNetMixture)
    engine = engine_of(network, {"": ADAM}, ranks, zero)
    for step in STEPS:
        images, labels, weight = share(step, Case(), rank, max(ranks, 1))
        gate = network.gate(images.flatten(1)).log_softmax(1)
        mixture = -network(images)[torch.arange(len(labels)), labels]
        half = GLOBAL_BATCH // 2
        if ranks:
            losses = mixture if rank == 0 else -gate[:, 0]
        else:
            losses = torch.cat([mixture[:half], -gate[half:, 0]])
        engine.backward((weight * losses).sum())
        engine.step()
    engine.close()
    return network.state_dict()


def test_an_expert_may_ignore_its_input(worlds: dict[int, World]) -> None:
    """Its rank must still take part in sending the input's gradient back."""
    reference = train_with_constant_expert(0, 0)
    assert largest_difference(reference, worlds[2].run(train_with_constant_expert)) < 1e-6


class Constant(nn.Module):
    """The same learned logits for every sample."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(CLASSES))

    def forward(self, features: Tensor) -> Tensor:
        return self.logits.expand(features.shape[0], CLASSES)


def train_with_constant_expert(rank: int, ranks: int) -> dict[str, Tensor]:
    """A trained trunk under one linear and one constant expert."""
    torch.manual_seed(0)
    network = nn.Module()
    network.trunk = nn.Linear(SIDE * SIDE, 5)
    network.experts = experts_class(ranks)([Constant, partial(nn.Linear, 5, CLASSES)], [1.0, 1.0], 0)
    engine = engine_of(network, {"": SGD}, ranks)
    for step in STEPS:
        images, labels, weight = share(step, Case(), rank, max(ranks, 1))
        logits = sum(network.experts(network.trunk(images.flatten(1))))
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        engine.backward((weight * losses).sum())
        engine.step()
    engine.close()
    return network.state_dict()


@pytest.mark.parametrize(("name", "dense"), [("dfcp5", "gate."), ("gmm", "head.")])
def test_a_rank_may_hold_frozen_experts_only(worlds: dict[int, World], name: str, dense: str) -> None:
    """On trained inputs (the gate's weights) and on frozen ones (trunk and gate are, the head behind is not)."""
    reference = train_one_expert(0, 0, name, dense, 0)
    assert largest_difference(reference, worlds[3].run(train_one_expert, name, dense, 0)) < 1e-6


def train_one_expert(rank: int, ranks: int, name: str, dense: str, zero: int) -> dict[str, Tensor]:
    """Train a dense part and expert 0."""
    network = spread(name, ranks)
    engine = engine_of(network, {dense: SGD, "experts.members.0.": ADAM}, ranks, zero)
    take_steps(engine, Case(), STEPS, rank, max(ranks, 1))
    engine.close()
    return network.state_dict()


@pytest.mark.parametrize("zero", [1, 2])
def test_zero_refuses_a_rank_of_frozen_experts(worlds: dict[int, World], zero: int) -> None:
    """On all ranks, so that none waits for the one that refused."""
    for refusal in worlds[3].run(refusal_of_frozen_experts, zero):
        assert refusal == (
            f"parallel.zero = {zero}: in this stage some rank holds only frozen experts, and ZeRO needs an expert to "
            f"train on every rank; set parallel.zero to 0, or parallel.expert lower"
        )


def refusal_of_frozen_experts(rank: int, ranks: int, zero: int) -> str:
    with pytest.raises(UserError) as refusal:
        train_one_expert(rank, ranks, "dfcp5", "gate.", zero)
    return str(refusal.value)


def test_refuses_a_rank_with_nothing_to_train(worlds: dict[int, World]) -> None:
    for refusal in worlds[2].run(refusal_of_idle_rank):
        assert refusal == "parallel.expert: in this stage some rank has nothing to train; set parallel.expert lower"


def refusal_of_idle_rank(rank: int, ranks: int) -> str:
    with pytest.raises(UserError) as refusal:
        engine_of(spread("dfcp5", 2), {"experts.members.0.": ADAM}, ranks)
    return str(refusal.value)


def test_refuses_groups_that_do_not_divide_the_ranks(worlds: dict[int, World]) -> None:
    for refusal in worlds[3].run(refusal_of_two_in_three):
        assert refusal == "parallel.expert = 2 does not divide the number of ranks, 3"


def refusal_of_two_in_three(rank: int, ranks: int) -> str:
    with pytest.raises(UserError) as refusal:
        spread("dfcp5", 2)
    return str(refusal.value)


def test_refuses_more_ranks_than_experts(worlds: dict[int, World]) -> None:
    for refusal in worlds[4].run(refusal_of_four_for_three):
        assert "4 is more ranks than the method has experts (3)" in refusal


def refusal_of_four_for_three(rank: int, ranks: int) -> str:
    with pytest.raises(UserError) as refusal:
        spread("icl", 4)
    return str(refusal.value)


def test_refuses_parameters_without_dimensions(worlds: dict[int, World]) -> None:
    for refusal in worlds[1].run(refusal_of_scalar):
        assert "give ['temperature'] the shape [1]" in refusal


def refusal_of_scalar(rank: int, ranks: int) -> str:
    network = build("dfcp5", Experts)
    network.temperature = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(AssertionError) as refusal:
        engine_of(network, {"": ADAM}, ranks)
    return str(refusal.value)


@pytest.mark.parametrize("sizes", [[5, 1, 0], [4, 4, 4]], ids=str)
def test_evaluation_batches_may_be_uneven(worlds: dict[int, World], sizes: list[int]) -> None:
    """Down to a rank without samples; only their number must be the same on all ranks."""
    images = torch.rand(sum(sizes), 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    for name in ("dfcp5", "icl"):
        with torch.no_grad():
            expected = build(name, Experts)(images).split(sizes)
        for mine, reference in zip(worlds[3].run(evaluate, name, sizes), expected):
            torch.testing.assert_close(mine, reference, atol=1e-6, rtol=0)


def evaluate(rank: int, ranks: int, name: str, sizes: list[int]) -> Tensor:
    images = torch.rand(sum(sizes), 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).split(sizes)[rank]
    network = spread(name, ranks)
    engine_of(network, {"": ADAM}, ranks).close()
    with torch.no_grad():
        return network(images)


@pytest.mark.parametrize(("first", "second"), [(2, 0), (0, 2), (1, 2)])
def test_stages_follow_each_other_on_one_network(worlds: dict[int, World], first: int, second: int) -> None:
    """A closed engine leaves no hook that would reduce or clear the next stage's gradients."""
    reference = two_stages(0, 0, 0, 0)
    assert largest_difference(reference, worlds[2].run(two_stages, first, second)) < 1e-6


def two_stages(rank: int, ranks: int, first: int, second: int) -> dict[str, Tensor]:
    network = spread("icl", ranks)
    for optimisers, zero in (({"": ADAM}, first), ({"experts.": SGD}, second)):
        engine = engine_of(network, optimisers, ranks, zero)
        take_steps(engine, Case(), range(5), rank, max(ranks, 1))
        engine.close()
    return network.state_dict()


def test_experts_of_unequal_types_under_autocast(worlds: dict[int, World]) -> None:
    """bfloat16 logits beside float32 features: both come back in their own type, as in one process."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = mixed_types(Experts)
    for outputs in worlds[3].run(mixed_types_over_ranks):
        for mine, reference in zip(outputs, expected):
            assert [tensor.dtype for tensor in mine] == [torch.bfloat16, torch.float32]
            torch.testing.assert_close(mine, reference, atol=1e-2, rtol=1e-2)


class TwoTypes(nn.Module):
    """(logits, which autocast makes bfloat16, and their softmax in float32)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, CLASSES)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.linear(features)
        return logits, logits.float().softmax(1)


def mixed_types(make_experts: Any) -> Any:
    experts = make_experts([TwoTypes] * 4, [1.0] * 4, 0)
    if hasattr(experts, "set_deepspeed_parallelism"):
        experts.set_deepspeed_parallelism()
    return experts(torch.linspace(-1, 1, 15).view(3, 5))


def mixed_types_over_ranks(rank: int, ranks: int) -> Any:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return mixed_types(experts_class(ranks))


def test_deepspeed_has_the_private_things_that_are_used(worlds: dict[int, World]) -> None:
    """Where this fails, DeepSpeed has changed them: look at moe_dist/parallel/ and moe_dist/engine/deepspeed.py."""
    assert worlds[1].run(what_deepspeed_lacks) == [[]]


def what_deepspeed_lacks(rank: int, ranks: int) -> list[str]:
    """The names that parallel/ uses and DeepSpeed does not document, as far as they are not there."""
    from moe_dist.parallel.runtime import deepspeed, start_deepspeed
    from moe_dist.parallel.spread import SpreadExperts, groups

    start_deepspeed(torch.device("cpu"))
    layer = deepspeed.moe.layer.MoE(4, nn.Identity(), num_experts=2, ep_size=1, k=1)
    layer.set_deepspeed_parallelism(False)  # as DeepSpeed's engine calls it
    assert isinstance(SpreadExperts(2, 1), deepspeed.moe.layer.MoE)
    expert, dense = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    expert.allreduce = False  # type: ignore[attr-defined]
    assert deepspeed.moe.utils.is_moe_param(expert) and not deepspeed.moe.utils.is_moe_param(dense)
    used: list[tuple[Any, str]] = [
        (groups, "_create_expert_and_data_parallel"),
        (groups, "_get_expert_parallel_group"),
        (groups, "_get_expert_data_parallel_group"),
        (layer, "num_experts"),
        *((layer.deepspeed_moe, name) for name in ("ep_group", "gate", "experts")),
        *((layer.deepspeed_moe.gate, name) for name in ("wg", "ep_group", "drop_tokens")),
        (layer.deepspeed_moe.experts, "deepspeed_experts"),
    ]
    return [f"{owner}.{name}" for owner, name in used if not hasattr(owner, name)]


def test_starts_without_a_compiler() -> None:
    """DeepSpeed compiles an operator in init_distributed that only inference uses."""
    program = (
        "import torch; from moe_dist.parallel.runtime import start_deepspeed;"
        "torch.distributed.init_process_group('gloo', init_method='tcp://127.0.0.1:0', rank=0, world_size=1);"
        "start_deepspeed(torch.device('cpu')); print('started')"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("CC", "CXX")}
    finished = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | {"PATH": "/nonexistent", "TORCH_EXTENSIONS_DIR": "/nonexistent"},
        capture_output=True,
        text=True,
    )
    assert finished.stdout == "started\n", finished.stderr


def test_engine_sums_the_gradients_of_micro_batches(worlds: dict[int, World]) -> None:
    """Loss weights are relative to the whole batch already; DeepSpeed would divide by the number of micro-batches."""
    whole, parts = Case("gmm", "sgd"), Case("gmm", "sgd", accumulate=3)
    reference = train_alone(whole, STEPS)
    assert largest_difference(reference, [train_alone(parts, STEPS)]) < 1e-6
    assert largest_difference(reference, worlds[2].run(train_rank, replace(parts, expert=2), STEPS)) < 1e-6
    assert worlds[2].run(updates_made) == [[False, False, True, False, False, True]] * 2


def updates_made(rank: int, ranks: int) -> list[bool]:
    engine = engine_of_case(Case("icl", accumulate=3), ranks)
    assert isinstance(engine.network, BranchesOnTrunk)
    updates = []
    for _ in range(6):
        engine.backward(engine.network(torch.ones(1, 1, SIDE, SIDE)).sum())
        updates.append(engine.step())
    engine.close()
    return updates
