"""Metrics and intervals against slow references written from the definitions, and hand-worked numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_dist.report.metrics import classification_metrics, confusion_counts, mean_interval, wilson_interval
from tests.reference import metrics as reference


def predictions(seed: int, images: int, classes: int, decimals: int) -> tuple[np.ndarray, np.ndarray]:
    """Random labels and log-probabilities; few decimals make ties."""
    random = np.random.default_rng(seed)
    log_probs = np.round(random.normal(size=(images, classes)), decimals)
    return random.integers(0, classes, images), log_probs - np.log(np.exp(log_probs).sum(axis=1, keepdims=True))


@settings(max_examples=25, deadline=None)
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
