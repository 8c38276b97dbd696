"""methods/dfcp/clusters.py: k-means and the index against references, stage 2 on a layout worked out by hand."""

import math

import numpy as np
import pytest
from sklearn.metrics import davies_bouldin_score

from moe_dist.errors import UserError
from moe_dist.methods.dfcp.clusters import (
    Clustering,
    davies_bouldin,
    kmeans,
    purity,
    reach,
    reference_clusters,
    scan_radii,
)
from tests.reference import dfcp as reference


def blobs(seed: int, samples: int = 120, count: int = 6, dimensions: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Features [samples, dimensions] around `count` random centres, and their centre's number."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, count, samples)
    return random.normal(0, 3, (count, dimensions))[labels] + random.normal(0, 1, (samples, dimensions)), labels


def test_kmeans_finds_separate_blobs_and_their_objective():
    features = np.array([[0.0, 0], [0, 2], [10, 0], [10, 4]])
    found = kmeans(features, 2, seed=0)
    left, right = found.labels[0], found.labels[2]
    assert found.labels.tolist() == [left, left, right, right] and left != right
    np.testing.assert_allclose(found.centroids[[left, right]], [[0, 1], [10, 2]])
    # Distances to the centroids are 1, 1, 2, 2; J = 1 + 1 + 4 + 4.
    assert found.objective == pytest.approx(10)


def test_kmeans_is_fixed_by_its_seed():
    features, _ = blobs(1)
    np.testing.assert_array_equal(kmeans(features, 5, seed=7).labels, kmeans(features, 5, seed=7).labels)


@pytest.mark.parametrize("count", [-1, 0, 1, 5])
def test_kmeans_refuses_impossible_counts(count):
    with pytest.raises(UserError, match=rf"clusters\.count = {count}: choose a number from 2 to the 4 samples"):
        kmeans(np.eye(4), count, seed=0)


def test_kmeans_refuses_fewer_distinct_features_than_clusters():
    features = np.repeat(np.eye(2), 5, axis=0)
    with pytest.raises(UserError, match=r"the 10 samples hold only 2 distinct features"):
        kmeans(features, 3, seed=0)


def test_davies_bouldin_by_hand():
    """Clusters {0, 2} and {10, 14}: mu = 1 and 12, d = 1 and 2; both ratios are (1 + 2) / 11."""
    features = np.array([[0.0], [2], [10], [14]])
    assert davies_bouldin(features, np.array([0, 0, 1, 1])) == pytest.approx(3 / 11)


@pytest.mark.parametrize("seed", range(5))
def test_davies_bouldin_follows_eq_9_and_scikit_learn(seed):
    features, labels = blobs(seed)
    ours = davies_bouldin(features, labels)
    assert ours == pytest.approx(reference.davies_bouldin(features, labels), rel=1e-12)
    assert ours == pytest.approx(davies_bouldin_score(features, labels), rel=1e-9)


def test_davies_bouldin_leaves_out_samples_without_cluster_and_unused_numbers():
    features, labels = blobs(2)
    with_outliers = np.where(np.arange(len(labels)) % 5 == 0, -1, labels * 10)
    kept = with_outliers >= 0
    assert davies_bouldin(features, with_outliers) == pytest.approx(
        reference.davies_bouldin(features[kept], labels[kept]), rel=1e-12
    )


def test_davies_bouldin_of_coinciding_centroids_is_infinite():
    assert davies_bouldin(np.array([[-1.0], [1], [-2], [2]]), np.array([0, 0, 1, 1])) == math.inf


def test_davies_bouldin_of_float32_features_far_from_the_origin():
    features, labels = blobs(3)
    far = (features + 1000).astype(np.float32)
    assert davies_bouldin(far, labels) == pytest.approx(
        reference.davies_bouldin(far.astype(np.float64), labels), rel=1e-6
    )


# Six clusters on a line, and whom each points to (its three nearest):
#   number    0        1        2        3        4        5
#   centroid  0        1        3        6        10       15
#   points to 1 2 3    0 2 3    1 0 3    2 4 1    3 5 2    4 3 2
# Pointed to by: 0 <- 1 2;  1 <- 0 2 3;  2 <- 0 1 3 4 5;  3 <- 0 1 2 4 5;  4 <- 3 5;  5 <- 4.
# So 1, 2 and 3 are references (at least three neighbours), 0, 4 and 5 are not.
CENTROIDS = np.array([[0.0], [1], [3], [6], [10], [15]])

# (position, stage-1 cluster, cluster after stage 2 with radius 2)
LAYOUT = [
    (0.5, 0, 1),  # 0 neighbours reference 1, which is 0.5 away
    (-2.0, 0, 0),  # the nearest reference, 1, is 3 away: keeps its cluster
    (1.5, 1, 1),  # a reference's own sample: 0.5 from 1, 1.5 from 2
    (2.2, 1, 2),  # 1.2 from its own centroid, 0.8 from that of 2: the nearest counts
    (4.5, 2, 2),  # 1.5 from 2 and from 3: the first
    (1.5, 4, 2),  # 0.5 from 1, but 4 is no neighbour of 1; 1.5 from 2
    (5.0, 4, 3),  # 2 from 2, 1 from 3
    (8.0, 3, 3),  # exactly 2 from 3: within
    (9.0, 4, 4),  # 3 from 3: keeps its cluster
    (15.0, 5, 5),  # on its own centroid, which is no reference
]
FEATURES = np.array([[position] for position, _, _ in LAYOUT])
STAGE_1 = Clustering(np.array([before for _, before, _ in LAYOUT]), CENTROIDS, objective=0.0)


def test_reference_clusters_of_the_layout():
    references = {cluster: list(around) for cluster, around in reference_clusters(CENTROIDS).items()}
    assert references == {1: [0, 2, 3], 2: [0, 1, 3, 4, 5], 3: [0, 1, 2, 4, 5]}


def test_all_clusters_are_references_where_none_has_three_neighbours():
    references = {cluster: list(around) for cluster, around in reference_clusters(CENTROIDS[:3]).items()}
    assert references == {0: [1, 2], 1: [0, 2], 2: [0, 1]}


def test_second_stage_of_the_layout():
    reached = reach(FEATURES, STAGE_1)
    assert reached.second_stage(STAGE_1, radius=2).tolist() == [after for _, _, after in LAYOUT]
    # All but -2.0, 9.0 and 15.0 are within the radius of a reference they may join.
    assert reached.coverage(2) == pytest.approx(0.7)
    # Within 0.5: the samples at 0.5 (cluster 0) and 1.5 (cluster 1), both at centroid 1.
    assert reached.coverage(0.5) == pytest.approx(0.2)


@pytest.mark.parametrize("seed", range(5))
def test_second_stage_follows_the_loops(seed):
    features, _ = blobs(seed, count=9, dimensions=2)
    clustering = kmeans(features, 9, seed=seed)
    reached = reach(features, clustering)
    for radius in (0.3, 1.0, 3.0):
        expected = reference.second_stage(features, clustering.labels, clustering.centroids, radius)
        np.testing.assert_array_equal(reached.second_stage(clustering, radius), expected)


def test_scan_takes_the_lowest_index_of_enough_coverage():
    """Stage 1 with every sixth sample in a wrong cluster, so that there is something for stage 2 to mend."""
    features, _ = blobs(0, count=9, dimensions=2)
    found = kmeans(features, 9, seed=0)
    wrong = np.arange(len(features)) % 6 == 0
    clustering = Clustering(np.where(wrong, (found.labels + 1) % 9, found.labels), found.centroids, 0.0)
    radii = [2.0, 0.5, 1.0, 1.5]
    scan = scan_radii(features, clustering, radii, min_coverage=0.4)
    assert [row.radius for row in scan.rows] == [0.5, 1.0, 1.5, 2.0]
    for row in scan.rows:
        labels = reference.second_stage(features, clustering.labels, clustering.centroids, row.radius)
        np.testing.assert_array_equal(row.labels, labels)
        assert row.davies_bouldin == pytest.approx(reference.davies_bouldin(features, labels), rel=1e-12)
    coverages = [row.coverage for row in scan.rows]
    assert coverages == sorted(coverages) and coverages[0] < 0.4 < coverages[-1]
    best = min(row.davies_bouldin for row in scan.rows if row.coverage >= 0.4)
    assert best < reference.davies_bouldin(features, clustering.labels)
    assert scan.chosen is not None and scan.chosen.davies_bouldin == best


def test_scan_keeps_stage_1_where_no_radius_covers_enough():
    scan = scan_radii(FEATURES, STAGE_1, [0.5, 2.0], min_coverage=0.8)
    assert [row.coverage for row in scan.rows] == pytest.approx([0.2, 0.7])
    assert scan.chosen is None


def test_scan_keeps_stage_1_where_no_radius_lowers_its_index():
    """Clusters {-1, 1, 4} and {9, 11}: mu = 4/3 and 10. With two clusters both are references, each other's neighbour.

    Radius 3 covers all, and every sample stays: the index is that of stage 1, not lower.
    """
    features = np.array([[-1.0], [1], [4], [9], [11]])
    clustering = Clustering(np.array([0, 0, 0, 1, 1]), np.array([[4 / 3], [10]]), 0.0)
    scan = scan_radii(features, clustering, [3.0], min_coverage=0.5)
    assert scan.rows[0].coverage == 1.0 and scan.rows[0].labels.tolist() == [0, 0, 0, 1, 1]
    assert scan.chosen is None


def test_scan_never_chooses_a_single_cluster():
    """With two clusters both are references; the two samples lie nearer to centroid 0, so a wide radius merges them."""
    clustering = Clustering(np.array([0, 1]), np.array([[0.0], [4.0]]), 0.0)
    scan = scan_radii(np.array([[0.0], [1.0]]), clustering, [2.0], min_coverage=0.5)
    assert scan.rows[0].labels.tolist() == [0, 0]
    assert scan.rows[0].davies_bouldin == math.inf and scan.chosen is None


def test_purity_by_hand():
    """Cluster 0 holds classes 5 5 2 (largest 2), cluster 1 holds 2 (1); the last sample has no cluster: 3 / 4."""
    assert purity(np.array([0, 0, 0, 1, -1]), np.array([5, 5, 2, 2, 0])) == pytest.approx(0.75)


def test_purity_follows_the_loops():
    random = np.random.default_rng(8)
    clusters, labels = random.integers(-1, 6, 200), random.integers(0, 4, 200)
    assert purity(clusters, labels) == pytest.approx(reference.purity(clusters, labels), rel=1e-12)
