"""ICL's equations in NumPy float64, one loop per sum: judge of methods/icl.

Letters: B samples, M experts, C classes, D features. Ties between confusion counts are the tests' to avoid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def cosine(left: np.ndarray, right: np.ndarray) -> float:
    """The cosine of the angle between two vectors; 0 where one has no length."""
    lengths = math.sqrt(float(left @ left)) * math.sqrt(float(right @ right))
    return float(left @ right) / lengths if lengths else 0.0


def diversity(features: np.ndarray, least: float = -1) -> np.ndarray:
    """Eq 3 for each sample of features [B, M, D]; a smaller cosine counts as `least`."""
    experts = range(features.shape[1])
    return np.array(
        [sum(max(cosine(row[m], row[n]), least) for m in experts for n in experts if m != n) for row in features]
    )


def confusion_after(
    confusion: np.ndarray, predicted: np.ndarray, labels: Sequence[int], valid: Sequence[bool], alpha: float
) -> np.ndarray:
    """Eq 4: confusion [M, C, C] after a batch; predicted [B, M]."""
    counts = np.zeros_like(confusion)
    for row, label, counted in zip(predicted, labels, valid):
        for expert, guess in enumerate(row):
            if counted and guess != label:
                counts[expert, label, guess] += 1
    return alpha * confusion + (1 - alpha) * counts


def prototypes_after(
    prototypes: np.ndarray, features: np.ndarray, labels: Sequence[int], valid: Sequence[bool], beta: float
) -> np.ndarray:
    """Eq 5: prototypes [M, C, D] after a batch of features [B, M, D]."""
    after = prototypes.copy()
    for expert in range(prototypes.shape[0]):
        for c in range(prototypes.shape[1]):
            own = [row[expert] for row, label, counted in zip(features, labels, valid) if counted and label == c]
            if own:
                after[expert, c] = beta * prototypes[expert, c] + (1 - beta) * sum(own) / len(own)
    return after


def most_confused(confusion: np.ndarray, prototypes: np.ndarray, c: int, k: int) -> list[int]:
    """N(c) of Eq 6 for one expert: confusion [C, C], prototypes [C, D]; largest first."""
    others = [other for other in range(len(confusion)) if other != c]
    confused = [other for other in others if confusion[c, other] > 0 and prototypes[other].any()]
    return sorted(confused, key=lambda other: -confusion[c, other])[:k]


def contrast(
    features: np.ndarray,
    labels: Sequence[int],
    confusion: np.ndarray,
    prototypes: np.ndarray,
    k: int,
    tau: float,
    negatives: str = "sum",
) -> np.ndarray:
    """Eq 6 for each sample, summed over experts; features [B, M, D], confusion [M, C, C], prototypes [M, C, D]."""
    losses = []
    for row, c in zip(features, labels):
        total = 0.0
        for expert, h in enumerate(row):
            own = math.exp(cosine(h, prototypes[expert, c]) / tau)
            others = most_confused(confusion[expert], prototypes[expert], c, k)
            rest = sum(math.exp(cosine(h, prototypes[expert, other]) / tau) for other in others)
            if negatives == "mean" and len(others):
                rest /= len(others)
            total -= math.log(own / (own + rest))
        losses.append(total)
    return np.array(losses)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Of a vector."""
    powers = [math.exp(logit) for logit in logits]
    return np.array([power / sum(powers) for power in powers])


def cross_entropies(logits: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """[B, M] of logits [B, M, C]."""
    return np.array([[-math.log(softmax(z)[c]) for z in row] for row, c in zip(logits, labels)])


def parallel(means: Sequence[float], epsilon: float) -> float:
    """Eq 8 of the experts' mean losses."""
    return 1 / sum(1 / (mean + epsilon) for mean in means)


def parallel_gradient(means: Sequence[float], epsilon: float) -> np.ndarray:
    """Eq 9: the derivative of Eq 8 by each mean loss."""
    total = sum(1 / (mean + epsilon) for mean in means)
    return np.array([1 / (total**2 * (mean + epsilon) ** 2) for mean in means])


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """KL(p || q)."""
    return sum(p[c] * math.log(p[c] / q[c]) for c in range(len(p)))


def distillation(logits: np.ndarray) -> np.ndarray:
    """Eq 10 for each sample: both directions of every pair, over M (M - 1); logits [B, M, C]."""
    losses = []
    for row in logits:
        probabilities = [softmax(z) for z in row]
        experts = range(len(row))
        pairs = [(m, n) for m in experts for n in experts if m < n]
        total = sum(
            divergence(probabilities[m], probabilities[n]) + divergence(probabilities[n], probabilities[m])
            for m, n in pairs
        )
        losses.append(total / (len(row) * (len(row) - 1)))
    return np.array(losses)


def logit_adjusted(logits: np.ndarray, labels: Sequence[int], counts: Sequence[int]) -> np.ndarray:
    """Eq 13 for each sample: logits [B, M, C], training images of each class [C]."""
    losses = []
    for row, y in zip(logits, labels):
        total = 0.0
        for z in row:
            weighted = [counts[c] * math.exp(z[c]) for c in range(len(z))]
            total -= math.log(weighted[y] / sum(weighted))
        losses.append(total)
    return np.array(losses)
