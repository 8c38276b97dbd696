"""An update of the target: all of its parts against the slow references, by blocks, and with samples that are odd."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from moe_dist.methods.edcwrn import update as module
from moe_dist.methods.edcwrn.config import EdcwrnConfig
from moe_dist.methods.edcwrn.update import inter_cluster_variance, sum_of_codes, update
from tests.reference import edcwrn as slow

SAMPLES, CLUSTERS, CODE = 25, 3, 4
A, B, ALPHA = 1.93, 0.79, 2.0


def config(**changes: Any) -> EdcwrnConfig:
    return EdcwrnConfig.model_validate({"clusters": CLUSTERS, "network": {"code": CODE}} | changes)


def drawn() -> tuple[dict[str, np.ndarray], torch.Tensor, torch.Tensor]:
    """The encoders' outputs, centres, and weights before the update."""
    random = np.random.default_rng(0)
    encoded = {name: random.normal(size=(SAMPLES, CODE)) for name in ("own", "beside")}
    return (
        encoded,
        torch.from_numpy(random.normal(size=(CLUSTERS, CODE))),
        torch.full((CLUSTERS, CODE), 1 / CODE).double(),
    )


def test_codes_weights_target_and_labels_are_equations_5_9_11_14_and_15() -> None:
    encoded, centres, weights = drawn()
    found = update(config(), centres, weights, encoded, None)
    first = encoded["own"] + encoded["beside"]  # every sample is its own neighbour
    rows = np.array(slow.nearest(first, 2))
    codes = np.array([own + np.maximum(*encoded["beside"][near]) for own, near in zip(encoded["own"], rows)])
    assert found["neighbours"].tolist() == rows.tolist()
    np.testing.assert_allclose(found["codes"], codes, rtol=1e-12)
    q = slow.proposed(codes, centres.numpy(), weights.numpy(), A, B)
    after = slow.weights(q, codes, centres.numpy(), ALPHA)
    np.testing.assert_allclose(found["weights"], after, rtol=1e-9)
    q = slow.proposed(codes, centres.numpy(), after, A, B)
    np.testing.assert_allclose(found["target"], slow.target(q), rtol=1e-9)
    assert found["label"].tolist() == q.argmax(1).tolist()


def test_neighbours_are_looked_for_among_the_codes_that_those_before_gave() -> None:
    encoded, centres, weights = drawn()
    before = np.random.default_rng(1).integers(0, SAMPLES, (SAMPLES, 2))
    found = update(config(), centres, weights, encoded, before)
    assert found["neighbours"].tolist() == slow.nearest(sum_of_codes(encoded, before), 2)


@pytest.mark.parametrize("row", [{"weighting": {"enabled": False}}, {"weighting": {"scope": "batch"}}])
def test_weights_that_are_off_or_of_a_batch_stay_as_they_are(row: dict[str, Any]) -> None:
    encoded, centres, weights = drawn()
    assert np.array_equal(update(config(**row), centres, weights, encoded, None)["weights"], weights.numpy())


def test_without_neighbours_codes_are_the_samples_own() -> None:
    encoded, centres, weights = drawn()
    found = update(config(neighbours={"count": 0}), centres, weights, {"own": encoded["own"]}, None)
    assert "neighbours" not in found and np.array_equal(found["codes"], encoded["own"])


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded, centres, weights = drawn()
    whole = update(config(), centres, weights, encoded, None)
    monkeypatch.setattr(module, "AT_ONCE", 4)
    parts = update(config(), centres, weights, encoded, None)
    assert all(np.array_equal(parts[name], whole[name]) for name in whole)


def test_duplicates_a_number_that_never_varies_and_an_empty_cluster_are_updated() -> None:
    """Ten samples twice, the last number of their codes the same in all; the last centre is far from every sample."""
    half = np.random.default_rng(0).normal(size=(10, CODE)).astype(np.float32)
    half[:, -1] = 0.5
    encoded = {"own": np.repeat(half, 2, 0), "beside": np.repeat(half, 2, 0)}
    centres = torch.from_numpy(np.concatenate([2 * half[:2], np.full((1, CODE), 1e4, np.float32)]))
    found = update(config(), centres, torch.full((CLUSTERS, CODE), 1 / CODE), encoded, None)
    assert set(found["label"].tolist()) == {0, 1}
    np.testing.assert_allclose(found["weights"].sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(found["target"].sum(1), 1, rtol=1e-5)
    twins = np.arange(20).reshape(10, 2)
    assert (found["neighbours"][twins[:, 0], 0] == twins[:, 1]).all()


def test_the_variance_between_clusters_is_that_of_their_means() -> None:
    """Of those that have a sample."""
    random = np.random.default_rng(0)
    codes, clusters = random.normal(size=(30, CODE)), random.choice([0, 1, 4], 30)
    found = inter_cluster_variance(codes, clusters)["inter_cluster_variance"]
    assert found == pytest.approx(slow.inter_cluster_variance(codes, clusters), rel=1e-10)
