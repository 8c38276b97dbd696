"""Focal loss (Lin et al., ICCV 2017): samples that are already classified with certainty weigh less."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from moe_dist.data.batch import Batch
from moe_dist.methods.longtail import losses
from moe_dist.methods.longtail.config import BranchConfig
from moe_dist.methods.longtail.method import BranchMethod
from moe_dist.methods.phases import Progress
from moe_dist.models.branches import BranchOutputs
from moe_dist.settings.schema import NonNegative


class FocalConfig(BranchConfig):
    """The focal loss's exponent."""

    name: Literal["focal"] = "focal"
    gamma: NonNegative = 2.0
    """The exponent of 1 - p; 0: cross-entropy."""


class Focal(BranchMethod):
    """Every expert is trained by the focal loss."""

    Config = FocalConfig
    config: FocalConfig
    mixes_labels = True

    def feature_loss(
        self, network: nn.Module, outputs: BranchOutputs, batch: Batch, progress: Progress
    ) -> dict[str, Tensor]:
        """The sum of the experts' focal losses."""
        gamma = self.config.gamma
        return {"focal": batch.mean_over_labels(lambda labels: losses.focal(outputs.logits, labels, gamma).sum(1))}
