"""The mixture of DFCP-MoE as one network: binary LeNet experts of their own widths, and the managing network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from moe_dist.methods.dfcp.config import ExpertConfig, GateConfig
from moe_dist.models.experts import Experts, seeded
from moe_dist.models.lenet import LeNet, ManagingNetwork, quick_to_pool
from moe_dist.models.makers import MakeExperts, SendsSamples
from moe_dist.settings.training import OptimiserConfig

GATE_SEED = 7_919
"""Added to the seed, so that the managing network's random numbers are not an expert's."""


class Mixture(nn.Module):
    """forward(images [B, 3, S, S]) -> (gating logits [B, E], expert logits [B, E, outputs]); seed: of its training."""

    def __init__(self, experts: nn.Module, gate: nn.Module, seed: int) -> None:
        super().__init__()
        self.experts, self.gate, self.seed = experts, gate, seed

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        gate_logits = self.gate(images)
        exported = torch.compiler.is_exporting()  # and then of any number of images
        if not (exported or torch.is_grad_enabled()) and len(images) == 1 and isinstance(self.experts, Experts):
            return gate_logits, self._initial_layers_together(quick_to_pool(images))
        return gate_logits, torch.stack(self.experts(images), dim=1)

    def _initial_layers_together(self, image: Tensor) -> Tensor:
        """The experts' logits [1, E, outputs] for one image, their first convolutions computed as one.

        That is faster for one image, and slower for many, whose maps no longer stay in the cache.
        """
        members = [cast(LeNet, member) for member in cast(Experts, self.experts).members.values()]
        firsts = [member.initial for member in members]
        weight, bias = (torch.cat([getattr(first, name) for first in firsts]) for name in ("weight", "bias"))
        maps = functional.relu(functional.max_pool2d(functional.conv2d(image, weight, bias), 2))
        parts = maps.split([first.out_channels for first in firsts], dim=1)
        return torch.stack([member.after_initial(part) for member, part in zip(members, parts, strict=True)], dim=1)

    def dispatched(self, images: Tensor, choose: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """As `forward`, and which experts see which image: choose(gating logits) -> [B, E] bool.

        The logits of an expert for an image that it does not see are 0.
        """
        gate_logits = self.gate(images)
        seen = choose(gate_logits)
        experts = cast(SendsSamples, self.experts)
        return gate_logits, experts.of_chosen(images, seen), seen

    def picked(self, image: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The `count` experts of largest gate weight for one image [1, 3, S, S]; the others are not computed.

        Returns their ids [k], gating logits [1, k] and logits [1, k, outputs]. All experts must be in this process.
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
    """The network with one expert per entry of `experts`; `weights(id)`: an expert's trained weights, or None."""

    def build_expert(expert: int) -> LeNet:
        network = LeNet(experts[expert].widths, outputs, image_size)
        trained = weights(expert)
        if trained is not None:
            network.load_state_dict(trained)
        return network

    factories = [partial(build_expert, expert) for expert in range(len(experts))]
    group = make_experts(factories, expert_costs(experts, outputs, image_size), seed)
    managing_network = seeded(
        seed + GATE_SEED,
        lambda: ManagingNetwork(len(experts), image_size, gate.filters, gate.hidden, gate.dropout),
    )
    return Mixture(group, managing_network, seed)


def expert_costs(experts: Sequence[ExpertConfig], outputs: int, image_size: int) -> list[float]:
    """Multiply-adds of each expert's forward pass for one image."""
    return [float(LeNet.multiply_adds(config.widths, outputs, image_size)) for config in experts]


def optimisers(experts: Sequence[ExpertConfig], gate: GateConfig) -> dict[str, OptimiserConfig]:
    """Every expert's own optimiser and the managing network's (Table 2), by parameter-name prefix."""
    own = {f"experts.members.{expert}.": config.optimiser_config for expert, config in enumerate(experts)}
    return {"gate.": gate.optimiser, **own}
