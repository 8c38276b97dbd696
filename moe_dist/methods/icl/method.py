"""ICL (Chen et al., IJCAI 2025): a shared trunk and E experts, trained in two stages.

1. features: all but the fresh classifiers, on CoL + DOL (Eq 12).
2. classifiers: the fresh classifiers alone, on logit-adjusted cross-entropies (Eq 13, methods/longtail/method.py).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from moe_dist.data.batch import Batch
from moe_dist.methods.icl import losses
from moe_dist.methods.icl.config import IclConfig
from moe_dist.methods.icl.memory import Memory
from moe_dist.methods.longtail.losses import cross_entropies
from moe_dist.methods.longtail.method import BranchMethod
from moe_dist.methods.phases import Progress, StepResult
from moe_dist.methods.ranks import global_mean
from moe_dist.models.branches import BranchOutputs
from moe_dist.models.makers import Makers


class Icl(BranchMethod):
    """Experts that compete (parallel loss), learn from each other (distillation) and differ (AD, CCL)."""

    Config = IclConfig
    config: IclConfig
    needs_whole_batch = True

    def build(self, make: Makers, results: Mapping[str, StepResult], seed: int) -> nn.Module:
        """The branches and, with DOL, their memory."""
        network = super().build(make, results, seed)
        if self.config.dol:
            with_diagonal = self.config.contrast_classes == "largest"
            memory = Memory(self.config.experts, self.info.classes, self.config.network.features, with_diagonal)
            network.add_module("memory", memory)
        return network

    def search_space(self) -> Mapping[str, Any]:
        """Stage one's, and the weights of ICL's own terms."""
        return {
            **super().search_space(),
            "distillation_weight": {"low": 0.0, "high": 2.0},
            "diversity_weight": {"low": 0.0, "high": 2.0},
            "contrast_weight": {"low": 0.0, "high": 2.0},
            "temperature": {"low": 0.03, "high": 0.3, "log": True},
        }

    def feature_phase(self, progress: Progress) -> tuple[Hashable, ...]:
        """Whether AD and whether CCL is on."""
        return progress.epoch < self.config.t_ad, progress.epoch >= self.config.t_cl

    def feature_loss(
        self, network: nn.Module, outputs: BranchOutputs, batch: Batch, progress: Progress
    ) -> dict[str, Tensor]:
        """Eq 12."""
        terms = self._collaboration(outputs.logits, batch)
        if self.config.dol:
            terms |= self._independence(network, outputs.features, outputs.logits, batch, progress.epoch)
        if self.config.contrast_alone and "contrast" in terms:
            return {"contrast": terms["contrast"]}  # the classifiers have no gradient now and only decay
        return terms

    def _collaboration(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """CoL, Eq 11, or the sum of the experts' cross-entropies."""
        config = self.config
        means = torch.stack([batch.mean(own) for own in cross_entropies(logits, batch.labels).unbind(1)])
        if not config.col:
            return {"cross_entropy": means.sum()}
        factor = config.experts if config.parallel_times_experts else 1
        terms = {"parallel": factor * losses.parallel(global_mean(means), config.epsilon)}
        if config.experts > 1:
            terms["distill"] = config.distillation_weight * batch.mean(losses.distillation(logits))
        return terms

    def _independence(
        self, network: nn.Module, features: Tensor, logits: Tensor, batch: Batch, epoch: int
    ) -> dict[str, Tensor]:
        """DOL, Eq 7. The memory is updated first, so that it has a prototype of each class in the batch."""
        config = self.config
        memory = cast(Memory, network.get_submodule("memory"))
        memory.update(
            features, logits, batch.labels, batch.weight > 0, config.confusion_momentum, config.prototype_momentum
        )
        terms = {}
        if epoch < config.t_ad and config.experts > 1:
            diversity = losses.diversity(features, config.diversity_cosines)
            terms["diversity"] = config.diversity_weight * batch.mean(diversity)
        if epoch >= config.t_cl:
            contrast = losses.contrast(
                features,
                batch.labels,
                memory.confusion,
                memory.prototypes,
                config.confused_classes,
                config.temperature,
                config.contrast_negatives,
                config.contrast_classes,
            )
            terms["contrast"] = config.contrast_weight * batch.mean(contrast)
        return terms
