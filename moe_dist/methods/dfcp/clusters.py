"""The two clustering stages of DFCP-MoE (sections 3.1.2-3.1.3): k-means, then re-assignment around reference clusters.

Letters in shapes: N samples of a set, D features, Q clusters.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics.pairwise import euclidean_distances

from moe_dist.errors import UserError

NEIGHBOURS = 3
"""K of the graph of K nearest neighbours over centroids, and the fewest neighbours of a reference cluster (K >= 3 in
the paper)."""


@dataclass(frozen=True)
class Clustering:
    """Stage 1: labels [N] in 0..Q-1, centroids [Q, D], objective J = sum of squared distances to the own centroid."""

    labels: np.ndarray
    centroids: np.ndarray
    objective: float


def kmeans(features: np.ndarray, count: int, seed: int, restarts: int = 3) -> Clustering:
    """K-means of features [N, D] into `count` clusters; of `restarts` k-means++ starts the one of lowest J.

    Raises UserError where `count` is below 2 or above the number of (distinct) samples.
    """
    if not 2 <= count <= len(features):
        raise UserError(f"clusters.count = {count}: choose a number from 2 to the {len(features)} samples there are")
    model = KMeans(count, n_init=restarts, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of fewer distinct samples than clusters: refused below
        labels = model.fit_predict(features)
    found = len(np.unique(labels))
    if found < count:
        raise UserError(f"clusters.count = {count}: the {len(features)} samples hold only {found} distinct features")
    return Clustering(labels.astype(np.int64), model.cluster_centers_, float(model.inertia_))


def davies_bouldin(features: np.ndarray, labels: np.ndarray) -> float:
    """The Davies-Bouldin index of features [N, D] with labels [N] (Eq 9); samples with a negative label are left out.

    Mean over clusters i of the largest (d_i + d_j) / ||mu_i - mu_j|| over j != i, where d is the mean distance of a
    cluster's samples to its centroid mu. Infinite where two centroids coincide. Needs at least two clusters.
    """
    numbers = np.unique(labels[labels >= 0])
    assert len(numbers) >= 2, "the Davies-Bouldin index compares clusters with one another"
    centroids = np.empty((len(numbers), features.shape[1]))
    spread = np.empty(len(numbers))
    for row, number in enumerate(numbers):
        members = features[labels == number]
        centroids[row] = members.mean(axis=0, dtype=np.float64)
        spread[row] = np.linalg.norm(members - centroids[row], axis=1).mean()
    apart = np.array([np.linalg.norm(centroids - centroid, axis=1) for centroid in centroids])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(apart > 0, (spread[:, None] + spread[None, :]) / apart, np.inf)
    np.fill_diagonal(ratio, -np.inf)
    return float(ratio.max(axis=1).mean())


def reference_clusters(centroids: np.ndarray, neighbours: int = NEIGHBOURS) -> dict[int, np.ndarray]:
    """The reference clusters of stage 2: {reference: the clusters that are its neighbours}, from centroids [Q, D].

    Reading: every cluster points to the 3 centroids nearest to its own; a cluster's neighbours are those that point to
    it, and a reference is a cluster with at least 3 neighbours. Where no cluster has so many, all are references.
    """
    distances = euclidean_distances(centroids)
    np.fill_diagonal(distances, np.inf)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, : min(neighbours, len(centroids) - 1)]
    pointing = {cluster: np.flatnonzero((nearest == cluster).any(axis=1)) for cluster in range(len(centroids))}
    references = {cluster: around for cluster, around in pointing.items() if len(around) >= neighbours}
    return references or pointing


@dataclass(frozen=True)
class Reach:
    """The nearest reference cluster that each sample may join [N], and the distance to its centroid [N].

    A sample may join a reference if it lies in it or in one of its neighbours; of equally near ones the first is taken.
    The distance of a sample that may join none is infinity.
    """

    reference: np.ndarray
    distance: np.ndarray

    def second_stage(self, clustering: Clustering, radius: float) -> np.ndarray:
        """Labels [N] after stage 2: samples within `radius` of their reference join it, the others keep their cluster.

        Reading: the new cluster has its reference's number, so there are at most the Q clusters of stage 1.
        """
        return np.where(self.distance <= radius, self.reference, clustering.labels)

    def coverage(self, radius: float) -> float:
        """Share of all samples that are within `radius` of a reference they may join."""
        return float((self.distance <= radius).mean())


def reach(features: np.ndarray, clustering: Clustering, neighbours: int = NEIGHBOURS) -> Reach:
    """The nearest reference cluster that each sample, of features [N, D], may join."""
    references = reference_clusters(clustering.centroids, neighbours)
    numbers = np.array(list(references))
    may_join = np.zeros((len(clustering.centroids), len(numbers)), dtype=bool)  # [Q, references]
    for column, (reference, around) in enumerate(references.items()):
        may_join[[reference, *around], column] = True
    distances = euclidean_distances(features, clustering.centroids[numbers])  # [N, references], blockwise in float64
    distances[~may_join[clustering.labels]] = np.inf
    nearest = distances.argmin(axis=1)
    return Reach(numbers[nearest], distances[np.arange(len(features)), nearest])


@dataclass(frozen=True)
class RadiusRow:
    """One radius of the scan: its Davies-Bouldin index, its coverage and its labels [N]."""

    radius: float
    davies_bouldin: float
    coverage: float
    labels: np.ndarray


@dataclass(frozen=True)
class RadiusScan:
    """The scan in order of the radii, and the chosen row; None: the labels of stage 1 are kept."""

    rows: tuple[RadiusRow, ...]
    chosen: RadiusRow | None


def scan_radii(
    features: np.ndarray,
    clustering: Clustering,
    radii: Sequence[float],
    min_coverage: float,
    neighbours: int = NEIGHBOURS,
) -> RadiusScan:
    """Stage 2 at every radius; chosen is the lowest Davies-Bouldin index of the radii that cover `min_coverage`.

    Reading: the purpose of stage 2 is to lower the index, so no radius is chosen where none that covers enough has a
    lower index than stage 1. Of equal indices the smaller radius is taken. A single remaining cluster has the index
    infinity.
    """
    reached = reach(features, clustering, neighbours)
    rows = []
    for radius in sorted(radii):
        labels = reached.second_stage(clustering, radius)
        index = davies_bouldin(features, labels) if len(np.unique(labels)) > 1 else float("inf")
        rows.append(RadiusRow(radius, index, reached.coverage(radius), labels))
    before = davies_bouldin(features, clustering.labels)
    better = [row for row in rows if row.coverage >= min_coverage and row.davies_bouldin < before]
    return RadiusScan(tuple(rows), min(better, key=lambda row: row.davies_bouldin, default=None))


def purity(cluster_labels: np.ndarray, true_labels: np.ndarray) -> float:
    """(1/N) sum over clusters of the largest class count; labels [N] each, samples in no cluster (-1) left out."""
    kept = cluster_labels >= 0
    assert kept.any(), "purity needs at least one sample in a cluster"
    counts = np.zeros((cluster_labels.max() + 1, true_labels.max() + 1), dtype=np.int64)
    np.add.at(counts, (cluster_labels[kept], true_labels[kept]), 1)
    return float(counts.max(axis=1).sum() / kept.sum())
