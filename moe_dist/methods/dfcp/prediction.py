"""Eq 3 as a prediction, by all experts or by those the gate prefers, of which no more are computed than are needed.

Letters in shapes: B samples of a batch, C classes, E experts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from moe_dist.methods.base import Prediction
from moe_dist.methods.dfcp.dispatch import preferred
from moe_dist.methods.dfcp.losses import gate_log_weights
from moe_dist.methods.dfcp.network import Mixture


class Mix(Protocol):
    """The mixture of some experts as log-probabilities [B, C]."""

    def __call__(self, gate_logits: Tensor, expert_logits: Tensor, experts: Tensor, seen: Tensor | None) -> Tensor:
        """gate_logits [B, k], expert_logits [B, k, outputs], experts [k]: ids; seen [B, k] bool: those that count."""


def predict(network: Mixture, images: Tensor, top_k: int | None, mix: Mix) -> Prediction:
    """The prediction for images [B, 3, S, S] by all experts, or by each image's `top_k`, which alone compute it."""
    if top_k is None:
        return predict_by(network, images, (), mix)[None]
    if len(images) == 1:
        experts, gate_logits, expert_logits = network.picked(images, top_k)
        return Prediction(mix(gate_logits, expert_logits, experts, None), {"": gate_log_weights(gate_logits).exp()})
    gate_logits, expert_logits, seen = network.dispatched(images, lambda logits: preferred(logits, top_k))
    return _mixed(gate_logits, expert_logits, seen, mix)


def predict_by(network: Mixture, images: Tensor, top_ks: Iterable[int], mix: Mix) -> dict[int | None, Prediction]:
    """The predictions by all experts (None) and by each number of `top_ks`; every expert is computed once."""
    gate_logits, expert_logits = network(images)
    everyone = _mixed(gate_logits, expert_logits, None, mix)
    everyone.experts = expert_logits.squeeze(2)  # of one output, "mine or not", no prediction of classes is left
    return {
        None: everyone,
        **{k: _mixed(gate_logits, expert_logits, preferred(gate_logits, k), mix) for k in top_ks},
    }


def _mixed(gate_logits: Tensor, expert_logits: Tensor, seen: Tensor | None, mix: Mix) -> Prediction:
    experts = torch.arange(gate_logits.shape[1], device=gate_logits.device)
    log_probs = mix(gate_logits, expert_logits, experts, seen)
    return Prediction(log_probs, {"": gate_log_weights(gate_logits, seen=seen).exp()})
