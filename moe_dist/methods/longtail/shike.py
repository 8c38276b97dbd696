"""SHIKE (Jin et al., CVPR 2023): experts of different depths that teach each other, above all not to err alike.

Its networks are ICL's with `network.aligned`: expert m uses shallow features of its own depth. Two stages as ICL's.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from moe_dist.data.batch import Batch
from moe_dist.methods.longtail import losses
from moe_dist.methods.longtail.config import BranchConfig, ClassifierStage, FeatureStage
from moe_dist.methods.longtail.method import BranchMethod
from moe_dist.methods.phases import Progress
from moe_dist.models.branches import BranchOutputs
from moe_dist.settings.schema import NonNegative


class ShikeConfig(BranchConfig):
    """Divergences are averaged over the classes, as in the released code: the weights below belong to that."""

    name: Literal["shike"] = "shike"
    features: FeatureStage = FeatureStage()
    classifiers: ClassifierStage | None = ClassifierStage()
    mutual_weight: NonNegative = 1.0
    """Of the divergences between experts, one a pair and direction."""
    hard_negative_weight: NonNegative = 10.0
    """Of the transfer between non-target classes."""


class Shike(BranchMethod):
    """Cross-entropy, mutual distillation, and a teacher of soft targets gathered from all experts."""

    Config = ShikeConfig
    config: ShikeConfig

    def feature_loss(
        self, network: nn.Module, outputs: BranchOutputs, batch: Batch, progress: Progress
    ) -> dict[str, Tensor]:
        """Summed over experts; one expert has none but itself to learn from, and keeps its cross-entropy alone."""
        config, logits, labels = self.config, outputs.logits, batch.labels
        terms = {"cross_entropy": batch.mean(losses.cross_entropies(logits, labels).sum(1))}
        if config.experts > 1:
            mutual, hard = losses.mutual_divergence(logits), losses.hard_negatives(logits, labels)
            terms["mutual"] = config.mutual_weight * batch.mean(mutual) / self.info.classes
            terms["hard_negatives"] = config.hard_negative_weight * batch.mean(hard) / self.info.classes
        return terms
