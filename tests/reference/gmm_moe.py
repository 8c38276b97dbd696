"""The equations of the GMM-gated mixture of experts in NumPy, float64, one place of a map after another.

Letters in shapes: B samples of a batch, E experts, D features, K channels of a map, s map side.
"""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp
from scipy.stats import norm


def prior(fixed: np.ndarray, conditional: np.ndarray, raw_blend: float) -> np.ndarray:
    """log pi(x) [E] (Eq 16) from the fixed logits [E] and one image's conditional logits [E]."""
    blend = 1 / (1 + np.exp(-raw_blend))
    logits = (1 - blend) * fixed + blend * conditional
    return logits - logsumexp(logits)


def log_joint(h: np.ndarray, log_prior: np.ndarray, means: np.ndarray, precisions: np.ndarray) -> np.ndarray:
    """log pi_k + log N(h | mu_k, 1 / tau_k) [E] of one vector h [D], without -D/2 log 2 pi."""
    found = []
    for k in range(len(means)):
        density = norm.logpdf(h, means[k], 1 / np.sqrt(precisions[k])).sum()
        found.append(log_prior[k] + density + 0.5 * len(h) * np.log(2 * np.pi))
    return np.array(found)


def responsibilities(joint: np.ndarray, temperature: float, dim: int) -> np.ndarray:
    """gamma [E] (Eq 10-11) of one place's log-responsibilities [E]."""
    effective = temperature * 512 / dim
    return np.exp(joint / effective - logsumexp(joint / effective))


def layer_norm(h: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Layer normalisation of one vector [D]."""
    return (h - h.mean()) / np.sqrt(h.var() + 1e-5) * scale + shift


def softplus(u: np.ndarray) -> np.ndarray:
    """log(1 + exp(u))."""
    return np.logaddexp(0, u)


def convolution(maps: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """A convolution of one map [D, s, s] by [W, D, k, k] with zeros around: [W, s, s]."""
    kernel, side = weight.shape[2], maps.shape[1]
    margin = kernel // 2
    padded = np.pad(maps, ((0, 0), (margin, margin), (margin, margin)))
    output = np.zeros((len(weight), side, side))
    for i in range(side):
        for j in range(side):
            patch = padded[:, i : i + kernel, j : j + kernel]
            output[:, i, j] = [(patch * filters).sum() for filters in weight]
    return output


def expert(maps: np.ndarray, weight: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Convolution, batch normalisation by running statistics [W] (scale 1, shift 0), ReLU: [W, s, s]."""
    values = convolution(maps, weight)
    return np.maximum((values - mean[:, None, None]) / np.sqrt(variance[:, None, None] + 1e-5), 0)


def average_pool(maps: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 places of one map [K, s, s], of fewer at an odd edge: [K, (s + 1) // 2, (s + 1) // 2]."""
    side = (maps.shape[1] + 1) // 2
    output = np.zeros((len(maps), side, side))
    for i in range(side):
        for j in range(side):
            output[:, i, j] = maps[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((1, 2))
    return output


def bilinear(maps: np.ndarray, side: int) -> np.ndarray:
    """One map [D, s, s] resized to `side`, pixels as areas."""
    small = maps.shape[1]
    output = np.zeros((len(maps), side, side))
    centres = np.clip((np.arange(side) + 0.5) * small / side - 0.5, 0, small - 1)
    for i, y in enumerate(centres):
        for j, x in enumerate(centres):
            top, left = int(y), int(x)
            bottom, right = min(top + 1, small - 1), min(left + 1, small - 1)
            down, across = y - top, x - left
            upper = maps[:, top, left] * (1 - across) + maps[:, top, right] * across
            lower = maps[:, bottom, left] * (1 - across) + maps[:, bottom, right] * across
            output[:, i, j] = upper * (1 - down) + lower * down
    return output


def negative_log_likelihood(joint: np.ndarray) -> float:
    """Eq 15a without constants, of one image's log-responsibilities [s, s, E]."""
    return -float(np.mean([logsumexp(place) for row in joint for place in row]))


def balance(gamma: np.ndarray) -> float:
    """L_bal (Eq 15b) of one image's gamma [E, s, s]."""
    return sum((gamma[k].mean() - 1 / len(gamma)) ** 2 for k in range(len(gamma)))


def farthest_points(points: np.ndarray, count: int) -> list[int]:
    """Farthest-point sampling from the first of `points` [n, D]."""
    chosen = [0]
    while len(chosen) < count:
        nearest = [min(np.linalg.norm(point - points[row]) for row in chosen) for point in points]
        chosen.append(int(np.argmax(nearest)))
    return chosen


def separation(means: np.ndarray, precisions: np.ndarray) -> float:
    """The mean distance of two means over the mean standard deviation."""
    pairs = [(i, j) for i in range(len(means)) for j in range(i)]
    distance = np.mean([np.linalg.norm(means[i] - means[j]) for i, j in pairs])
    return float(distance / np.mean(1 / np.sqrt(precisions)))
