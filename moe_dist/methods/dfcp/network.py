"""The mixture of DFCP-MoE as one network: binary LeNet experts of their own widths, and the managing network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from moe_dist.methods.dfcp.config import ExpertConfig, GateConfig
from moe_dist.models.experts import seeded
from moe_dist.models.lenet import LeNet, LeNetWidths, ManagingNetwork
from moe_dist.models.makers import MakeExperts
from moe_dist.settings.training import OptimiserConfig

GATE_SEED = 7_919
"""Keeps the managing network's random numbers apart from the experts', which are seeded by their ids."""


class Mixture(nn.Module):
    """forward(images [B, 3, S, S]) -> (gating logits [B, E], expert logits [B, E, outputs])."""

    def __init__(self, experts: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.experts, self.gate = experts, gate

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.gate(images), torch.stack(self.experts(images), dim=1)

    def picked(self, image: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The `count` experts of largest gate weight for one image [1, 3, S, S]; the others are not computed.

        Their ids [k], gating logits [1, k] and logits [1, k, outputs]. All experts must be in this process.
        """
        gate_logits = self.gate(image)
        ids = gate_logits[0].topk(min(count, gate_logits.shape[1])).indices
        members = cast(nn.ModuleDict, self.experts.members)
        expert_logits = [members[str(expert)](image) for expert in ids.tolist()]
        return ids, gate_logits[:, ids], torch.stack(expert_logits, dim=1)


def build_mixture(
    experts: Sequence[ExpertConfig],
    outputs: int,
    gate: GateConfig,
    image_size: int,
    make_experts: MakeExperts,
    seed: int,
    weights: Callable[[int], dict[str, Tensor] | None],
) -> Mixture:
    """The network with one expert per entry of `experts`; `weights(id)` gives an expert's trained weights, or None."""
    factories = [
        lambda expert=expert, config=config: _expert(config, outputs, image_size, weights(expert))
        for expert, config in enumerate(experts)
    ]
    group = make_experts(factories, expert_costs(experts, outputs, image_size), seed)
    network = seeded(
        seed + GATE_SEED,
        lambda: ManagingNetwork(len(experts), image_size, gate.filters, gate.hidden, gate.dropout),
    )
    return Mixture(group, network)


def expert_costs(experts: Sequence[ExpertConfig], outputs: int, image_size: int) -> list[float]:
    """Multiply-adds of each expert's forward pass for one image."""
    return [float(LeNet.multiply_adds(widths(config), outputs, image_size)) for config in experts]


def optimisers(experts: Sequence[ExpertConfig], gate: GateConfig) -> dict[str, OptimiserConfig]:
    """By parameter-name prefix: every expert keeps its own kind and rate, the managing network has Table 2's."""
    own = {f"experts.members.{expert}.": expert_optimiser(config) for expert, config in enumerate(experts)}
    return {"gate.": gate.optimiser, **own}


def expert_optimiser(config: ExpertConfig) -> OptimiserConfig:
    """An expert's optimiser; SGD has momentum 0.9."""
    return OptimiserConfig(kind=config.optimiser, learning_rate=config.learning_rate)


def widths(config: ExpertConfig) -> LeNetWidths:
    """The layer widths of an expert."""
    return LeNetWidths(config.conv1, config.conv2, config.fc1, config.fc2)


def _expert(config: ExpertConfig, outputs: int, image_size: int, weights: dict[str, Tensor] | None) -> LeNet:
    expert = LeNet(widths(config), outputs, image_size)
    if weights is not None:
        expert.load_state_dict(weights)
    return expert
