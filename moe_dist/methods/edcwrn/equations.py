"""The equations of EDCWRN, and of DEC and IDEC where they differ, as functions of tensors.

Letters: B samples, N all samples, Q clusters, D numbers of a code. Codes f are [B, D], centres r and weights w [Q, D].

    DEC     Xie, Girshick, Farhadi, Unsupervised deep embedding for clustering analysis, ICML 2016
    IDEC    Guo, Gao, Liu, Yin, Improved deep embedded clustering with local structure preservation, IJCAI 2017

Assignments are passed on as logarithms: far from every centre all of them round to 0, and their logarithms do not.
Readings: Eq 13 is printed without its sign. Appendix A.1 and A.2 raise the term of each feature to the power b - 1,
where Eq 11 needs their sum; autograd takes the gradient of Eq 11 as it stands.
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST_DISTANCE = 1e-12
"""Of a sample from a centre, in Eq 11: at 0 the power b < 1 has no finite gradient."""
SMALLEST_SPREAD = 1e-9
"""Of a feature of a cluster as a share of the largest one, in Eq 15: a feature without any would leave 0 / 0."""


def weighted_distances(codes: Tensor, centres: Tensor, weights: Tensor | None = None) -> Tensor:
    """Squared distances [B, Q] of codes to centres, sum_m w_jm (f_im - r_jm)^2; without weights every w is 1."""
    squares = (codes[:, None] - centres).square()
    return (squares if weights is None else weights * squares).sum(2)


def log_proposed(distances: Tensor, a: float, b: float) -> Tensor:
    """log q [B, Q] of Eq 11, q = 1 / (1 + a d^b), from the squared distances d [B, Q]; q is not normalised."""
    return -torch.log1p(a * distances.clamp_min(SMALLEST_DISTANCE) ** b)


def log_student(distances: Tensor) -> Tensor:
    """log q [B, Q] of Eq 4: Student's t of the squared distances [B, Q], normalised over the clusters."""
    return -torch.log1p(distances) - torch.logsumexp(-torch.log1p(distances), 1, keepdim=True)


def target_distribution(assignments: Tensor) -> Tensor:
    """p [N, Q] of Eq 5 from q [N, Q] of all samples: q^2 over the cluster's sum of q, normalised over the clusters.

    A cluster without any sample takes no part; a sample that every q rounds to 0 for is shared out evenly.
    """
    raised = assignments.square() / _positive(assignments.sum(0))
    sums = raised.sum(1, keepdim=True)
    even = torch.full_like(raised, 1 / raised.shape[1])
    return torch.where(sums > 0, raised / _positive(sums), even)


def cross_entropy(targets: Tensor, log_assignments: Tensor, normalise: bool) -> Tensor:
    """L_c of each sample [B], Eq 13: -sum_j p_ij log q_ij, from p and log q [B, Q].

    normalise: of q normalised over the clusters. With q as it is, this loss alone lets every q grow.
    """
    logs = log_assignments.log_softmax(1) if normalise else log_assignments
    return -(targets * logs).sum(1)


def divergence(targets: Tensor, log_assignments: Tensor) -> Tensor:
    """L_c of each sample [B], Eq 3 with the sign of DEC and IDEC: KL(p || q) from p and log q [B, Q]."""
    return (torch.special.xlogy(targets, targets) - targets * log_assignments).sum(1)


def spreads(assignments: Tensor, codes: Tensor, centres: Tensor, alpha: float) -> Tensor:
    """D [Q, D]: the spread of each feature about each centre, sum_i q_ij^alpha (f_im - r_jm)^2, over samples [B]."""
    raised = assignments**alpha
    # Centre by centre: [B, Q, D] of all samples would not fit into memory.
    return torch.stack([raised[:, j] @ (codes - centre).square() for j, centre in enumerate(centres)])


def feature_weights(spreads: Tensor) -> Tensor:
    """w [Q, D] of Eq 15 from the spreads [Q, D]: w_jm = 1 / sum_s (D_jm / D_js); every row sums to 1 (Eq 16).

    A feature without spread is counted with a tiny one; a cluster without any spread weighs all features alike.
    """
    floor = SMALLEST_SPREAD * spreads.amax(1, keepdim=True)
    inverse = 1 / _positive(torch.maximum(spreads, floor))
    even = torch.full_like(spreads, 1 / spreads.shape[1])
    return torch.where(floor > 0, inverse / inverse.sum(1, keepdim=True), even)


def _positive(values: Tensor) -> Tensor:
    """The values, and 1 in place of 0, to divide by."""
    return torch.where(values > 0, values, torch.ones_like(values))
