"""A method with two gated taps on a frozen backbone: the modules are trained until they stop gaining, then all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from made_up.dying import here
from moe_dist.data.batch import Batch
from moe_dist.methods.base import Method, Prediction
from moe_dist.methods.config import MethodConfig
from moe_dist.methods.phases import Losses, Progress, Results, Stage
from moe_dist.models.experts import seeded
from moe_dist.models.makers import Makers
from moe_dist.settings.schema import Count
from moe_dist.settings.training import OptimiserConfig

TAPS = {"early": 4, "late": 8}


class GatesConfig(MethodConfig):
    """Both stages' lengths, and the patience of the first."""

    name: Literal["made_up_gates"] = "made_up_gates"
    module_epochs: Count = 6
    patience_epochs: Count = 2
    all_epochs: Count = 2
    experts: Count = 3
    learning_rate: float = 0.02


class GatedModule(nn.Module):
    """A map [B, K, s, s] -> features [B, 6]: experts on the pooled map, weighed by a softmax gate [B, E]."""

    def __init__(self, channels: int, experts: int) -> None:
        super().__init__()
        self.gate = nn.Linear(channels, experts)
        self.experts = nn.Linear(channels, 6 * experts)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, 6] and gate weights [B, E]."""
        pooled = maps.mean((2, 3))
        weights = self.gate(pooled).softmax(1)
        outputs = self.experts(pooled).unflatten(1, (-1, 6))
        return (weights[:, :, None] * outputs).sum(1), weights


class TappedNetwork(nn.Module):
    """A small backbone, a gated module at each of two taps, and a classifier on both."""

    def __init__(self, classes: int, experts: int) -> None:
        super().__init__()
        early, late = TAPS.values()
        self.backbone = nn.ModuleList(
            [nn.Conv2d(3, early, 3, stride=2, padding=1), nn.Conv2d(early, late, 3, stride=2, padding=1)]
        )
        self.taps = nn.ModuleDict({name: GatedModule(channels, experts) for name, channels in TAPS.items()})
        self.classifier = nn.Linear(6 * len(TAPS), classes)

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits [B, C] and the gates by name."""
        features, gates, maps = [], {}, images
        for layer, name in zip(self.backbone, TAPS):
            maps = functional.relu(layer(maps))
            found, gates[name] = self.taps[name](maps)
            features.append(found)
        return self.classifier(torch.cat(features, 1)), gates


class Gates(Method):
    """Modules on a frozen backbone, stopped early; then everything."""

    Config = GatesConfig
    config: GatesConfig

    def phases(self) -> Sequence[Stage]:
        """Two stages of one network."""
        config = self.config
        adam = OptimiserConfig(kind="adam", learning_rate=config.learning_rate)
        modules = Stage(
            "modules",
            24,
            {"": adam, "backbone.": None},
            epochs=config.module_epochs,
            patience_epochs=config.patience_epochs,
        )
        return modules, Stage("all", 24, {"": adam}, epochs=config.all_epochs)

    def build(self, make: Makers, results: Results, seed: int) -> nn.Module:
        """The backbone with its modules."""
        return seeded(seed, lambda: TappedNetwork(self.info.classes, self.config.experts))

    def loss(self, network: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Cross-entropy, and a pull of every gate to an even load that grows over the stage's epochs."""
        here(progress.stage)
        logits, gates = network(batch.images)
        uneven = sum(batch.mean((gate - 1 / gate.shape[1]).square().sum(1)) for gate in gates.values())
        grown = 0.01 * progress.epoch / progress.epochs
        cross_entropy = functional.cross_entropy(logits, batch.labels, reduction="none")
        entropy = batch.mean(-(gates["late"] * gates["late"].log()).sum(1))
        return Losses({"cross_entropy": batch.mean(cross_entropy), "load": grown * uneven}, {"entropy": entropy})

    def predict(self, network: nn.Module, images: Tensor, top_k: int | None = None) -> Prediction:
        """The softmax of the logits, and both gates."""
        logits, gates = network(images)
        return Prediction(logits.log_softmax(1), gates)

    def search_space(self) -> Mapping[str, object]:
        """The rate."""
        return {"learning_rate": {"low": 0.005, "high": 0.05, "log": True}}
