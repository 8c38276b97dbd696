"""EDCWRN, IDEC and DEC as scikit-learn estimators: scikit-learn's own checks, images, new samples, refusals."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits, load_wine, make_blobs
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from moe_dist import DEC, EDCWRN, IDEC
from moe_dist.errors import UserError
from moe_dist.methods.edcwrn.config import EdcwrnConfig

SMALL: dict[str, Any] = {"hidden": (16,), "code": 4, "pretrain_steps": 80, "max_steps": 20, "random_state": 0}
EXPECTED: dict[str, str] = {}
"""Checks of scikit-learn that are expected to fail, with the reason; the issue allows five."""


@parametrize_with_checks([EDCWRN(3, **SMALL), DEC(3, **SMALL)], expected_failed_checks=lambda estimator: EXPECTED)
def test_scikit_learn_accepts_it(estimator: Any, check: Any) -> None:
    check(estimator)


def test_few_failures_are_expected() -> None:
    assert len(EXPECTED) <= 5


@pytest.fixture(scope="module")
def blobs() -> tuple[np.ndarray, np.ndarray]:
    return make_blobs(150, 6, centers=3, cluster_std=0.6, random_state=1)


@pytest.mark.parametrize("kind", [EDCWRN, IDEC, DEC])
def test_blobs_are_found_and_new_samples_join_them(kind: Any, blobs: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = blobs
    found = kind(3, **SMALL | {"pretrain_steps": 300}, learning_rate=0.1).fit(X[:120])  # 20 steps have to do
    assert adjusted_rand_score(y[:120], found.labels_) > 0.9
    assert adjusted_rand_score(y[120:], found.predict(X[120:])) > 0.9
    assert found.transform(X).shape == (150, 4) and found.cluster_centers_.shape == (3, 4)
    np.testing.assert_allclose(found.feature_weights_.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(found.predict_proba(X).sum(1), 1)
    assert found.history_[0]["step"] == 0 and found.n_iter_ == found.history_[-1]["step"] <= 20


@pytest.mark.parametrize("kind", [EDCWRN, IDEC])
def test_codes_start_at_the_spread(kind: Any, blobs: tuple[np.ndarray, np.ndarray]) -> None:
    """A rate of almost nothing leaves them there. Neighbours come after the first look, so EDCWRN has none here."""
    none = {"n_neighbors": 0} if kind is EDCWRN else {}
    found = kind(3, **SMALL, **none, learning_rate=1e-12, spread=7.0, tolerance=0).fit(blobs[0])
    apart = np.linalg.norm(found.transform(blobs[0])[:, None] - found.cluster_centers_, axis=2).min(1)
    assert np.sqrt(np.square(apart).mean()) == pytest.approx(7, rel=1e-3)


@pytest.mark.parametrize("kind", [EDCWRN, IDEC])
def test_a_table_as_it_comes_is_clustered_by_default(kind: Any) -> None:
    """At the rate for pixels, its large numbers diverge or end in one cluster."""
    X, y = load_wine(return_X_y=True)
    found = kind(3, hidden=(64, 64, 128), pretrain_steps=300, max_steps=40, random_state=0).fit_predict(X)
    assert adjusted_rand_score(y, found) > 0.4


def test_clusters_without_samples_are_told() -> None:
    """Three clusters of two different samples."""
    X = np.repeat([[0.0, 1], [5, 3]], 20, axis=0)
    with pytest.warns(
        ConvergenceWarning, match=r"2 of the 3 clusters have samples: lower learning_rate \(it was 0\.01\)"
    ):
        found = IDEC(3, **SMALL).fit(X)
    assert len(np.unique(found.labels_)) == 2


def test_several_starts_are_tried(blobs: tuple[np.ndarray, np.ndarray]) -> None:
    """Four clusters of three groups have several optima; history_ is of the clustering alone."""
    X, y = blobs
    found = EDCWRN(4, **SMALL | {"pretrain_steps": 300}, n_starts=3).fit(X)
    assert found.history_[0]["step"] == 0 and found.n_iter_ == found.history_[-1]["step"] <= 20
    assert adjusted_rand_score(y, found.labels_) > 0.7


def test_the_same_seed_gives_the_same_labels(blobs: tuple[np.ndarray, np.ndarray]) -> None:
    model = EDCWRN(3, **SMALL)
    first = model.fit_predict(blobs[0])
    assert np.array_equal(first, clone(model).fit_predict(blobs[0]))


def test_a_prediction_does_not_depend_on_its_batch(blobs: tuple[np.ndarray, np.ndarray]) -> None:
    model = EDCWRN(3, **SMALL, scope="batch").fit(blobs[0])
    one_by_one = np.concatenate([model.predict(row[None]) for row in blobs[0][:20]])
    assert np.array_equal(one_by_one, model.predict(blobs[0])[:20])


@pytest.mark.parametrize("colour", [False, True])
def test_images_are_clustered_as_they_are(colour: bool) -> None:
    images = np.round(load_digits().images[:200] * (255 / 16)).astype(np.uint8)
    if colour:
        images = np.stack([images, 255 - images, images], -1)
    model = IDEC(10, **SMALL, augment={"shift": 0.1, "rotate": 10}).fit(images)
    assert model.labels_.shape == (200,) and model.predict(images[:7]).shape == (7,)
    with pytest.raises(ValueError, match="images of 4 pixels"):
        model.predict(images[:, :4, :4])


def test_a_training_grows_with_its_samples_up_to_the_paper_s_interval() -> None:
    """Batches of 256: 2 and 20 an epoch; a target every 3.5 epochs, 140 steps at most."""
    small, large = (EDCWRN(3)._job(torch.zeros(count, 4)).method for count in (512, 5120))
    assert isinstance(small, EdcwrnConfig) and isinstance(large, EdcwrnConfig)
    assert (small.pretrain.steps, large.pretrain.steps) == (600, 6000)
    assert (small.refresh_every, large.refresh_every) == (10, 70)
    assert (small.steps, large.steps) == (1000, 10_000)
    assert EDCWRN(3, pretrain_steps=7)._job(torch.zeros(5120, 4)).method.pretrain.steps == 7  # type: ignore[union-attr]


def test_it_is_a_part_of_a_pipeline(blobs: tuple[np.ndarray, np.ndarray]) -> None:
    pipeline = make_pipeline(StandardScaler(), EDCWRN(3, **SMALL, scaling="none"))
    assert pipeline.fit_transform(blobs[0]).shape == (150, 4)
    assert list(pipeline[-1].get_feature_names_out()) == [f"edcwrn{number}" for number in range(4)]


def test_what_cannot_be_clustered_is_refused(blobs: tuple[np.ndarray, np.ndarray]) -> None:
    X = blobs[0].copy()
    with pytest.raises(ValueError, match=r"n_samples=4 should be >= n_clusters=5"):
        EDCWRN(5, **SMALL).fit(X[:4])
    with pytest.raises(ValueError, match=r"n_samples=3 should be > n_neighbors=3"):
        EDCWRN(3, n_neighbors=3, **SMALL).fit(X[:3])
    with pytest.raises(UserError, match=r"clustering_weight"):
        EDCWRN(3, **SMALL, clustering_weight=-1).fit(X)
    X[5, 2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        EDCWRN(3, **SMALL).fit(X)


def test_features_without_variance_and_duplicates_are_clustered(blobs: tuple[np.ndarray, np.ndarray]) -> None:
    X = np.repeat(np.column_stack([blobs[0][:50], np.full(50, 7.0)]), 3, axis=0)
    model = EDCWRN(3, **SMALL).fit(X)
    assert np.isfinite(model.transform(X)).all()
    np.testing.assert_allclose(model.feature_weights_.sum(1), 1, rtol=1e-5)


def test_long_fits_show_the_time_left(blobs: tuple[np.ndarray, np.ndarray], capsys: pytest.CaptureFixture[str]) -> None:
    IDEC(3, **SMALL, verbose=1).fit(blobs[0])
    printed = capsys.readouterr().out
    assert "pretraining of the autoencoder" in printed and "clustering" in printed


def test_it_needs_no_ray() -> None:
    script = "import sys; sys.modules['ray'] = sys.modules['deepspeed'] = None\nfrom moe_dist import EDCWRN\n"
    script += "import numpy as np; X = np.random.default_rng(0).normal(size=(20, 3))\n"
    script += "print(len(EDCWRN(2, hidden=(4,), pretrain_steps=2, max_steps=2, batch_size=8).fit_predict(X)))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "20"
