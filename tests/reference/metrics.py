"""Slow metrics, written from their definitions with loops; they share no code with what they judge."""

from __future__ import annotations

import itertools
import math

import numpy as np


def average_precision(positive: np.ndarray, score: np.ndarray) -> float:
    """sum over distinct thresholds t, highest first, of (recall(t) - recall before) * precision(t)."""
    total, last_recall = 0.0, 0.0
    positives = sum(bool(p) for p in positive)
    for threshold in sorted(set(score.tolist()), reverse=True):
        taken = [bool(p) for p, s in zip(positive, score.tolist()) if s >= threshold]
        recall = sum(taken) / positives
        total += (recall - last_recall) * sum(taken) / len(taken)
        last_recall = recall
    return total


def predicted_class(log_probs: np.ndarray) -> list[int]:
    """The first class of largest log-probability."""
    return [row.index(max(row)) for row in log_probs.tolist()]


def precision(labels: list[int], predicted: list[int], c: int) -> float:
    """Of the samples called c, the share that is c; NaN where none is called c."""
    called = [label for label, guess in zip(labels, predicted) if guess == c]
    return called.count(c) / len(called) if called else math.nan


def recall(labels: list[int], predicted: list[int], c: int) -> float:
    """Of the samples that are c, the share called c; NaN where none is c."""
    return precision(predicted, labels, c)


def mean_average_precision(labels: np.ndarray, log_probs: np.ndarray) -> float:
    """Average precision over the classes that occur in `labels`."""
    present = sorted(set(labels.tolist()))
    return sum(average_precision(labels == c, log_probs[:, c]) for c in present) / len(present)


def balanced_accuracy(labels: np.ndarray, log_probs: np.ndarray) -> float:
    """Mean recall over the classes that occur in `labels`."""
    present = sorted(set(labels.tolist()))
    predicted = predicted_class(log_probs)
    return sum(recall(labels.tolist(), predicted, c) for c in present) / len(present)


def wilson(successes: int, trials: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """The two p at which |share - p| = z * sqrt(p (1 - p) / trials), found by bisection."""
    share = successes / trials

    def excess(p: float) -> float:
        return abs(share - p) - z * math.sqrt(p * (1 - p) / trials)

    def root(inside: float, outside: float) -> float:
        for _ in range(200):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if excess(middle) < 0 else (inside, middle)
        return (inside + outside) / 2

    # At `share` itself the deviation is 0, inside the interval; for a share of 0 or 1 that end is the interval's end.
    low = root(share, 0.0) if successes > 0 else 0.0
    high = root(share, 1.0) if successes < trials else 1.0
    return low, high


def clustering_accuracy(clusters: np.ndarray, labels: np.ndarray) -> float:
    """The largest share of samples in the class of their cluster, over every way to give clusters classes of their own.

    Tries all permutations, so few clusters only.
    """
    size = int(max(clusters.max(), labels.max())) + 1
    return max(
        sum(order[c] == y for c, y in zip(clusters.tolist(), labels.tolist())) / len(labels)
        for order in itertools.permutations(range(size))
    )


def normalised_mutual_information(clusters: np.ndarray, labels: np.ndarray) -> float:
    """sum p(a, b) log(p(a, b) / (p(a) p(b))) over sqrt(H(a) H(b)); Eq 17 of the EDCWRN paper."""
    n = len(labels)
    information = 0.0
    for a in set(clusters.tolist()):
        for b in set(labels.tolist()):
            both = sum(1 for c, y in zip(clusters, labels) if c == a and y == b) / n
            if both:
                information += both * math.log(both / (entropy_share(clusters, a) * entropy_share(labels, b)))
    return information / math.sqrt(entropy(clusters) * entropy(labels))


def entropy_share(values: np.ndarray, value: int) -> float:
    """The share of `values` that are `value`."""
    return sum(1 for v in values if v == value) / len(values)


def entropy(values: np.ndarray) -> float:
    """- sum p log p, in nats."""
    return -sum(entropy_share(values, v) * math.log(entropy_share(values, v)) for v in set(values.tolist()))


def adjusted_rand(clusters: np.ndarray, labels: np.ndarray) -> float:
    """The Rand index of pairs of samples less its expectation under random labels, over its maximum less the same."""
    n = len(labels)
    pairs = list(itertools.combinations(range(n), 2))
    together = [clusters[i] == clusters[j] for i, j in pairs]
    same = [labels[i] == labels[j] for i, j in pairs]
    both = sum(t and s for t, s in zip(together, same))
    expected = sum(together) * sum(same) / len(pairs)
    largest = (sum(together) + sum(same)) / 2
    return (both - expected) / (largest - expected)
