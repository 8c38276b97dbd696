"""Placement of experts: hand-worked cases, properties, and the best placement found by trying all."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_dist.errors import UserError
from moe_dist.parallel.placement import exchanged_bytes, loads, place


def test_dearest_first_to_the_least_loaded() -> None:
    """Costs 7 5 4 3 3 on two ranks: 7 | 5, then 4 joins 5 (9), 3 joins 7 (10), the last 3 joins 9 (12)."""
    assert place([3.0, 7.0, 5.0, 4.0, 3.0], 2) == [[0, 1], [2, 3, 4]]


def test_equal_costs_are_dealt_in_turn() -> None:
    assert place([1.0] * 7, 3) == [[0, 3, 6], [1, 4], [2, 5]]


def test_free_experts_leave_no_rank_empty() -> None:
    assert place([0.0, 0.0, 9.0], 3) == [[2], [0], [1]]


def test_refuses_more_ranks_than_experts() -> None:
    with pytest.raises(UserError, match=r"parallel\.expert = 4 is more ranks than the method has experts \(3\)"):
        place([1.0, 1.0, 1.0], 4)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.data())
def test_every_expert_once_and_no_rank_empty(costs: list[float], data: st.DataObject) -> None:
    ranks = data.draw(st.integers(1, len(costs)))
    placement = place(costs, ranks)
    assert sorted(expert for experts in placement for expert in experts) == list(range(len(costs)))
    assert all(experts and experts == sorted(experts) for experts in placement)


@given(st.lists(st.integers(1, 20), min_size=3, max_size=7))
def test_within_graham_s_bound_of_the_best(costs: list[int]) -> None:
    """Graham 1969: longest processing time first is at most 4/3 - 1/(3 ranks) of the optimum."""
    ranks = 3
    best = min(
        max(sum(cost for cost, at in zip(costs, places) if at == rank) for rank in range(ranks))
        for places in product(range(ranks), repeat=len(costs))
    )
    worst = max(sum(costs[expert] for expert in experts) for experts in place([float(cost) for cost in costs], ranks))
    assert worst <= (4 / 3 - 1 / (3 * ranks)) * best + 1e-9


def test_loads_are_shares_of_all_costs() -> None:
    assert loads([1.0, 3.0, 4.0], [[0, 1], [2]]) == [0.5, 0.5]


def test_bytes_of_every_output() -> None:
    """6 samples on 2 ranks: inputs 6 x 10 floats to the other rank; 3 samples' outputs of 2 + 4 floats to each: 36.

    Forward 60 + 36 floats, backward 36 for the outputs, and 60 more where the inputs have a gradient.
    """
    sizes = {"samples": 6, "input_elements": 10, "output_elements": [2, 4]}
    assert exchanged_bytes(2, **sizes, input_gradient=False) == 4 * (60 + 2 * 18)
    assert exchanged_bytes(2, **sizes, input_gradient=True) == 4 * (120 + 2 * 18)


def test_one_rank_exchanges_nothing() -> None:
    assert exchanged_bytes(1, 6, 10, [2, 4], input_gradient=True) == 0
