"""Pseudo-labels (section 3.1.4, Eq 10-13) and the classes of clusters: from embeddings to one class per sample.

Letters in shapes: L trusted samples, U clustered samples, D dimensions of an embedding, P pairs, Q clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import pairwise_distances_argmin_min
from sklearn.metrics.pairwise import euclidean_distances

from moe_dist.errors import UserError

OUTLIER = -1


@dataclass(frozen=True)
class Threshold:
    """tau*, the distance up to which a pair is called same, and its scores on the pairs it was chosen on (Eq 12)."""

    tau: float
    f1: float
    precision: float
    recall: float


def f1_threshold(distances: np.ndarray, same: np.ndarray) -> Threshold:
    """The threshold of highest F1 (Eq 12-13) for pairs with `distances` [P], of which `same` [P] are of one class.

    A pair is predicted to be same where its distance is at most tau. Every observed distance is tried, so the maximum
    is exact; of equal F1 the smallest distance is taken. Raises UserError where no pair is same.
    """
    if not same.any():
        raise UserError("trusted: no two held-out trusted images share a class; raise trusted.fraction, or label more")
    order = np.argsort(distances, kind="stable")
    sorted_distances, hits = distances[order], np.cumsum(same[order])
    ends = np.flatnonzero(np.append(np.diff(sorted_distances) > 0, True))  # equal distances are predicted alike
    predicted, true_positives, positives = ends + 1, hits[ends], hits[-1]
    f1 = 2 * true_positives / (predicted + positives)  # 2 TP / (2 TP + FP + FN)
    best = int(f1.argmax())
    return Threshold(
        tau=float(sorted_distances[ends[best]]),
        f1=float(f1[best]),
        precision=float(true_positives[best] / predicted[best]),
        recall=float(true_positives[best] / positives),
    )


def held_out_pairs(
    embeddings: np.ndarray, labels: np.ndarray, groups: np.ndarray, held_out: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Distances [P] of all pairs (held-out, other trusted), and whether they are of one class [P].

    A pseudo-label rests on the same comparison: an image that the network has not seen with a trusted one. Pairs within
    one group are left out, since no clustered sample shares a group with a trusted one.
    embeddings [L, D], labels [L], groups [L] (-1: none, or images are trusted one by one), held_out [L] bool.
    """
    distances = euclidean_distances(embeddings[held_out], embeddings[~held_out])
    same = labels[held_out][:, None] == labels[~held_out][None, :]
    left, right = groups[held_out][:, None], groups[~held_out][None, :]
    apart = (left != right) | (left < 0)
    return distances[apart], same[apart]


def nearest_trusted(
    embeddings: np.ndarray, trusted_embeddings: np.ndarray, trusted_labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Label and distance [U] of the trusted sample ([L, D], labels [L]) nearest to each of `embeddings` [U, D]."""
    nearest, distances = pairwise_distances_argmin_min(embeddings, trusted_embeddings)
    return trusted_labels[nearest], distances


def pseudo_labels(nearest_labels: np.ndarray, distances: np.ndarray, tau: float) -> np.ndarray:
    """The nearest trusted label [U] where its distance [U] is at most `tau`, otherwise -1: an outlier."""
    return np.where(distances <= tau, nearest_labels, OUTLIER)


def label_clusters(cluster_labels: np.ndarray, pseudo: np.ndarray) -> np.ndarray:
    """The class of each cluster [Q]: its most frequent pseudo-label, the smallest of equally frequent ones.

    cluster_labels [U], pseudo-labels [U]; outliers do not vote. A cluster without a pseudo-label, or a number without a
    cluster, has the class -1.
    """
    voting = (pseudo != OUTLIER) & (cluster_labels >= 0)
    votes = np.zeros((cluster_labels.max() + 1, max(pseudo.max(), 0) + 1), dtype=np.int64)
    np.add.at(votes, (cluster_labels[voting], pseudo[voting]), 1)
    return np.where(votes.any(axis=1), votes.argmax(axis=1), OUTLIER)


def merge_clusters(cluster_labels: np.ndarray, pseudo: np.ndarray) -> np.ndarray:
    """The class of every sample's cluster [U], which merges the clusters of one class. Outliers stay -1.

    cluster_labels [U], pseudo-labels [U].
    """
    classes = label_clusters(cluster_labels, pseudo)
    return np.where((pseudo == OUTLIER) | (cluster_labels < 0), OUTLIER, classes[cluster_labels])


def require_every_class(merged: np.ndarray, class_names: Sequence[str]) -> None:
    """Raise UserError where a class has no cluster, since it would have no expert; merged [U]."""
    missing = [name for number, name in enumerate(class_names) if not (merged == number).any()]
    if missing:
        raise UserError(
            f"no cluster ended with class {', '.join(missing)}: each class needs an expert; raise clusters.count "
            "(smaller clusters), or trust more images (better pseudo-labels)"
        )
