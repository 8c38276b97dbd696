"""The equations of EDCWRN, DEC and IDEC in NumPy float64, one loop per sum: judge of methods/edcwrn/.

Letters: N samples, Q clusters, D numbers of a code; codes f are [N, D], centres r and weights w [Q, D].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def encode(x: np.ndarray, layers: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Eq 7: one vector x through layers (W, b), ReLU between them and none after the last."""
    for number, (matrix, bias) in enumerate(layers):
        x = np.array([sum(matrix[o, i] * x[i] for i in range(len(x))) + bias[o] for o in range(len(bias))])
        if number < len(layers) - 1:
            x = np.array([max(0.0, value) for value in x])
    return x


def neighbours_code(neighbours: Sequence[np.ndarray], layers: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Eq 8: the largest of the neighbours' codes, number by number."""
    codes = [encode(z, layers) for z in neighbours]
    return np.array([max(code[m] for code in codes) for m in range(len(codes[0]))])


def distance(f: np.ndarray, r: np.ndarray, w: np.ndarray) -> float:
    """The weighted squared distance inside Eq 11."""
    return sum(w[m] * (f[m] - r[m]) ** 2 for m in range(len(f)))


def proposed(f: np.ndarray, r: np.ndarray, w: np.ndarray, a: float, b: float) -> np.ndarray:
    """Eq 11: q [N, Q]."""
    return np.array([[1 / (1 + a * distance(fi, rj, wj) ** b) for rj, wj in zip(r, w)] for fi in f])


def student(f: np.ndarray, r: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Eq 4: q [N, Q], with the weights of the ablation; all 1 for IDEC's own."""
    raw = [[1 / (1 + distance(fi, rj, wj)) for rj, wj in zip(r, w)] for fi in f]
    return np.array([[value / sum(row) for value in row] for row in raw])


def target(q: np.ndarray) -> np.ndarray:
    """Eq 5: p [N, Q]."""
    samples, clusters = q.shape
    frequency = [sum(q[i, j] for i in range(samples)) for j in range(clusters)]
    p = np.zeros_like(q)
    for i in range(samples):
        raised = [q[i, j] ** 2 / frequency[j] for j in range(clusters)]
        p[i] = [value / sum(raised) for value in raised]
    return p


def cross_entropy(p: np.ndarray, q: np.ndarray, normalise: bool) -> np.ndarray:
    """Eq 13 with its sign, of each sample [N]."""
    losses = []
    for pi, qi in zip(p, q):
        total = sum(qi) if normalise else 1.0
        losses.append(-sum(pj * math.log(qj / total) for pj, qj in zip(pi, qi)))
    return np.array(losses)


def divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL(p || q) of each sample [N]."""
    return np.array([sum(pj * math.log(pj / qj) for pj, qj in zip(pi, qi) if pj > 0) for pi, qi in zip(p, q)])


def weights(q: np.ndarray, f: np.ndarray, r: np.ndarray, alpha: float) -> np.ndarray:
    """Eq 15 as printed: w [Q, D]."""
    samples, clusters = q.shape
    size = f.shape[1]
    w = np.zeros((clusters, size))
    for j in range(clusters):
        spread = [sum(q[i, j] ** alpha * (f[i, m] - r[j, m]) ** 2 for i in range(samples)) for m in range(size)]
        for m in range(size):
            w[j, m] = 1 / sum(spread[m] / spread[s] for s in range(size))
    return w


def gradient_by_codes(p: np.ndarray, f: np.ndarray, r: np.ndarray, w: np.ndarray, a: float, b: float) -> np.ndarray:
    """A.1 corrected: of -sum_i sum_j p_ij log q_ij by f [N, D], with the sum over features raised to b - 1."""
    gradient = np.zeros_like(f)
    for i in range(len(f)):
        for m in range(f.shape[1]):
            for j in range(len(r)):
                gradient[i, m] += _term(p[i, j], f[i], r[j], w[j], m, a, b)
    return gradient


def gradient_by_centres(p: np.ndarray, f: np.ndarray, r: np.ndarray, w: np.ndarray, a: float, b: float) -> np.ndarray:
    """A.2 corrected: the same by r [Q, D]."""
    gradient = np.zeros_like(r)
    for j in range(len(r)):
        for m in range(r.shape[1]):
            for i in range(len(f)):
                gradient[j, m] -= _term(p[i, j], f[i], r[j], w[j], m, a, b)
    return gradient


def _term(p: float, f: np.ndarray, r: np.ndarray, w: np.ndarray, m: int, a: float, b: float) -> float:
    """What sample and cluster add to the derivative by f_m."""
    d = distance(f, r, w)
    return 2 * a * b * p * w[m] * (f[m] - r[m]) * d ** (b - 1) / (a * d**b + 1)


def printed_gradient_by_codes(
    p: np.ndarray, f: np.ndarray, r: np.ndarray, w: np.ndarray, a: float, b: float
) -> np.ndarray:
    """A.1 as it is printed, of the unnegated Eq 13."""
    gradient = np.zeros_like(f)
    for i in range(len(f)):
        for m in range(f.shape[1]):
            for j in range(len(r)):
                d = w[j, m] * (r[j, m] - f[i, m]) ** 2
                numerator = p[i, j] * w[j, m] * (r[j, m] - f[i, m]) * d ** (b - 1)
                gradient[i, m] += 2 * a * b * numerator / (a * d**b + 1)
    return gradient


def nearest(codes: np.ndarray, count: int) -> list[list[int]]:
    """The rows of the `count` nearest others of each code, nearest first, of equal ones the first."""
    found = []
    for i, code in enumerate(codes):
        others = [(sum((code - other) ** 2), j) for j, other in enumerate(codes) if j != i]
        found.append([j for _, j in sorted(others)[:count]])
    return found


def inter_cluster_variance(codes: np.ndarray, clusters: np.ndarray) -> float:
    """The mean squared distance of the clusters' means to the mean of these means."""
    means = [
        [sum(values) / len(values) for values in zip(*(codes[i] for i in range(len(codes)) if clusters[i] == number))]
        for number in sorted(set(clusters.tolist()))
    ]
    middle = [sum(values) / len(means) for values in zip(*means)]
    return sum(sum((value - centre) ** 2 for value, centre in zip(mean, middle)) for mean in means) / len(means)
