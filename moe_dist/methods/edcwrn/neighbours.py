"""Nearest neighbours of codes: among all of a set, within a batch, and of new samples among those that are known.

Letters: B samples of a batch, N samples of a set, D numbers of a code, k neighbours.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from moe_dist.errors import UserError

EXACT = "donot_use_mm_for_euclid_dist"
"""Pair by pair: by a matrix product, distances of near codes far from 0 are lost in rounding."""
DISTANCES_AT_ONCE = 2**22
"""Numbers of a block of distances: 16 MiB."""


def nearest_of_all(codes: np.ndarray, count: int) -> np.ndarray:
    """The rows [N, k] of each code's nearest others, nearest first, by Euclidean distance of codes [N, D]; exact.

    scikit-learn searches a k-d tree, or blocks of distances where codes are long: no array [N, N] is made. A code is
    not its own neighbour, its duplicates are. Raises UserError where there are no so many others.
    """
    require_neighbours(count, len(codes))
    search = NearestNeighbors(n_neighbors=count).fit(codes)
    return search.kneighbors(return_distance=False).astype(np.int64)


def require_neighbours(count: int, samples: int) -> None:
    """Raise UserError where samples have fewer than `count` others."""
    if count >= samples:
        raise UserError(
            f"neighbours.count = {count}: {samples} samples have {samples - 1} others each at most; lower it, or give "
            "more samples"
        )


def nearest_in_batch(codes: Tensor, valid: Tensor, count: int) -> Tensor:
    """The rows [B, k] of each code's nearest others among the valid rows of a batch, from codes [B, D] and valid [B].

    Where there are too few, a sample is its own neighbour.
    """
    own = torch.arange(len(codes), device=codes.device)
    distances = (
        torch.cdist(codes, codes, compute_mode=EXACT).masked_fill(~valid[None, :], torch.inf).fill_diagonal_(torch.inf)
    )
    found = distances.topk(min(count, len(codes)), largest=False)
    rows = torch.where(found.values.isfinite(), found.indices, own[:, None])
    return torch.cat([rows, own[:, None].expand(-1, count - rows.shape[1])], 1)


def nearest_known(codes: Tensor, known: Tensor, count: int) -> Tensor:
    """The rows [B, k] in `known` [N, D] that are nearest to new codes [B, D], by blocks of distances.

    An exported graph, which is of any B, computes all distances at once.
    """
    at_once = max(1, DISTANCES_AT_ONCE // len(known))
    blocks = (codes,) if torch.compiler.is_exporting() else codes.split(at_once)
    nearest = [torch.cdist(block, known, compute_mode=EXACT).topk(count, largest=False).indices for block in blocks]
    return torch.cat(nearest)
