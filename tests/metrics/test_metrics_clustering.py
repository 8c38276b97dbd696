"""Metrics of a clustering against slow references written from the definitions, and hand-worked numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_dist.metrics.clustering import clustering_metrics, match
from tests.reference import metrics as reference


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), samples=st.integers(4, 24), clusters=st.integers(2, 5), classes=st.integers(2, 5))
def test_metrics_equal_their_definitions(seed: int, samples: int, clusters: int, classes: int) -> None:
    random = np.random.default_rng(seed)
    found = np.concatenate([[0, 1], random.integers(0, clusters, samples)])
    labels = np.concatenate([[0, 1], random.integers(0, classes, samples)])
    metrics = clustering_metrics(found, labels)
    assert metrics["accuracy"] == pytest.approx(reference.clustering_accuracy(found, labels))
    assert metrics["nmi"] == pytest.approx(reference.normalised_mutual_information(found, labels))
    assert metrics["ari"] == pytest.approx(reference.adjusted_rand(found, labels))
    assert metrics["clusters"] == len(set(found.tolist()))


def test_a_clustering_that_only_names_classes_otherwise_is_perfect() -> None:
    labels = np.array([0, 0, 1, 1, 2])
    metrics = clustering_metrics(np.array([2, 2, 0, 0, 1]), labels)
    assert metrics == {"accuracy": 1.0, "nmi": pytest.approx(1), "ari": 1.0, "clusters": 3}


def test_a_cluster_too_many_is_matched_to_no_class_and_counts_as_wrong() -> None:
    clusters, labels = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 0, 0, 1, 1, 1])
    assert match(clusters, labels).tolist() == [0, -1, 1]
    assert clustering_metrics(clusters, labels)["accuracy"] == pytest.approx(5 / 6)


def test_one_cluster_of_everything_tells_nothing() -> None:
    metrics = clustering_metrics(np.zeros(6, int), np.array([0, 1, 0, 1, 0, 1]))
    assert metrics == {"accuracy": 0.5, "nmi": 0.0, "ari": 0.0, "clusters": 1}
