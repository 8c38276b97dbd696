"""Classification metrics of one run, and the intervals that say how far they can be trusted.

Letters: N test images, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypedDict

import numpy as np
from scipy import stats
from sklearn.metrics import average_precision_score, precision_score, recall_score


class Interval(NamedTuple):
    """A 95 % confidence interval, in the unit of the value it surrounds."""

    low: float
    high: float


class ClassificationMetrics(TypedDict):
    """What classification_metrics returns; shares are fractions in [0, 1]."""

    images: int
    top1: float
    top1_interval: Interval
    balanced_accuracy: float
    map: float
    nll: float
    classes_absent: int
    precision: np.ndarray
    recall: np.ndarray
    support: np.ndarray


def classification_metrics(labels: np.ndarray, log_probs: np.ndarray) -> ClassificationMetrics:
    """Metrics of predictions `log_probs` [N, C] against true `labels` [N].

    map is the one-vs-rest average precision and balanced_accuracy the recall, both averaged over the classes that have
    a test image; classes_absent counts the others. precision, recall and support are [C]: precision is NaN for a class
    that is never predicted, recall for one that is absent. nll is the mean negative log-likelihood, in nats.
    """
    assert len(labels) == len(log_probs) > 0
    classes = log_probs.shape[1]
    predicted = log_probs.argmax(axis=1)
    correct = int((predicted == labels).sum())
    support = np.bincount(labels, minlength=classes)
    present = np.flatnonzero(support)
    recall = _per_class(recall_score, labels, predicted, classes)
    # Ranked by log-probability: in float32, probabilities near 1 tie where their logarithms still differ.
    average_precision = [average_precision_score(labels == c, log_probs[:, c]) for c in present]
    return {
        "images": len(labels),
        "top1": correct / len(labels),
        "top1_interval": wilson_interval(correct, len(labels)),
        "balanced_accuracy": float(recall[present].mean()),
        "map": float(np.mean(average_precision)),
        "nll": float(-log_probs[np.arange(len(labels)), labels].mean(dtype=np.float64)),
        "classes_absent": classes - len(present),
        "precision": _per_class(precision_score, labels, predicted, classes),
        "recall": recall,
        "support": support,
    }


def _per_class(score: Callable[..., np.ndarray], labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """scikit-learn's `score` for every class [C], NaN where its denominator is zero."""
    return score(labels, predicted, labels=np.arange(classes), average=None, zero_division=np.nan)


def confusion_counts(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """[C, C] counts: rows are true classes, columns predicted ones."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def wilson_interval(successes: int, trials: int) -> Interval:
    """Wilson's 95 % score interval of a proportion: what one run's accuracy says, from the number of test images."""
    z = stats.norm.ppf(0.975)
    share = successes / trials
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    return Interval(max(0.0, float(centre - half)), min(1.0, float(centre + half)))


def mean_interval(values: Sequence[float]) -> tuple[float, Interval]:
    """Mean of several runs' values and its 95 % Student-t interval; needs at least two values."""
    assert len(values) >= 2, "one value has no spread"
    mean = float(np.mean(values))
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return mean, Interval(mean - half, mean + half)
