"""Cross-entropy, summed over experts: the baseline of every long-tail method; one expert is the plain network."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from moe_dist.data.batch import Batch
from moe_dist.methods.longtail import losses
from moe_dist.methods.longtail.config import BranchConfig
from moe_dist.methods.longtail.method import BranchMethod
from moe_dist.methods.phases import Progress
from moe_dist.models.branches import BranchOutputs


class CrossEntropyConfig(BranchConfig):
    """No settings beside those of every branch network."""

    name: Literal["cross_entropy"] = "cross_entropy"


class CrossEntropy(BranchMethod):
    """Every expert is trained by cross-entropy."""

    Config = CrossEntropyConfig
    config: CrossEntropyConfig
    mixes_labels = True

    def feature_loss(
        self, network: nn.Module, outputs: BranchOutputs, batch: Batch, progress: Progress
    ) -> dict[str, Tensor]:
        """The sum of the experts' cross-entropies."""
        loss = batch.mean_over_labels(lambda labels: losses.cross_entropies(outputs.logits, labels).sum(1))
        return {"cross_entropy": loss}
