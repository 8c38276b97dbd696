"""Metrics of a clustering against known classes. Pure functions of two label vectors; none sees a network.

Letters: N samples, Q clusters, C classes.
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score


class ClusteringMetrics(TypedDict):
    """What clustering_metrics returns."""

    accuracy: float
    nmi: float
    ari: float
    clusters: int


def clustering_metrics(clusters: np.ndarray, labels: np.ndarray) -> ClusteringMetrics:
    """Compare `clusters` [N] with the true `labels` [N]; both are integers from 0.

    accuracy is the share of samples that fall into the class matched to their cluster, under the best one-to-one
    matching (Hungarian algorithm). nmi is the mutual information over the geometric mean of both entropies, as the
    papers of deep clustering use it; ari is the adjusted Rand index. clusters counts those with at least one sample.
    """
    assert len(clusters) == len(labels) > 0
    matched = match(clusters, labels)
    return {
        "accuracy": float((matched[clusters] == labels).mean()),
        "nmi": float(normalized_mutual_info_score(labels, clusters, average_method="geometric")),
        "ari": float(adjusted_rand_score(labels, clusters)),
        "clusters": len(np.unique(clusters)),
    }


def match(clusters: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The class of each cluster [Q] under the best one-to-one matching; -1 where there are more clusters than classes.

    The matching is the one with most samples in the class of their cluster.
    """
    counts = np.zeros((clusters.max() + 1, labels.max() + 1), np.int64)
    np.add.at(counts, (clusters, labels), 1)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    classes = np.full(len(counts), -1)
    classes[rows] = columns
    return classes
