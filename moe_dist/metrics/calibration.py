"""Whether probabilities mean what they say, a temperature that mends them, and what is kept above a threshold.

Letters: N samples, C classes, K bins.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

BINS = 15
"""As in Guo et al. 2017."""
TEMPERATURES = (0.05, 20.0)
"""The smallest and the largest one that is fitted. Where all of a split is right, none would be small enough."""


class Reliability(NamedTuple):
    """Bins of probabilities of equal width, and what is in them; NaN in a bin without samples.

    probability [K]: the mean probability of a bin's samples; right [K]: the share of them whose class is right;
    share [K]: how many of all samples the bin has.
    """

    probability: np.ndarray
    right: np.ndarray
    share: np.ndarray


def reliability(probabilities: np.ndarray, right: np.ndarray, bins: int = BINS) -> Reliability:
    """The bins of a reliability diagram. probabilities [N]: of the predicted classes; right [N] bool."""
    assert len(probabilities) == len(right) > 0
    numbers = np.clip(np.ceil(probabilities * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(numbers, minlength=bins)
    sums = (np.bincount(numbers, weights=values, minlength=bins) for values in (probabilities, right))
    probability, share = (np.divide(total, counts, out=np.full(bins, np.nan), where=counts > 0) for total in sums)
    return Reliability(probability, share, counts / len(right))


def calibration_error(probabilities: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """The expected calibration error (Guo et al. 2017): how far probabilities are from the share that is right.

    probabilities [N]: of the predicted classes; right [N] bool. The mean distance of both, over `bins` of equal width,
    each weighing as much as it has samples.
    """
    found = reliability(probabilities, right, bins)
    return float(np.nansum(found.share * np.abs(found.probability - found.right)))


def calibration_error_of(log_probs: np.ndarray, labels: np.ndarray) -> float:
    """The calibration error of predictions `log_probs` [N, C] of the classes `labels` [N]."""
    return calibration_error(np.exp(log_probs.max(1)), log_probs.argmax(1) == labels)


def tempered(log_probs: np.ndarray, temperature: float) -> np.ndarray:
    """Predictions [N, C] whose logits are divided by `temperature`; which class is the likeliest stays."""
    return log_softmax(log_probs.astype(np.float64) / temperature, axis=1)


def negative_log_likelihood(log_probs: np.ndarray, labels: np.ndarray) -> float:
    """The mean negative log-likelihood of `labels` [N] under `log_probs` [N, C], in nats."""
    return float(-log_probs[np.arange(len(labels)), labels].mean(dtype=np.float64))


def fitted_temperature(log_probs: np.ndarray, labels: np.ndarray) -> float:
    """The temperature under which predictions [N, C] give `labels` [N] the largest likelihood (Guo et al. 2017).

    It lies within TEMPERATURES.
    """
    assert len(labels) == len(log_probs) > 0
    low, high = np.log(TEMPERATURES)
    found = minimize_scalar(
        lambda logarithm: negative_log_likelihood(tempered(log_probs, np.exp(logarithm)), labels),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return float(np.exp(found.x))


def kept_above(probabilities: np.ndarray, right: np.ndarray, threshold: float) -> tuple[float, float | None]:
    """The share of samples whose class has a probability of `threshold` or more, and which share of these is right.

    The second is None where no sample is kept. probabilities [N]: of the predicted classes; right [N] bool.
    """
    kept = probabilities >= threshold
    return float(kept.mean()), float(right[kept].mean()) if kept.any() else None
