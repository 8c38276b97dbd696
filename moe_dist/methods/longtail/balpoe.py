"""BalPoE (Aimar et al., CVPR 2023): experts trained for long-tailed, balanced and inversely long-tailed classes.

Their product, the mean of their logits, is right for balanced classes if each expert is calibrated, which is what MixUp
is for (`features.augment.mixup`, 0.4 in the paper).
"""

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


class BalpoeConfig(BranchConfig):
    """The class frequencies that the experts are trained for."""

    name: Literal["balpoe"] = "balpoe"
    spread: NonNegative = 1.0
    """Exponents lambda of n_c, evenly from `spread` to -`spread`; for three experts and 1: 1, 0, -1."""


class Balpoe(BranchMethod):
    """Every expert is trained with its own logit adjustment."""

    Config = BalpoeConfig
    config: BalpoeConfig
    mixes_labels = True
    counts_serve = "BalPoE"

    def feature_loss(
        self, network: nn.Module, outputs: BranchOutputs, batch: Batch, progress: Progress
    ) -> dict[str, Tensor]:
        """The mean of the experts' adjusted cross-entropies."""
        biases = losses.target_biases(self.class_counts(network), self.config.spread, self.config.experts)
        loss = batch.mean_over_labels(lambda labels: losses.balanced_softmax(outputs.logits, labels, biases).mean(1))
        return {"balpoe": loss}
