"""A trained mixture whose experts are computed together: those of similar widths as one padded, grouped network.

1. Experts are sorted by the cost of their second convolution, and cut into PACKS parts.
2. The experts of a part are padded with zeros to the widest of them (bank/network.py); what a padded unit gives is 0.
3. All of a part see the same images, so their first convolutions are one wide one, and the others run in groups.

One part would be padded too much, and many are a loop again (docs/decisions.md has the figures);
benchmarks/inference.py compares with the loop. Letters in shapes: B samples of a batch, E experts, M experts of a part,
S image side.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from moe_dist.bank.beside import beside
from moe_dist.bank.network import pack, shapes, stacked_logits, unpacked, widest
from moe_dist.methods.dfcp.network import Mixture
from moe_dist.models.lenet import LeNet, LeNetWidths

PACKS = 5
"""Parts: of 1, 2, 3 and 5 the fastest for one image and for 256, with 43 experts of Table 1's widths on a CPU."""
FEW = 4
"""Images up to which parts are computed beside each other on a CPU, each on one thread."""


class PackedMixture(Mixture):
    """A trained Mixture, whose experts' weights are packed once, here; all experts must be in this process.

    State and parameters have the mixture's own names. The packed weights are copies, without gradients: where gradients
    are asked for, a weight was changed since, or a graph is traced (which is to hold each weight once), each expert is
    computed by itself.
    """

    def __init__(self, mixture: Mixture, image_size: int, packs: int = PACKS) -> None:
        super().__init__(mixture.experts, mixture.gate, mixture.seed)
        members = [cast(LeNet, member) for member in cast(nn.ModuleDict, mixture.experts.members).values()]
        widths = [widths_of(member) for member in members]
        self.outputs = cast(nn.Linear, members[0].classifier[-1]).out_features
        by_cost = sorted(range(len(members)), key=lambda expert: widths[expert].conv1 * widths[expert].conv2)
        parts = [part.tolist() for part in np.array_split(by_cost, min(packs, len(members)))]
        self._sizes: list[int] = []
        for number, part in enumerate(parts):
            padded = shapes(widest([widths[expert] for expert in part]), image_size, self.outputs)
            rows = pack([members[expert].state_dict() for expert in part], padded, torch.float32)
            stacked = [value.contiguous() for value in unpacked(rows, padded).values()]
            for place, value in enumerate(stacked):
                self.register_buffer(f"packed_{number}_{place}", value, persistent=False)
            self._sizes.append(len(stacked))
        place_of = np.argsort(np.concatenate(parts))
        self.register_buffer("place_of", torch.from_numpy(place_of), persistent=False)
        self._weights = list(self.experts.parameters())
        self._packed_at = self._versions()
        self.train(mixture.training)

    def _versions(self) -> list[int]:
        """How often each of the experts' weights was changed."""
        return [parameter._version for parameter in self._weights]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Gating logits [B, E] and expert logits [B, E, outputs] of images [B, 3, S, S]."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or self._versions() != self._packed_at:
            return super().forward(images)
        widest_first = reversed(range(len(self._sizes)))
        computations = [partial(self.gate, images), *(partial(self._part, number, images) for number in widest_first)]
        few = images.device.type == "cpu" and len(images) <= FEW
        gate_logits, *logits = beside(computations) if few else [compute() for compute in computations]
        return gate_logits, torch.cat(logits[::-1])[self.get_buffer("place_of")].transpose(0, 1)

    def _part(self, number: int, images: Tensor) -> Tensor:
        """Logits [M, B, outputs] of a part's experts."""
        weights = [self.get_buffer(f"packed_{number}_{place}") for place in range(self._sizes[number])]
        logits = stacked_logits(weights, images)  # [M, B], or [M, B, outputs] of several
        return logits[..., None] if self.outputs == 1 else logits


def widths_of(network: LeNet) -> LeNetWidths:
    """The widths that a LeNet was built with."""
    convolutions = [module for module in network.features if isinstance(module, nn.Conv2d)]
    linear = [module for module in network.classifier if isinstance(module, nn.Linear)]
    return LeNetWidths(*(layer.out_channels for layer in convolutions), *(layer.out_features for layer in linear[:2]))
