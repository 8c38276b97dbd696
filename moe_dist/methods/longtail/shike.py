"""SHIKE (Jin et al., CVPR 2023): experts of different depths that learn from each other, above all of hard negatives.

Its networks are ICL's with `network.aligned`: expert e uses shallow features of its own depth. Two stages, as ICL.
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
    """The weights of SHIKE's terms, for divergences averaged over the classes, as in the released code."""

    name: Literal["shike"] = "shike"
    features: FeatureStage = FeatureStage()
    classifiers: ClassifierStage | None = ClassifierStage()
    mutual_weight: NonNegative = 1.0
    """Weight of the divergences between experts, which are summed over ordered pairs."""
    hard_negative_weight: NonNegative = 10.0
    """Weight of the transfer between non-target classes."""


class Shike(BranchMethod):
    """Cross-entropy, mutual distillation, and distillation from a teacher made of all experts."""

    Config = ShikeConfig
    config: ShikeConfig

    def feature_loss(
        self, network: nn.Module, outputs: BranchOutputs, batch: Batch, progress: Progress
    ) -> dict[str, Tensor]:
        """The terms summed over experts; a single expert has the cross-entropy alone."""
        config, logits, labels = self.config, outputs.logits, batch.labels
        terms = {"cross_entropy": batch.mean(losses.cross_entropies(logits, labels).sum(1))}
        if config.experts > 1:
            mutual, hard = losses.mutual_divergence(logits), losses.hard_negatives(logits, labels)
            terms["mutual"] = config.mutual_weight * batch.mean(mutual) / self.info.classes
            terms["hard_negatives"] = config.hard_negative_weight * batch.mean(hard) / self.info.classes
        return terms
