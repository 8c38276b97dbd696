"""An update of the target: what all samples' codes say of neighbours, weights, target and labels, and its numbers.

Letters: B samples of a batch, N samples of the training set, D numbers of a code, Q clusters, k neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from moe_dist.methods.edcwrn import equations
from moe_dist.methods.edcwrn.config import EdcwrnConfig
from moe_dist.methods.edcwrn.neighbours import nearest_of_all
from moe_dist.methods.edcwrn.starts import share_within
from moe_dist.metrics.clustering import clustering_metrics

NEIGHBOURS = "neighbours"
AT_ONCE = 2**14
"""Codes whose distances from all centres, feature by feature, are in memory at once."""


@torch.no_grad()
def update(
    config: EdcwrnConfig,
    centres: Tensor,
    weights: Tensor,
    encoded: Mapping[str, np.ndarray],
    before: np.ndarray | None,
) -> dict[str, np.ndarray]:
    """The codes, weights [Q, D], target [N, Q], label [N] and, where codes have them, neighbours [N, k] by name.

    within []: the share of the codes' variance within clusters, see starts.py.
    encoded: what the encoders give for all samples, as sum_of_codes takes it; before [N, k]: the neighbours until now.
    """
    found: dict[str, np.ndarray] = {}
    codes = sum_of_codes(encoded, before)
    if config.neighbours.count:
        found[NEIGHBOURS] = nearest_of_all(codes, config.neighbours.count)
        codes = sum_of_codes(encoded, found[NEIGHBOURS])
    of_all = torch.from_numpy(codes)
    assignments = _assignments(config, of_all, centres, weights)
    if config.weighting.enabled and config.weighting.scope == "all":
        weights = equations.feature_weights(equations.spreads(assignments, of_all, centres, config.weighting.alpha))
        assignments = _assignments(config, of_all, centres, weights)
    target, label = equations.target_distribution(assignments), assignments.argmax(1).numpy()
    within = np.array(share_within(codes, label, len(centres)))
    found |= {"codes": codes, "weights": weights.numpy(), "target": target.numpy(), "label": label}
    return found | {"within": within}


def sum_of_codes(encoded: Mapping[str, np.ndarray], neighbours: np.ndarray | None) -> np.ndarray:
    """Eq 9, f [N, D], from the encoders' outputs [N, D]: own, and where codes have neighbours beside.

    neighbours [N, k], or None: every sample is its own.
    """
    if "beside" not in encoded:
        return encoded["own"]
    beside = encoded["beside"]
    return encoded["own"] + (beside if neighbours is None else beside[neighbours].max(1))


def log_assignments(config: EdcwrnConfig, codes: Tensor, centres: Tensor, weights: Tensor) -> Tensor:
    """log q [B, Q] of codes [B, D], by the configured formulation and weighting."""
    weighting = config.weighting
    distances = equations.weighted_distances(codes, centres, weights if weighting.enabled else None)
    if weighting.enabled and weighting.total == "size":
        distances = distances * codes.shape[1]
    if config.formulation == "idec":
        return equations.log_student(distances)
    return equations.log_proposed(distances, config.a, config.b)


def _assignments(config: EdcwrnConfig, codes: Tensor, centres: Tensor, weights: Tensor) -> Tensor:
    """q [N, Q] of all samples' codes [N, D], by blocks."""
    blocks = [log_assignments(config, block, centres, weights) for block in codes.split(AT_ONCE)]
    return torch.cat(blocks).exp()


def scores(clusters: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """ACC and NMI of clusters [N]; nothing where samples have no labels, or all the same one."""
    if not len(labels) or labels.min() < 0 or labels.min() == labels.max():
        return {}
    metrics = clustering_metrics(clusters, labels)
    return {"accuracy": metrics["accuracy"], "nmi": metrics["nmi"]}


def inter_cluster_variance(codes: np.ndarray, clusters: np.ndarray) -> dict[str, float]:
    """Table 4: the mean squared distance of the clusters' means to the mean of these means."""
    means = np.stack([codes[clusters == cluster].mean(0, dtype=np.float64) for cluster in np.unique(clusters)])
    return {"inter_cluster_variance": float(np.square(means - means.mean(0)).sum(1).mean())}
