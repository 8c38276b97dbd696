"""Metrics and intervals against slow references written from the definitions, and hand-worked numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_dist.metrics.classification import (
    class_means,
    classification_metrics,
    confusion_counts,
    group_accuracy,
    mean_interval,
    pairwise_divergence,
    reported_groups,
    wilson_interval,
)
from tests.reference import metrics as reference


def predictions(seed: int, images: int, classes: int, decimals: int) -> tuple[np.ndarray, np.ndarray]:
    """Random labels and log-probabilities; few decimals make ties."""
    random = np.random.default_rng(seed)
    log_probs = np.round(random.normal(size=(images, classes)), decimals)
    return random.integers(0, classes, images), log_probs - np.log(np.exp(log_probs).sum(axis=1, keepdims=True))


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6), images=st.integers(1, 30), classes=st.integers(2, 6), decimals=st.sampled_from([0, 6])
)
def test_metrics_equal_their_definitions(seed: int, images: int, classes: int, decimals: int) -> None:
    labels, log_probs = predictions(seed, images, classes, decimals)
    metrics = classification_metrics(labels, log_probs)
    predicted = reference.predicted_class(log_probs)
    truth = labels.tolist()
    assert metrics["top1"] == sum(a == b for a, b in zip(truth, predicted)) / images
    assert metrics["map"] == pytest.approx(reference.mean_average_precision(labels, log_probs))
    assert metrics["balanced_accuracy"] == pytest.approx(reference.balanced_accuracy(labels, log_probs))
    assert metrics["nll"] == pytest.approx(-sum(log_probs[n, c] for n, c in enumerate(truth)) / images)
    assert metrics["classes_absent"] == classes - len(set(truth))
    for c in range(classes):
        assert metrics["precision"][c] == pytest.approx(reference.precision(truth, predicted, c), nan_ok=True)
        assert metrics["recall"][c] == pytest.approx(reference.recall(truth, predicted, c), nan_ok=True)
        assert metrics["support"][c] == truth.count(c)


def test_hand_worked_average_precision() -> None:
    # Class 1, scores .9 .8 .7 .4, truth 1 0 1 0. Recall grows at the 1st (precision 1/1) and 3rd image (precision 2/3):
    # AP = 1/2 * 1 + 1/2 * 2/3 = 5/6. Class 0 ranks the other way, truth 1 0 1 0 again: 5/6.
    labels = np.array([1, 0, 1, 0])
    log_probs = np.log([[0.1, 0.9], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4]])
    metrics = classification_metrics(labels, log_probs)
    assert metrics["map"] == pytest.approx(5 / 6)
    # Predictions 1 1 1 0: recall 1/2 and 2/2, precision of class 1 is 2/3.
    assert metrics["balanced_accuracy"] == pytest.approx(0.75)
    assert metrics["precision"].tolist() == pytest.approx([1, 2 / 3])


def test_a_class_without_test_images_is_in_no_average_and_is_counted() -> None:
    log_probs = np.log([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]])
    metrics = classification_metrics(np.array([0, 1]), log_probs)
    assert metrics["classes_absent"] == 1
    assert (metrics["map"], metrics["balanced_accuracy"]) == (1, 1)
    assert np.isnan(metrics["precision"][2]) and np.isnan(metrics["recall"][2])


def test_rows_of_the_confusion_are_true_classes() -> None:
    counts = confusion_counts(np.array([0, 0, 2]), np.array([1, 1, 2]), 3)
    assert counts.tolist() == [[0, 2, 0], [0, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (1, 7), (349, 360), (1, 1)])
def test_wilson_interval_solves_its_equation(successes: int, trials: int) -> None:
    low, high = wilson_interval(successes, trials)
    assert (low, high) == pytest.approx(reference.wilson(successes, trials), abs=1e-9)
    assert 0 <= low < high <= 1


def test_wilson_interval_covers_the_truth_about_95_times_in_100() -> None:
    # Exact, from the binomial: P(X = x) summed over the x whose interval holds p. For n = 200, p = 0.9 it is near 0.95.
    from math import comb

    n, p = 200, 0.9
    intervals = [wilson_interval(x, n) for x in range(n + 1)]
    covered = sum(
        comb(n, x) * p**x * (1 - p) ** (n - x) for x in range(n + 1) if intervals[x].low <= p <= intervals[x].high
    )
    assert covered == pytest.approx(0.95, abs=0.02)


def test_mean_interval_of_the_papers_three_seeds() -> None:
    # Three values, two degrees of freedom: t = 4.303 (any table). Mean 74, standard deviation 0.1:
    # half width = 4.3027 * 0.1 / sqrt(3) = 0.24842.
    mean, interval = mean_interval([73.9, 74.0, 74.1])
    assert mean == pytest.approx(74.0)
    assert interval == pytest.approx((74 - 0.24842, 74 + 0.24842), abs=1e-4)


def test_divergence_of_two_experts_by_hand() -> None:
    # p = (1/2, 1/2), q = (1/4, 3/4): KL(p || q) + KL(q || p) = (1/2 - 1/4) ln 2 + (1/2 - 3/4) ln (2/3) = ln(3) / 4.
    p, q = np.log([0.5, 0.5]), np.log([0.25, 0.75])
    divergence = pairwise_divergence(np.array([[p, q], [q, q]]).astype(np.float32))
    np.testing.assert_allclose(divergence, [np.log(3) / 4, 0], atol=1e-7)
    # Of three experts p, q, q four ordered pairs differ, and the two of q and q add nothing.
    np.testing.assert_allclose(pairwise_divergence(np.array([[p, q, q]])), [np.log(3) / 2])


def test_groups_are_told_of_long_tails_alone() -> None:
    def groups(*counts: int) -> dict[str, list[int]]:
        return {name: classes.tolist() for name, classes in reported_groups(np.array(counts)).items()}

    assert groups(19, 101, 100, 20) == {"many": [1], "medium": [2, 3], "few": [0]}
    assert groups(400, 80) == {"many": [0], "medium": [1]}, "400 / 80 is the 5 from which it is long"
    assert groups(400, 81) == {}
    assert groups(2000, 200) == {}, "all are many"
    assert groups(30, 0) == {"medium": [0], "few": [1]}


def test_accuracy_by_group_by_hand() -> None:
    labels, predicted = np.array([0, 0, 0, 1, 2]), np.array([0, 0, 1, 1, 0])
    groups = {"many": np.array([0, 1]), "medium": np.array([2]), "few": np.array([3])}
    assert group_accuracy(labels, predicted, groups) == {"many": 0.75, "medium": 0.0}, "nobody tested class 3"


def test_class_means_by_hand() -> None:
    means = class_means(np.array([1.0, 2.0, 6.0]), np.array([2, 0, 2]), 3)
    np.testing.assert_array_equal(means, [2.0, np.nan, 3.5])
