"""Slow metrics, written from their definitions with loops; they share no code with what they judge."""

from __future__ import annotations

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
