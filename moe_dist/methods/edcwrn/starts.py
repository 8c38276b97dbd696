"""Where a clustering begins: several optima of k-means on the pretrained codes, of which a trial of each chooses one.

Of two optima the one of the lower sum of squares is often the worse, by a tenth of a percent, and clustering never
leaves it. After some steps of the clustering itself the better one has the clusters that lie farther apart for their
size (Davies and Bouldin 1979): docs/deep_clustering.md has the figures. A reading of ours; the paper takes the lowest.

Letters: N samples, D numbers of a code, Q clusters, S optima.
"""

from __future__ import annotations

import math

import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import davies_bouldin_score

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


def separation(codes: np.ndarray, labels: np.ndarray, clusters: int) -> float:
    """The Davies-Bouldin index of codes [N, D] by labels [N]: less is better; infinite where a cluster is empty."""
    return float(davies_bouldin_score(codes, labels)) if len(np.unique(labels)) == clusters > 1 else math.inf


def _same(left: KMeans, right: KMeans) -> bool:
    return clustering_metrics(left.labels_, right.labels_)["accuracy"] >= SAME
