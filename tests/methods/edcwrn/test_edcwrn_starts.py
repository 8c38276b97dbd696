"""The optima of k-means that a clustering can begin with, and how far apart its clusters lie."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import pairwise_distances_argmin_min

from moe_dist.methods.edcwrn.starts import kmeans_optima, share_within


def pairs_far_apart() -> np.ndarray:
    """Five groups of 20 samples; 4 centres have to join two of them, and which ones is up to where k-means starts."""
    corners = np.array([[0, 0], [0, 10], [10, 0], [10, 10], [5, 5]], float)
    return (corners[:, None] + np.random.default_rng(0).normal(0, 0.3, (5, 20, 2))).reshape(-1, 2)


def test_optima_differ_and_the_lowest_sum_of_squares_is_first() -> None:
    codes = pairs_far_apart()
    found = kmeans_optima(codes, 4, 30, seed=0, most=6)
    assert 3 <= len(found) <= 6 and found.shape[1:] == (4, 2)
    nearest, distances = zip(*(pairwise_distances_argmin_min(codes, centres) for centres in found))
    sums = [float(np.square(each).sum()) for each in distances]
    assert sums == sorted(sums)
    parts = {frozenset(frozenset(np.flatnonzero(labels == own)) for own in range(4)) for labels in nearest}
    assert len(parts) == len(found)


def test_no_more_than_asked_for_and_the_same_again() -> None:
    codes = pairs_far_apart()
    found = kmeans_optima(codes, 4, 30, seed=0, most=2)
    assert np.array_equal(found, kmeans_optima(codes, 4, 30, seed=0, most=2)) and len(found) == 2


def test_one_optimum_where_all_runs_agree() -> None:
    assert len(kmeans_optima(pairs_far_apart(), 5, 6, seed=1, most=4)) == 1


def test_the_share_within_clusters_by_hand() -> None:
    """Two clusters whose samples are 1 from their mean, whose means are 5 from the mean of all: 1 / (1 + 25)."""
    codes = np.array([[-1.0], [1.0], [9.0], [11.0]])
    assert share_within(codes, np.array([0, 0, 1, 1]), 2) == pytest.approx(1 / 26)
    assert share_within(codes, np.array([0, 0, 1, 1]), 3) == math.inf
    assert share_within(np.ones((4, 1)), np.array([0, 0, 1, 1]), 2) == math.inf
