"""The long-tail losses in NumPy float64, one loop per sum: judge of methods/longtail/losses.py.

Letters: B samples, M experts, C classes. Logits are [B, M, C]; counts: training images of each class. Ties between the
mean logits of classes are the tests' to avoid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from tests.reference.icl import divergence, softmax

Rows = Sequence[int]


def each_expert(logits: np.ndarray, labels: Rows, loss: Callable[[int, np.ndarray, int], float]) -> np.ndarray:
    """loss(number of the expert, its logits [C], label) of every sample and expert: [B, M]."""
    return np.array([[loss(m, z, y) for m, z in enumerate(row)] for row, y in zip(logits, labels)])


def focal(logits: np.ndarray, labels: Rows, gamma: float) -> np.ndarray:
    """Lin et al., Eq 4."""

    def loss(_: int, z: np.ndarray, y: int) -> float:
        p = softmax(z)[y]
        return -((1 - p) ** gamma) * math.log(p)

    return each_expert(logits, labels, loss)


def balanced_softmax(logits: np.ndarray, labels: Rows, counts: Sequence[int], tau: float = 1.0) -> np.ndarray:
    """-log of n_y^tau e^z_y / sum n_c^tau e^z_c."""

    def loss(_: int, z: np.ndarray, y: int) -> float:
        shares = [counts[c] ** tau * math.exp(z[c]) for c in range(len(z))]
        return -math.log(shares[y] / sum(shares))

    return each_expert(logits, labels, loss)


def margins(counts: Sequence[int], largest: float) -> list[float]:
    """Cao et al.: proportional to n_c^(-1/4)."""
    raw = [1 / math.sqrt(math.sqrt(count)) for count in counts]
    return [largest * value / max(raw) for value in raw]


def ldam(logits: np.ndarray, labels: Rows, margins: Sequence[float]) -> np.ndarray:
    """-log of e^(z_y - margin_y) / (e^(z_y - margin_y) + sum of e^z_c over the other classes)."""

    def loss(_: int, z: np.ndarray, y: int) -> float:
        own = math.exp(z[y] - margins[y])
        return -math.log(own / (own + sum(math.exp(z[c]) for c in range(len(z)) if c != y)))

    return each_expert(logits, labels, loss)


def effective_weights(counts: Sequence[int], beta: float) -> list[float]:
    """Cui et al.: one over 1 + beta + ... + beta^(n_c - 1), scaled to a sum of C."""
    raw = [1 / sum(beta**k for k in range(count)) for count in counts]
    return [len(counts) * value / sum(raw) for value in raw]


def ride_temperatures(counts: Sequence[int], temperature: float, factor: float) -> list[float]:
    """Wang et al., Eq 3, divided by its maximum as in their code."""
    raw = [factor * len(counts) * count / sum(counts) + (1 - factor) for count in counts]
    return [temperature * value / max(raw) for value in raw]


def ride_diversity(logits: np.ndarray, temperatures: Sequence[float]) -> np.ndarray:
    """Sum over experts of mean(T)^2 KL(softmax(mean / T) || softmax(z / T)): [B]."""
    losses = []
    for row in logits:
        mean = softmax([sum(z[c] for z in row) / len(row) / t for c, t in enumerate(temperatures)])
        own = [softmax([z[c] / t for c, t in enumerate(temperatures)]) for z in row]
        losses.append((sum(temperatures) / len(temperatures)) ** 2 * sum(divergence(mean, p) for p in own))
    return np.array(losses)


def mutual_divergence(logits: np.ndarray) -> np.ndarray:
    """KL over all ordered pairs of experts: [B]."""
    losses = []
    for row in logits:
        p = [softmax(z) for z in row]
        losses.append(sum(divergence(p[m], p[n]) for m in range(len(p)) for n in range(len(p)) if m != n))
    return np.array(losses)


def hard_negatives(logits: np.ndarray, labels: Rows) -> np.ndarray:
    """Jin et al.: KL of the gathered teacher to each expert over the classes but the label: [B]."""
    losses = []
    for row, y in zip(logits, labels):
        others = [c for c in range(row.shape[1]) if c != y]
        mean = {c: sum(z[c] for z in row) / len(row) for c in others}
        hardest = max(others, key=lambda c: mean[c])
        teacher = softmax([mean[c] if c == hardest else max(z[c] for z in row) for c in others])
        losses.append(sum(divergence(teacher, softmax([z[c] for c in others])) for z in row))
    return np.array(losses)


def balpoe(logits: np.ndarray, labels: Rows, counts: Sequence[int], lambdas: Sequence[float]) -> np.ndarray:
    """-log of n_y^(1 - lambda_m) e^z_y / sum n_c^(1 - lambda_m) e^z_c."""

    def loss(m: int, z: np.ndarray, y: int) -> float:
        shares = [counts[c] ** (1 - lambdas[m]) * math.exp(z[c]) for c in range(len(z))]
        return -math.log(shares[y] / sum(shares))

    return each_expert(logits, labels, loss)
