"""Shares of the gradient, computed by hand; over ranks, with ZeRO and micro-batches in test_distributed_icl.py."""

from __future__ import annotations

import pytest
import torch
from small_engine import engine_of, line

from moe_dist.train.session import GradientShares

CPU = torch.device("cpu")


def test_an_epochs_shares_are_those_of_its_summed_sizes() -> None:
    """Sizes (1, 3) and (2, 2) add up to (3, 5) of 8; the next epoch starts from zero."""
    shares = GradientShares(rank=0, ranks=1)
    shares.add(torch.tensor([1.0, 3.0]))
    shares.add(torch.tensor([2.0, 2.0]))
    assert shares.take() == {"gradient_share/expert_0": 0.375, "gradient_share/expert_1": 0.625}
    shares.add(torch.tensor([1.0, 1.0]))
    assert shares.take() == {"gradient_share/expert_0": 0.5, "gradient_share/expert_1": 0.5}


@pytest.mark.parametrize("sizes", [[], [0.0, 0.0]], ids=["compares none", "trains none"])
def test_where_no_expert_has_a_gradient_there_are_no_shares(sizes: list[float]) -> None:
    shares = GradientShares(rank=0, ranks=1)
    shares.add(torch.tensor(sizes))
    assert shares.take() == {}


def test_a_state_is_taken_over_by_one_rank() -> None:
    """The state is the sum over ranks: if every rank loaded it, it would count twice."""
    first, second = (GradientShares(rank, ranks=1) for rank in (0, 1))
    for shares in (first, second):
        shares.load([3.0, 1.0], CPU)
        shares.add(torch.tensor([1.0, 1.0]))
    assert first.take() == {"gradient_share/expert_0": 4 / 6, "gradient_share/expert_1": 2 / 6}
    assert second.take() == {"gradient_share/expert_0": 0.5, "gradient_share/expert_1": 0.5}


def test_the_size_of_a_gradient_is_its_mean_absolute_value() -> None:
    """The gradient of w.x by w is x = (1, -3), of mean absolute value 2; an expert on another rank has none here."""
    engine = engine_of(line(1.0, 1.0))
    engine.backward(engine.network(torch.tensor([[1.0, -3.0]])).sum())
    (weight,) = engine.network.parameters()
    assert engine.gradient_sizes([None, weight]).tolist() == [0.0, 2.0]


def test_what_is_not_trained_has_size_zero() -> None:
    engine = engine_of(line(1.0))
    (weight,) = engine.network.parameters()
    assert engine.gradient_sizes([weight]).tolist() == [0.0] and engine.gradient_sizes([]).tolist() == []
