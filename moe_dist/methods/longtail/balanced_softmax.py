"""Balanced softmax (Ren et al., NeurIPS 2020), also called the logit adjustment loss (Menon et al., ICLR 2021)."""

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


class BalancedSoftmaxConfig(BranchConfig):
    """Logit adjustment in stage one."""

    name: Literal["balanced_softmax"] = "balanced_softmax"
    tau: NonNegative = 1.0
    """Menon et al.'s factor of log n_c; 1: balanced softmax, 0: cross-entropy."""


class BalancedSoftmax(BranchMethod):
    """Every expert is trained by the cross-entropy of z_c + tau log n_c and predicts by z."""

    Config = BalancedSoftmaxConfig
    config: BalancedSoftmaxConfig
    mixes_labels = True
    counts_serve = "balanced softmax"

    def feature_loss(
        self, network: nn.Module, outputs: BranchOutputs, batch: Batch, progress: Progress
    ) -> dict[str, Tensor]:
        """The sum of the experts' adjusted cross-entropies."""
        bias = self.config.tau * self.class_counts(network).log()
        loss = batch.mean_over_labels(lambda labels: losses.balanced_softmax(outputs.logits, labels, bias).sum(1))
        return {"balanced_softmax": loss}
