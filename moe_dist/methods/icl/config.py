"""ICL's settings. Defaults are the paper's for CIFAR-100-LT, and the released code's where the paper gives none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from moe_dist.methods.longtail.config import BranchConfig, ClassifierStage, Epoch, FeatureStage
from moe_dist.settings.schema import Count, Fraction, NonNegative, Positive


class IclConfig(BranchConfig):
    """ICL. `experts: 1`, `col: false` and `dol: false` give the rows of its Table 4."""

    name: Literal["icl"] = "icl"
    features: FeatureStage = FeatureStage()
    classifiers: ClassifierStage | None = ClassifierStage()
    col: bool = True
    """CoL, Eq 11: parallel loss and distillation. false: the sum of the experts' cross-entropies instead."""
    parallel_times_experts: bool = True
    """Multiply the parallel loss by the number of experts, which keeps a single loss's step size (released code)."""
    epsilon: Positive = 1e-8
    """epsilon of Eq 8."""
    distillation_weight: NonNegative = 1.0
    dol: bool = True
    """DOL, Eq 7: AD before epoch t_ad, CCL from epoch t_cl on."""
    t_ad: Epoch = 30
    t_cl: Epoch = 120
    diversity_weight: NonNegative = 1.0
    diversity_cosines: Literal["all", "positive"] = "all"
    """The cosines that AD, Eq 3, counts. positive: those above 0 alone. Behind a ReLU, as in the network of the paper's
    text, no other exists and experts at right angles are the least; with aligned features, which are signed, `all` is
    least where one expert is minus the sum of the others."""
    contrast_weight: NonNegative = 1.0
    contrast_alone: bool = False
    """From t_cl on, train with CCL alone (released code) instead of CoL + CCL (Eq 12)."""
    contrast_negatives: Literal["sum", "mean"] = "sum"
    """How N(c) enters the denominator of Eq 6; the released code takes the mean."""
    contrast_classes: Literal["confused", "largest"] = "confused"
    """N(c). confused: up to k other classes that c was mistaken for. largest: the k largest entries of c's row with its
    diagonal, so always k: c itself and, where fewer were predicted, any others (released code)."""
    confused_classes: Count = 7
    """k of Eq 6."""
    temperature: Positive = 0.07
    """tau of Eq 6."""
    confusion_momentum: Fraction = 0.9
    prototype_momentum: Fraction = 0.9
    """alpha of Eq 4 and beta of Eq 5, the weights of the old values (the paper writes 0.1)."""

    def notices(self) -> Sequence[str]:
        """A notice where CCL is on and training ends before its epoch."""
        if not self.dol or self.t_cl < self.features.epochs:
            return ()
        return (f"CCL is never trained on: t_cl = {self.t_cl}, and features.epochs = {self.features.epochs}",)
