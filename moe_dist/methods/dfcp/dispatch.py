"""Which experts see a sample in the joint stage (section 3): its cluster's, those the gate prefers, and a few others.

Letters in shapes: B samples of a batch, N samples of the training set, C classes (one expert each), E experts.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from moe_dist.data.order import uniform

DISPATCH = np.uint64(32)
"""The purpose of the random numbers."""
PORTION = "portion"
"""The column of the training set with each sample's probability to be seen by an expert of another cluster."""


def portions(labels: np.ndarray, fraction: float) -> np.ndarray:
    """The probability [N] with which a sample of a cluster (labels [N]) is seen by each expert of another one.

    Its mean is `fraction`, and each cluster sends as many samples as any other, or, if it has fewer, all it has.
    """
    counts = np.bincount(labels)
    wanted, share = fraction * len(labels), 0.0
    for place, size in enumerate(np.sort(counts[counts > 0])):
        left = np.count_nonzero(counts) - place
        share = wanted / left  # what each of the clusters sends that are at least as large as this one
        if share <= size:
            break
        wanted -= size
    return np.minimum(1.0, share / np.maximum(counts, 1))[labels].astype(np.float32)


def others(portion: Tensor, experts: int, seed: int, epoch: int, samples: Tensor) -> Tensor:
    """Which experts see a sample beside those of its own, [B, E] bool, drawn from (seed, epoch, sample).

    portion [B]: see `portions`; samples [B]: numbers in the training set.
    """
    draws = uniform(seed, epoch, samples.cpu().numpy(), experts, purpose=DISPATCH)
    return torch.from_numpy(draws).to(portion.device) < portion[:, None]


def seen(labels: Tensor, gate_logits: Tensor, count: int, drawn: Tensor) -> Tensor:
    """Which experts compute a sample, [B, E] bool: its cluster's, the `count` that the gate prefers, and the drawn.

    labels [B]: the cluster's expert; gate_logits [B, E]; drawn [B, E] bool.
    """
    return drawn | preferred(gate_logits, count) | functional.one_hot(labels, gate_logits.shape[1]).bool()


def preferred(gate_logits: Tensor, count: int) -> Tensor:
    """Which `count` experts have the largest gate weights of a sample, [B, E] bool; gate_logits [B, E]."""
    experts = gate_logits.shape[1]
    best = gate_logits.detach().topk(min(count, experts), dim=1).indices
    return functional.one_hot(best, experts).any(1)
