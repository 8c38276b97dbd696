"""Settings of every method that trains a branch network on a long tail."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from moe_dist.methods.config import MethodConfig
from moe_dist.methods.phases import Stage
from moe_dist.models.branches import NetworkConfig
from moe_dist.settings.augment import AugmentConfig
from moe_dist.settings.schema import Count, Fraction, NonNegative, Positive, Strict
from moe_dist.settings.training import OptimiserConfig, Sampling, ScheduleConfig

CIFAR_AUGMENT = AugmentConfig(pad_crop=4, flip=True, policy="autoaugment_cifar10", cutout=0.5)
Epoch = Annotated[int, Field(ge=0)]
"""The number of an epoch, counted from 0."""


class StageConfig(Strict):
    """A stage trained by SGD with a cosine schedule to zero."""

    epochs: Count
    batch_size: Count = 128
    learning_rate: Positive
    """The rate at the end of the warm-up, where the cosine begins."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegative = 5e-4
    warmup_epochs: Annotated[int, Field(ge=0)] = 5
    """Epoch e of these has (e + 1) / (warmup_epochs + 1) of the rate."""
    warmup_start: Fraction | None = None
    """The share of the rate in the first of them instead; linear from there. SHIKE's public code begins its second
    stage with 0.375 (0.0375 of 0.1), and its first with the default."""
    clip_norm: Positive | None = None
    augment: AugmentConfig = CIFAR_AUGMENT
    sampling: Sampling = "instance"

    def optimiser(self) -> OptimiserConfig:
        """The optimiser of the parameters that the stage trains."""
        return OptimiserConfig(
            kind="sgd", learning_rate=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay
        )

    def stage(self, name: str, trained: dict[str, OptimiserConfig | None], whole_batch: bool = False) -> Stage:
        """The stage called `name`; trained: an optimiser, or None to freeze, by prefix of parameters' names."""
        return Stage(
            name=name,
            batch_size=self.batch_size,
            optimisers=trained,
            epochs=self.epochs,
            schedule=ScheduleConfig(kind="cosine", warmup_epochs=self.warmup_epochs, warmup_start=self.warmup_start),
            augment=self.augment,
            clip_norm=self.clip_norm,
            sampling=self.sampling,
            whole_batch=whole_batch,
        )


class FeatureStage(StageConfig):
    """Stage one of a method with two: features, and the first set of classifiers."""

    epochs: Count = 180
    learning_rate: Positive = 0.05


class OnlyStage(FeatureStage):
    """Stage one of a method that has no second by default."""

    epochs: Count = 200


class ClassifierStage(StageConfig):
    """Stage two: fresh classifiers on frozen features."""

    epochs: Count = 20
    learning_rate: Positive = 0.1


class BranchConfig(MethodConfig):
    """A network of a trunk and `experts` branches, trained in one or two stages."""

    network: NetworkConfig = NetworkConfig()
    experts: Count = 3
    features: FeatureStage = OnlyStage()
    classifiers: ClassifierStage | None = None
    """A second stage that trains fresh classifiers with logit adjustment; null: none."""
