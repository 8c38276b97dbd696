"""methods/dfcp/pseudo_labels.py: the threshold against brute force, the rest on examples worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_dist.errors import UserError
from moe_dist.methods.dfcp.pseudo_labels import (
    f1_threshold,
    held_out_pairs,
    label_clusters,
    merge_clusters,
    nearest_trusted,
    pseudo_labels,
    require_every_class,
)
from tests.reference import dfcp as reference

# Distances on a coarse grid, so that ties between same and different pairs are common.
PAIRS = st.lists(st.tuples(st.integers(0, 8).map(lambda n: n / 4), st.booleans()), min_size=1, max_size=40).filter(
    lambda pairs: any(same for _, same in pairs)
)


@given(PAIRS)
def test_threshold_is_the_best_of_all(pairs):
    distances, same = (np.array(column) for column in zip(*pairs, strict=True))
    found = f1_threshold(distances, same)
    scores = {tau: reference.f1_scores(distances, same, tau) for tau in distances}
    best = max(f1 for f1, _, _ in scores.values())
    assert found.f1 == pytest.approx(best, rel=1e-12)
    assert found.tau == min(tau for tau, (f1, _, _) in scores.items() if math.isclose(f1, best, rel_tol=1e-12))
    assert (found.f1, found.precision, found.recall) == pytest.approx(scores[found.tau], rel=1e-12)


def test_threshold_by_hand():
    """Sorted: .1 same, .2 same, .3 different, .4 same, .9 different.

    Up to .2: 2 of 2 called are right, 2 of 3 found: F1 = 4/5. Up to .4: 3 of 4, 3 of 3: F1 = 6/7, the highest.
    """
    found = f1_threshold(np.array([0.4, 0.9, 0.1, 0.3, 0.2]), np.array([True, False, True, False, True]))
    assert (found.tau, found.f1, found.precision, found.recall) == pytest.approx((0.4, 6 / 7, 3 / 4, 1))


def test_threshold_needs_a_same_pair():
    with pytest.raises(UserError, match="no two held-out trusted images share a class"):
        f1_threshold(np.array([0.1, 0.2]), np.array([False, False]))


def test_held_out_pairs_leave_out_pairs_of_one_group():
    """Held out: 0 (class 0, track 0). Others: 1 (class 0, track 0: same track), 2 (class 0, track 1), 3 (class 1)."""
    embeddings = np.array([[0.0, 0], [1, 0], [0, 3], [4, 3]])
    held_out = np.array([True, False, False, False])
    distances, same = held_out_pairs(embeddings, np.array([0, 0, 0, 1]), np.array([0, 0, 1, 2]), held_out)
    np.testing.assert_allclose(distances, [3, 5])
    assert same.tolist() == [True, False]


def test_held_out_pairs_without_groups_are_all_pairs():
    embeddings = np.array([[0.0], [1], [3]])
    distances, same = held_out_pairs(
        embeddings, np.array([0, 0, 1]), np.full(3, -1), held_out=np.array([False, False, True])
    )
    np.testing.assert_allclose(distances, [3, 2])
    assert same.tolist() == [False, False]


def test_nearest_trusted_follows_a_loop():
    random = np.random.default_rng(0)
    embeddings, trusted, labels = random.normal(size=(50, 4)), random.normal(size=(9, 4)), random.integers(0, 3, 9)
    found, distances = nearest_trusted(embeddings, trusted, labels)
    for embedding, label, distance in zip(embeddings, found, distances, strict=True):
        expected, nearest = min((math.dist(embedding, other), number) for number, other in enumerate(trusted))
        assert distance == pytest.approx(expected, rel=1e-9) and label == labels[nearest]


def test_pseudo_labels_end_at_the_threshold():
    labels = pseudo_labels(np.array([4, 5, 6]), np.array([0.2, 0.5, 0.6]), tau=0.5)
    assert labels.tolist() == [4, 5, -1]


# cluster:  0 0 0 0    1  1     2 2      3
# pseudo:   1 1 2 -1   2  1     2 2      -1
CLUSTERS = np.array([0, 0, 0, 0, 1, 1, 2, 2, 3])
PSEUDO = np.array([1, 1, 2, -1, 2, 1, 2, 2, -1])


def test_clusters_take_their_majority_and_the_smallest_class_on_a_tie():
    assert label_clusters(CLUSTERS, PSEUDO).tolist() == [1, 1, 2, -1]


def test_clusters_of_one_class_merge_and_outliers_leave():
    assert merge_clusters(CLUSTERS, PSEUDO).tolist() == [1, 1, 1, -1, 1, 1, 2, 2, -1]


def test_a_sample_without_cluster_has_no_class():
    assert merge_clusters(np.array([0, -1]), np.array([3, 3])).tolist() == [3, -1]


def test_clusters_of_nothing_but_outliers_have_no_class():
    assert merge_clusters(np.array([0, 1]), np.array([-1, -1])).tolist() == [-1, -1]


def test_a_class_without_cluster_is_named():
    with pytest.raises(UserError, match=r"class stop, bend: .*raise clusters\.count"):
        require_every_class(np.array([1, 1, -1]), ["stop", "yield", "bend"])
    require_every_class(np.array([0, 1]), ["stop", "yield"])
