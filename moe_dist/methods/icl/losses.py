"""The losses of ICL (Chen et al., IJCAI 2025), Eq 3, 6, 8 and 10, as functions of tensors.

Letters in shapes: B samples of a batch, C classes, D features, E experts, k confused classes. The paper's index of an
expert is m.

Two readings. The sum of Eq 10 is one-sided, but the text says mutual: both directions are summed and divided by
E (E - 1). In Eq 6, N(c) holds the k classes that samples of c were most often mistaken for. Classes that they never
were, and classes without a prototype yet, are left out; where no class is left, the loss is 0.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from moe_dist.methods.longtail.losses import mutual_divergence

Cosines = Literal["all", "positive"]
"""Which cosines AD counts: see IclConfig.diversity_cosines."""


def diversity(features: Tensor, counted: Cosines = "all") -> Tensor:
    """AD, Eq 3: [B], the cosines between the experts' `features` [B, E, D], summed over ordered pairs of experts."""
    unit = functional.normalize(features, dim=2)
    cosines = unit @ unit.transpose(1, 2)
    if counted == "positive":
        cosines = cosines.clamp_min(0)
    return cosines.sum((1, 2)) - cosines.diagonal(dim1=1, dim2=2).sum(1)


Classes = Literal["confused", "largest"]
"""What N(c) holds: see IclConfig.contrast_classes."""


def most_confused(
    confusion: Tensor, prototypes: Tensor, labels: Tensor, k: int, kind: Classes = "confused"
) -> tuple[Tensor, Tensor]:
    """N(c) of Eq 6 for each sample's class: (classes [E, B, k], whether each belongs to N(c) [E, B, k]).

    confusion [E, C, C]: rows are true classes, the diagonal is zero but for the kind "largest"; prototypes [E, C, D]:
    zero where there is none yet; labels [B]. Where k is more than the number of other classes, it is reduced to that.
    """
    if kind == "largest":
        classes = confusion[:, labels].topk(min(k, confusion.shape[2]), dim=2).indices
        return classes, torch.ones_like(classes, dtype=torch.bool)
    met = prototypes.any(2)
    rows = confusion[:, labels] * met[:, None]
    times, classes = rows.topk(min(k, rows.shape[2] - 1), dim=2)
    return classes, times > 0


def contrast(
    features: Tensor,
    labels: Tensor,
    confusion: Tensor,
    prototypes: Tensor,
    k: int,
    tau: float,
    negatives: Literal["sum", "mean"] = "sum",
    kind: Classes = "confused",
) -> Tensor:
    """CCL, Eq 6: [B], summed over the experts as in Eq 7; features and prototypes are L2-normalised.

    features [B, E, D], labels [B], confusion [E, C, C], prototypes [E, C, D], temperature tau. negatives: whether the
    denominator has the sum over N(c), or the mean (released code). kind: of the classes in N(c).
    """
    unit = functional.normalize(features, dim=2).transpose(0, 1)
    own = functional.normalize(prototypes[:, labels], dim=2)
    classes, counted = most_confused(confusion, prototypes, labels, k, kind)
    experts = torch.arange(len(prototypes), device=labels.device)[:, None, None]
    others = functional.normalize(prototypes[experts, classes], dim=3)
    positive = (unit * own).sum(2) / tau
    negative = (others @ unit[..., None]).squeeze(3) / tau
    negative = negative.masked_fill(~counted, float("-inf"))
    if negatives == "mean":
        negative = negative - counted.sum(2, keepdim=True).clamp_min(1).to(negative).log()
    both = torch.cat([positive[..., None], negative], 2)
    return (both.logsumexp(2) - positive).sum(0)


def parallel(means: Tensor, epsilon: float) -> Tensor:
    """Eq 8: (sum over experts of 1 / (L_m + epsilon))^-1 of the experts' mean losses `means` [E].

    Its gradient is Eq 9: an expert's share falls with the square of its loss.
    """
    return 1 / (1 / (means + epsilon)).sum()


def distillation(logits: Tensor) -> Tensor:
    """Eq 10, both directions: [B], the mean of KL(p^m || p^m') over ordered pairs of experts, p = softmax.

    logits [B, E, C], E > 1. Both sides have a gradient.
    """
    experts = logits.shape[1]
    return mutual_divergence(logits) / (experts * (experts - 1))
