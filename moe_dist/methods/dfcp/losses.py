"""The mixture of DFCP-MoE and its losses, in log space (Eq 1-4, 14-16).

Letters in shapes: B samples of a batch, C classes, E experts. Every loss returns one value per sample [B], and the
caller takes the weighted mean over the batch. Half-precision logits are converted to float32 first.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def gate_log_weights(gate_logits: Tensor, top_k: int | None = None, seen: Tensor | None = None) -> Tensor:
    """log g [B, E] from gating logits h [B, E]: the log-softmax of Eq 1, so that the weights sum to 1 (Eq 2).

    With `top_k`, the k largest weights of each sample are renormalised and the others are 0; with `seen` [B, E] bool,
    those that are true. The log of such a 0 is a very low finite number instead of -inf, which keeps gradients finite.
    """
    logits = _at_least_float32(gate_logits)
    log_of_zero = torch.finfo(logits.dtype).min / 4  # a quarter, so that adding log-probabilities cannot overflow
    if seen is not None:
        return functional.log_softmax(logits.masked_fill(~seen, log_of_zero), dim=1).masked_fill(~seen, log_of_zero)
    log_weights = functional.log_softmax(logits, dim=1)
    if top_k is None or top_k >= log_weights.shape[1]:
        return log_weights
    kept = log_weights.topk(top_k, dim=1)
    renormalised = functional.log_softmax(kept.values, dim=1)
    return torch.full_like(log_weights, log_of_zero).scatter(1, kept.indices, renormalised)


def class_log_probs(expert_logits: Tensor, expert_class: Tensor, classes: int) -> Tensor:
    """log P(Y | X, E_j) [B, E, C] of binary experts with logits [B, E] and own classes [E].

    Reading: an expert gives p_j = sigmoid(s_j) to its own class and (1 - p_j) / (C - 1) to every other one.
    """
    logits = _at_least_float32(expert_logits)
    own, other = functional.logsigmoid(logits), functional.logsigmoid(-logits) - math.log(classes - 1)  # [B, E]
    is_own = functional.one_hot(expert_class, classes).bool()
    return torch.where(is_own, own[:, :, None], other[:, :, None])


def mixture_log_probs(
    gate_logits: Tensor,
    expert_logits: Tensor,
    expert_class: Tensor,
    classes: int,
    top_k: int | None = None,
    seen: Tensor | None = None,
) -> Tensor:
    """log P(Y | X) [B, C] of the mixture of binary experts (Eq 3-4); logits [B, E], own classes [E].

    top_k, seen: over some experts only (`gate_log_weights`).

    The sum over experts is computed as written, from B E C terms: its gradient then scales exactly with the loss, so
    that a batch cut into two halves gives the same bits wherever the halves are computed.
    """
    log_weights = gate_log_weights(gate_logits, top_k, seen)
    return torch.logsumexp(log_weights[:, :, None] + class_log_probs(expert_logits, expert_class, classes), dim=1)


def mixture_of_softmax_log_probs(
    gate_logits: Tensor, expert_logits: Tensor, top_k: int | None = None, seen: Tensor | None = None
) -> Tensor:
    """log P(Y | X) [B, C] of the traditional mixture (Eq 3): gate logits [B, E], C-way softmax experts [B, E, C].

    top_k, seen: over some experts only (`gate_log_weights`).
    """
    log_weights = gate_log_weights(gate_logits, top_k, seen)
    expert_log_probs = functional.log_softmax(_at_least_float32(expert_logits), dim=2)
    return torch.logsumexp(log_weights[:, :, None] + expert_log_probs, dim=1)


def combined_loss(log_probs: Tensor, labels: Tensor) -> Tensor:
    """L_com per sample [B] (Eq 15-16): -log P(Y | X) of the label [B] under the mixture's log-probabilities [B, C]."""
    return functional.nll_loss(log_probs, labels, reduction="none")


def expert_loss(expert_logits: Tensor, expert: Tensor, seen: Tensor | None = None) -> Tensor:
    """L_e per sample [B] (Eq 14): the mean over experts of the cross-entropy of sigmoid(s_j) on cluster membership.

    expert_logits [B, E]; expert [B] is the number of the expert whose cluster the sample belongs to; seen [B, E] bool:
    the experts that count, at least one a sample.
    """
    logits = _at_least_float32(expert_logits)
    membership = functional.one_hot(expert, logits.shape[1]).to(logits.dtype)
    losses = functional.binary_cross_entropy_with_logits(logits, membership, reduction="none")
    return losses.mean(dim=1) if seen is None else (losses * seen).sum(dim=1) / seen.sum(dim=1)


def gate_loss(gate_logits: Tensor, expert: Tensor) -> Tensor:
    """L_gate per sample [B]: cross-entropy of the gate (logits [B, E]) against the sample's expert [B].

    Reading: how the gate is "preconditioned to assign specific weights to specific experts".
    """
    return functional.cross_entropy(_at_least_float32(gate_logits), expert, reduction="none")


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
