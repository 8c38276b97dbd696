"""The sparse layer in NumPy float64, with loops, as GShard and the Switch Transformer have it: judge of models/sparse.

Letters: T tokens, D features, E experts, k choices. Ties between logits are the tests' to avoid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Switch, Eq 1: softmax of each row of logits [T, E]."""
    rows = [[math.exp(logit) for logit in row] for row in logits]
    return np.array([[value / sum(row) for value in row] for row in rows])


def choices(logits: np.ndarray, k: int) -> list[list[int]]:
    """Each token's k experts of largest logit, largest first."""
    return [sorted(range(len(row)), key=lambda e: -row[e])[:k] for row in logits]


def kept_of_two(chosen: Sequence[Sequence[int]], experts: int, capacity: int) -> np.ndarray:
    """GShard, Algorithm 1: [T, 2], who finds room. All first choices queue before all second ones, in tokens' order."""
    kept = np.zeros((len(chosen), 2), dtype=bool)
    waiting = [0] * experts
    for rank in (0, 1):
        for token, own in enumerate(chosen):
            kept[token, rank] = waiting[own[rank]] < capacity
            waiting[own[rank]] += 1
    return kept


def weights(probability: np.ndarray, chosen: Sequence[Sequence[int]], kept: np.ndarray) -> np.ndarray:
    """[T, k]: one choice weighs its probability (Switch, Eq 2); two theirs over the sum of those kept (GShard)."""
    result = np.zeros(kept.shape)
    for token, own in enumerate(chosen):
        values = [probability[token, expert] if kept[token, rank] else 0.0 for rank, expert in enumerate(own)]
        total = sum(values) if len(own) == 2 and sum(values) > 0 else 1.0
        result[token] = [value / total for value in values]
    return result


def balance(probability: np.ndarray, chosen: Sequence[Sequence[int]]) -> float:
    """Switch, Eq 4-6 without alpha: E * sum over experts of (share of first choices) * (mean probability)."""
    tokens, experts = probability.shape
    total = 0.0
    for expert in range(experts):
        share = sum(own[0] == expert for own in chosen) / tokens
        total += share * sum(probability[token, expert] for token in range(tokens)) / tokens
    return experts * total


def mixed(
    tokens: np.ndarray,
    chosen: Sequence[Sequence[int]],
    weight: np.ndarray,
    experts: Sequence[Callable[[np.ndarray], np.ndarray]],
) -> np.ndarray:
    """[T, D]: the weighted sum of the chosen experts' outputs for each token."""
    result = np.zeros(tokens.shape)
    for token, own in enumerate(chosen):
        for rank, expert in enumerate(own):
            result[token] += weight[token, rank] * experts[expert](tokens[token])
    return result
