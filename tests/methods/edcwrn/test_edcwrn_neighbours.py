"""Nearest neighbours of codes: among all, within a batch, and of new samples."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch

from moe_dist.errors import UserError
from moe_dist.methods.edcwrn import neighbours
from tests.reference import edcwrn as slow


@pytest.fixture
def codes() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(60, 5)).astype(np.float32)


def test_neighbours_among_all_are_the_nearest_others(codes: np.ndarray) -> None:
    assert neighbours.nearest_of_all(codes, 3).tolist() == slow.nearest(codes, 3)


def test_a_duplicate_is_a_neighbour_and_the_code_itself_is_not() -> None:
    codes = np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [5.0, 5.0], [6.0, 5.0]], np.float32)
    found = neighbours.nearest_of_all(codes, 1)[:, 0]
    assert all(number != own for own, number in enumerate(found))
    assert set(found[:3]) <= {0, 1, 2} and found[3:].tolist() == [4, 3]


def test_neighbours_in_a_batch_are_the_nearest_valid_ones(codes: np.ndarray) -> None:
    valid = torch.ones(60, dtype=torch.bool)
    valid[40:] = False
    found = neighbours.nearest_in_batch(torch.from_numpy(codes), valid, 2)
    assert found[:40].tolist() == slow.nearest(codes[:40], 2)


def test_a_sample_alone_in_its_batch_is_its_own_neighbour() -> None:
    valid = torch.tensor([True, False, False])
    assert neighbours.nearest_in_batch(torch.randn(3, 2), valid, 2)[0].tolist() == [0, 0]
    assert neighbours.nearest_in_batch(torch.randn(1, 2), valid[:1], 2).tolist() == [[0, 0]]


def test_new_codes_find_known_ones_by_blocks(codes: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    new, known = torch.from_numpy(codes[:10]), torch.from_numpy(codes[10:])
    whole = neighbours.nearest_known(new, known, 2)
    monkeypatch.setattr(neighbours, "DISTANCES_AT_ONCE", 120)
    assert torch.equal(neighbours.nearest_known(new, known, 2), whole)
    expected = [sorted(range(50), key=lambda row: float(((code - known[row]) ** 2).sum()))[:2] for code in new]
    assert whole.tolist() == expected


def test_near_codes_far_from_the_origin_are_told_apart() -> None:
    """Distances of 0.5 and 1 among codes of length 10,000: a matrix product of float32 cannot tell them."""
    known = torch.tensor([[1e4 + step, 0.0] for step in range(40)])
    assert neighbours.nearest_known(known + 0.25, known, 2).tolist() == [[k, k + 1] for k in range(39)] + [[39, 38]]


def test_more_neighbours_than_samples_are_refused() -> None:
    with pytest.raises(UserError, match=r"neighbours.count = 3: 3 samples have 2 others"):
        neighbours.nearest_of_all(np.zeros((3, 2), np.float32), 3)


@pytest.mark.parametrize("width", [10, 40])
def test_no_matrix_of_all_distances_is_made(width: int) -> None:
    """6,000 codes: all their distances would take 288 MB."""
    codes = np.random.default_rng(0).normal(size=(6000, width)).astype(np.float32)
    tracemalloc.start()
    neighbours.nearest_of_all(codes, 2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6
