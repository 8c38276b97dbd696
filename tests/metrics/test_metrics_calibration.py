"""Calibration against loops over bins, a scan of temperatures, and numbers worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from moe_dist.metrics.calibration import (
    TEMPERATURES,
    calibration_error,
    calibration_error_of,
    fitted_temperature,
    kept_above,
    negative_log_likelihood,
    reliability,
    tempered,
)


def too_sure(images: int, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from probabilities, and predictions whose logits are `sharpness` times too large."""
    random = np.random.default_rng(0)
    true = tempered(2 * random.normal(size=(images, 5)), 1.0)
    labels = np.array([random.choice(5, p=np.exp(row)) for row in true])
    return labels, tempered(true * sharpness, 1.0)


def test_the_calibration_error_is_the_mean_distance_of_probability_and_share() -> None:
    """By a loop over bins, and by hand: 0.9 is said of two images, of which one is right, and 0.5 of one that is."""
    by_hand = (2 * abs(0.9 - 0.5) + abs(0.5 - 1)) / 3
    assert calibration_error(np.array([0.9, 0.9, 0.5]), np.array([True, False, True])) == pytest.approx(by_hand)
    random = np.random.default_rng(0)
    shares = np.append(random.random(500), [0.0, 1.0])
    right = random.random(502) < shares**2
    wanted = 0.0
    for number in range(10):
        inside = (shares > number / 10) & (shares <= (number + 1) / 10) | ((number == 0) & (shares == 0))
        wanted += inside.mean() * abs(shares[inside].mean() - right[inside].mean())
    assert calibration_error(shares, right, bins=10) == pytest.approx(wanted)


def test_the_bins_of_a_reliability_diagram_by_hand() -> None:
    found = reliability(np.array([0.2, 0.4, 0.9]), np.array([False, True, True]), bins=2)
    np.testing.assert_allclose(found.probability, [0.3, 0.9])
    np.testing.assert_allclose(found.right, [0.5, 1.0])
    np.testing.assert_allclose(found.share, [2 / 3, 1 / 3])
    empty = reliability(np.array([0.9]), np.array([True]), bins=2)
    assert np.isnan(empty.probability[0]) and empty.share[0] == 0


@pytest.mark.parametrize("sharpness", [3.0, 0.5])
def test_the_temperature_undoes_what_made_probabilities_wrong(sharpness: float) -> None:
    labels, log_probs = too_sure(4000, sharpness)
    temperature = fitted_temperature(log_probs, labels)
    assert temperature == pytest.approx(sharpness, rel=0.1)
    scanned = [negative_log_likelihood(tempered(log_probs, t), labels) for t in np.geomspace(0.1, 10, 200)]
    assert negative_log_likelihood(tempered(log_probs, temperature), labels) <= min(scanned) + 1e-6
    assert calibration_error_of(tempered(log_probs, temperature), labels) < 0.5 * calibration_error_of(
        log_probs, labels
    )


def test_a_temperature_changes_no_class_and_stays_within_its_bounds() -> None:
    _, log_probs = too_sure(200, 1.0)
    np.testing.assert_array_equal(tempered(log_probs, 7.0).argmax(1), log_probs.argmax(1))
    np.testing.assert_allclose(np.exp(tempered(log_probs, 7.0)).sum(1), 1.0)
    assert fitted_temperature(log_probs, log_probs.argmax(1)) == pytest.approx(TEMPERATURES[0], rel=1e-3)
    assert fitted_temperature(log_probs, log_probs.argmin(1)) == pytest.approx(TEMPERATURES[1], rel=1e-3)


def test_what_a_threshold_keeps_by_hand() -> None:
    probabilities, right = np.array([0.5, 0.9, 0.9, 1.0]), np.array([True, False, True, True])
    assert kept_above(probabilities, right, 0.9) == (0.75, pytest.approx(2 / 3))
    assert kept_above(probabilities[:3], right[:3], 0.95) == (0.0, None)
