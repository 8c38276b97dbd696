"""RIDE's experts (Wang et al., ICLR 2021): LDAM with deferred re-weighting for each, and a reward for diversity.

RIDE's second stage, which learns to leave experts out, is not implemented: it saves time and does not raise accuracy.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from moe_dist.data.batch import Batch
from moe_dist.methods.longtail import losses
from moe_dist.methods.longtail.ldam_drw import LdamDrw, MarginConfig
from moe_dist.methods.phases import Progress
from moe_dist.models.branches import BranchOutputs
from moe_dist.settings.schema import NonNegative, Positive


class RideConfig(MarginConfig):
    """LDAM's settings and the diversity's."""

    name: Literal["ride"] = "ride"
    diversity_weight: NonNegative = 0.2
    """Lambda of Eq 3: the weight of the divergence from the mean, which is rewarded."""
    temperature: Positive = 1.0
    """The temperature of the softmaxes that are compared; from `reweight_from` on the largest class's."""
    temperature_factor: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """From `reweight_from` on, how much lower the temperature of rare classes is; 0: not at all."""


class Ride(LdamDrw):
    """Every expert is trained by LDAM and pushed away from the experts' mean."""

    Config = RideConfig
    config: RideConfig
    counts_serve = "RIDE"

    def feature_loss(
        self, network: nn.Module, outputs: BranchOutputs, batch: Batch, progress: Progress
    ) -> dict[str, Tensor]:
        """LDAM of every expert, minus the diversity."""
        config, counts = self.config, self.class_counts(network)
        if progress.epoch < config.reweight_from:
            temperatures = torch.full_like(counts, config.temperature)
        else:
            temperatures = losses.ride_temperatures(counts, config.temperature, config.temperature_factor)
        terms = super().feature_loss(network, outputs, batch, progress)
        diversity = batch.mean(losses.ride_diversity(outputs.logits, temperatures))
        return terms | {"diversity": -config.diversity_weight * diversity}
