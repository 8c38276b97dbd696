"""Where a clustering begins: several optima of k-means on the pretrained codes, of which a trial of each chooses one.

Of two optima the one of the lower sum of squares is often the worse, by a tenth of a percent, and clustering never
leaves it. After a few hundred steps of the clustering itself the same criterion, as a share of the codes' variance,
tells them apart: docs/deep_clustering.md has the figures. A reading of ours; the paper takes the lowest at once.

Letters: N samples, D numbers of a code, Q clusters, S optima.
"""

from __future__ import annotations

import math

import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import pairwise_distances_argmin_min

from moe_dist.metrics.clustering import clustering_metrics

SAME = 0.97
"""Two optima that agree on this share of the samples are one."""


def kmeans_optima(codes: np.ndarray, clusters: int, restarts: int, seed: int, most: int) -> np.ndarray:
    """Centres [S, Q, D] of up to `most` different optima among `restarts` runs, the lowest sum of squares first."""
    seeds = np.random.default_rng(seed).integers(2**31, size=restarts)
    runs = [KMeans(clusters, n_init=1, random_state=int(each)).fit(codes) for each in seeds]
    found: list[KMeans] = []
    for run in sorted(runs, key=lambda run: float(run.inertia_)):
        if len(found) < most and not any(_same(run, other) for other in found):
            found.append(run)
    return np.stack([run.cluster_centers_ for run in found])


def share_within(codes: np.ndarray, labels: np.ndarray, clusters: int) -> float:
    """The share of the variance of codes [N, D] that is within clusters, by labels [N]; infinite where one is empty."""
    if len(np.unique(labels)) < clusters:
        return math.inf
    within = sum(_squares(codes[labels == cluster]) for cluster in range(clusters))
    return within / total if (total := _squares(codes)) > 0 else math.inf


def spread_of(codes: np.ndarray, centres: np.ndarray) -> float:
    """The root mean square of the distance of codes [N, D] from their nearest centre of [Q, D]."""
    _, distances = pairwise_distances_argmin_min(codes, centres)
    return float(np.sqrt(np.square(distances, dtype=np.float64).mean()))


def _squares(codes: np.ndarray) -> float:
    """The sum of squared distances from the mean."""
    return float(np.square(codes - codes.mean(0, dtype=np.float64)).sum())


def _same(left: KMeans, right: KMeans) -> bool:
    return clustering_metrics(left.labels_, right.labels_)["accuracy"] >= SAME
