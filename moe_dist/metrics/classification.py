"""Metrics of class predictions, and the intervals that say how far they can be trusted: pure functions of arrays.

Letters: N test images, C classes, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypedDict

import numpy as np
from scipy import stats
from sklearn.metrics import average_precision_score, precision_recall_fscore_support

from moe_dist.data.longtail import imbalance_factor, shot_groups

LONG_TAIL_FROM = 5.0
"""Smallest imbalance factor at which accuracy is also given by groups of classes. The mildest published long tails have
10, and sets that are meant to be balanced stay below 2."""


class Interval(NamedTuple):
    """A 95 % confidence interval, in the unit of the value it surrounds."""

    low: float
    high: float


class ClassificationMetrics(TypedDict):
    """The result of `classification_metrics`; shares are fractions in [0, 1]."""

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
    precision, recall, _, support = precision_recall_fscore_support(
        labels, predicted, labels=np.arange(classes), average=None, zero_division=np.nan
    )
    present = np.flatnonzero(support)
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
        "precision": precision,
        "recall": recall,
        "support": support,
    }


def confusion_counts(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """The confusion matrix [C, C] of counts, from true `labels` [N] and `predicted` classes [N].

    Rows are true classes, columns predicted ones.
    """
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def reported_groups(counts: np.ndarray) -> dict[str, np.ndarray]:
    """The groups of classes that accuracy is given by: the class numbers by the group's name (many, medium, few).

    counts [C] are the training images of every class. There are no groups unless the set is long-tailed. A group
    without classes is left out, and a single group that holds all classes would say nothing beyond top-1.
    """
    if imbalance_factor(counts) < LONG_TAIL_FROM:
        return {}
    groups = {name: classes for name, classes in shot_groups(counts).items() if len(classes)}
    return groups if len(groups) > 1 else {}


def group_accuracy(labels: np.ndarray, predicted: np.ndarray, groups: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The top-1 accuracy of each group of classes, a fraction in [0, 1]; a group without test images is left out.

    labels and predicted are classes [N]; groups holds the class numbers of a group by its name.
    """
    members = {name: np.isin(labels, classes) for name, classes in groups.items()}
    right = predicted == labels
    return {name: float(right[member].mean()) for name, member in members.items() if member.any()}


def pairwise_divergence(log_probs: np.ndarray) -> np.ndarray:
    """How far the experts' predictions lie apart on each image [N], in nats.

    It is KL(p^e || p^f) summed over all ordered pairs of experts e, f, from their log_probs [N, E, C].
    """
    log_p = log_probs.astype(np.float64)
    p = np.exp(log_p)
    # The sum over e, f of p^e (log p^e - log p^f), without an array [N, E, E, C].
    return log_p.shape[1] * (p * log_p).sum(axis=(1, 2)) - (p.sum(axis=1) * log_p.sum(axis=1)).sum(axis=1)


def class_means(values: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """The mean [C] of `values` [N] over the images of each class, NaN for a class without images.

    labels are the images' classes [N].
    """
    support = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, weights=values, minlength=classes)
    return np.divide(sums, support, out=np.full(classes, np.nan), where=support > 0)


def wilson_interval(successes: int, trials: int) -> Interval:
    """Wilson's 95 % score interval of the proportion `successes` / `trials`.

    It says how far the accuracy of one run can be trusted, given the number of test images.
    """
    z = stats.norm.ppf(0.975)
    share = successes / trials
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    return Interval(max(0.0, float(centre - half)), min(1.0, float(centre + half)))


def mean_interval(values: Sequence[float]) -> tuple[float, Interval]:
    """The mean of several runs' values and its 95 % Student-t interval; there must be at least two values."""
    assert len(values) >= 2, "one value has no spread"
    mean = float(np.mean(values))
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return mean, Interval(mean - half, mean + half)
