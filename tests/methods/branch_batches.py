"""Batches for methods that train a branch network."""

import torch

from moe_dist.data.batch import Batch

SIDE = 8


def batch_of(labels: list[int], padding: int = 0) -> Batch:
    """Images drawn from their number; `padding` more of them weigh nothing."""
    count = len(labels) + padding
    images = torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    weight = torch.tensor([1 / len(labels)] * len(labels) + [0.0] * padding)
    return Batch(images, torch.tensor(labels + [2] * padding), torch.arange(count), weight)
