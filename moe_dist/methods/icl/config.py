"""What a job may set of ICL. Defaults are the paper's for CIFAR-100-LT, and its released code's where it is silent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from moe_dist.methods.longtail.config import BranchConfig, ClassifierStage, Epoch, FeatureStage
from moe_dist.settings.schema import Count, Fraction, NonNegative, Positive


class IclConfig(BranchConfig):
    """ICL; with `experts: 1`, `col: false` or `dol: false` the rows of its Table 4."""

    name: Literal["icl"] = "icl"
    features: FeatureStage = FeatureStage()
    classifiers: ClassifierStage | None = ClassifierStage()
    col: bool = True
    """CoL, Eq 11: parallel loss and distillation. Off: the sum of the experts' cross-entropies."""
    parallel_times_experts: bool = True
    """The parallel loss times the number of experts, which keeps the step size of a single loss (released code)."""
    epsilon: Positive = 1e-8
    """Of Eq 8."""
    distillation_weight: NonNegative = 1.0
    dol: bool = True
    """DOL, Eq 7: AD before epoch t_ad, CCL from epoch t_cl on."""
    t_ad: Epoch = 30
    t_cl: Epoch = 120
    diversity_weight: NonNegative = 1.0
    contrast_weight: NonNegative = 1.0
    contrast_alone: bool = False
    """From t_cl on, CCL is all that trains, in place of CoL + CCL (released code; Eq 12 adds them)."""
    contrast_negatives: Literal["sum", "mean"] = "sum"
    """Over N(c), in the denominator of Eq 6 (released code: mean)."""
    confused_classes: Count = 7
    """k of Eq 6."""
    temperature: Positive = 0.07
    """tau of Eq 6."""
    confusion_momentum: Fraction = 0.9
    prototype_momentum: Fraction = 0.9
    """alpha of Eq 4 and beta of Eq 5, the weights of the old values (the paper writes 0.1)."""

    def notices(self) -> Sequence[str]:
        """Where CCL is on and its epoch never comes."""
        if not self.dol or self.t_cl < self.features.epochs:
            return ()
        return (f"CCL is never trained on: t_cl = {self.t_cl}, and features.epochs = {self.features.epochs}",)
