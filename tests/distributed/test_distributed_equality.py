"""Training over ranks equals training in one process: parameters within 1e-6 after ten steps."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product

import pytest
from torch import Tensor
from training import Case, largest_difference, train_alone, train_rank
from worlds import World

STEPS = range(10)

FAST = [
    (2, Case("dfcp5", "sgd", expert=2, zero=0, clip_norm=0.1)),
    (2, Case("dfcp43", "adam", expert=2, zero=1, accumulate=3)),
    (2, Case("icl", "mixed", expert=2, zero=2, accumulate=3, clip_norm=0.1, uneven=True)),
    (2, Case("gmm", "adam", expert=1, zero=0, uneven=True)),
    (2, Case("dispatched43", "adam", expert=2, zero=1, accumulate=3, uneven=True)),
    (3, Case("dispatched5", "mixed", expert=3, zero=0, clip_norm=0.1, uneven=True)),
    (4, Case("dispatched5", "sgd", expert=2, zero=0)),
    (2, Case("dispatched5", "adam", expert=1, zero=0)),
    (3, Case("dfcp43", "mixed", expert=3, zero=0, accumulate=3, clip_norm=0.1, uneven=True)),
    (3, Case("icl", "sgd", expert=3, zero=1)),
    (3, Case("gmm", "mixed", expert=3, zero=1, clip_norm=0.1)),
    (4, Case("dfcp5", "mixed", expert=2, zero=1, accumulate=3, clip_norm=0.1)),
    (4, Case("icl", "adam", expert=2, zero=0, clip_norm=0.1, uneven=True)),
    (4, Case("gmm", "sgd", expert=4, zero=2, uneven=True)),
    # Batch statistics of spread experts are of the whole global batch, as in one process, where every rank has experts.
    (2, Case("gmm_module", "sgd", expert=2, zero=0, clip_norm=0.1)),
    (2, Case("gmm_module", "adam", expert=2, zero=1)),
    (3, Case("gmm_module", "mixed", expert=3, zero=0)),
]

ALL = [
    (ranks, Case(network, optimisers, expert, zero, accumulate, clip_norm, uneven=accumulate == 3))
    for ranks, network, optimisers, zero, accumulate, clip_norm in product(
        (2, 3, 4), ("dfcp5", "dfcp43", "icl", "gmm"), ("sgd", "adam", "mixed"), (0, 1, 2), (1, 3), (None, 0.1)
    )
    for expert in sorted({1, 2, ranks})
    if ranks % expert == 0 and not (network == "icl" and expert == 4)
]


@cache
def in_one_process(case: Case, steps: range) -> dict[str, Tensor]:
    """The parameters after `steps` in one process, which many cases are compared with."""
    return train_alone(case, steps)


def check_equal_to_one_process(worlds: dict[int, World], ranks: int, case: Case) -> None:
    alone = replace(case, expert=1, zero=0)
    reference, start = in_one_process(alone, STEPS), in_one_process(alone, range(0))
    assert largest_difference(reference, [start]) > 1e-3, "a training that stands still would compare equal"
    outcomes = worlds[ranks].run(train_rank, case, STEPS)
    assert largest_difference(reference, outcomes) < 1e-6


@pytest.mark.parametrize(("ranks", "case"), FAST, ids=str)
def test_representative_cases(worlds: dict[int, World], ranks: int, case: Case) -> None:
    check_equal_to_one_process(worlds, ranks, case)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "case"), ALL, ids=str)
def test_every_case(worlds: dict[int, World], ranks: int, case: Case) -> None:
    check_equal_to_one_process(worlds, ranks, case)


def test_one_rank_of_deepspeed_equals_plain_torch(worlds: dict[int, World]) -> None:
    case = Case("icl", "mixed", zero=1, accumulate=3, clip_norm=0.1)
    assert largest_difference(train_alone(case, STEPS), worlds[1].run(train_rank, case, STEPS)) < 1e-6
