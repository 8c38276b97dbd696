"""Multi-scale GMM-MoE's settings. Defaults are the paper's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from moe_dist.methods.config import MethodConfig, unlike_pretraining
from moe_dist.methods.phases import Stage
from moe_dist.models.multi_scale import Modules, Tap
from moe_dist.settings.augment import AugmentConfig
from moe_dist.settings.data import DataConfig
from moe_dist.settings.schema import Count, NonNegative, Part, Positive, Strict
from moe_dist.settings.training import OptimiserConfig, Sampling, ScheduleConfig, Weights

# Table 1.
CONV3 = Tap(
    at="features.denseblock2", dim=256, kernel=5, temperature=1.3, nll_weight=0.05, balance_weight=0.02, experts=10
)
CONV4 = Tap(
    at="features.denseblock3", dim=512, kernel=3, temperature=1.6, nll_weight=0.10, balance_weight=0.03, experts=10
)
CONV5 = Tap(
    at="features.denseblock4", dim=512, kernel=1, temperature=1.4, nll_weight=0.10, balance_weight=0.03, experts=10
)


ResidualWeight = Annotated[float, Field(gt=0, le=1)]
"""w_r of Eq 14; at 1 the experts' map takes the place of the tap's."""


class StageConfig(Strict):
    """A stage: Adam, slower when the validation loss stands still, ended when it goes on standing still."""

    epochs: Count = 150
    """At most."""
    batch_size: Count = 32
    learning_rate: Positive
    weight_decay: NonNegative = 0.0
    """The paper names L2 decay and gives no value."""
    schedule: ScheduleConfig = ScheduleConfig(kind="plateau", factor=0.2, patience_epochs=10)
    patience_epochs: Count | None = 20
    """The stage ends after so many epochs without a lower validation loss; null: it does not."""
    clip_norm: Positive | None = 1.0
    augment: AugmentConfig = AugmentConfig()
    sampling: Sampling = "instance"

    def stage(self, name: str, title: str, frozen: Sequence[str] = ()) -> Stage:
        """The stage, in which parameters whose names begin with one of `frozen` stay as they are."""
        adam = OptimiserConfig(kind="adam", learning_rate=self.learning_rate, weight_decay=self.weight_decay)
        return Stage(
            name=name,
            title=title,
            batch_size=self.batch_size,
            optimisers={"": adam, **dict.fromkeys(frozen)},
            epochs=self.epochs,
            schedule=self.schedule,
            patience_epochs=self.patience_epochs,
            clip_norm=self.clip_norm,
            augment=self.augment,
            sampling=self.sampling,
        )


class FrozenStage(StageConfig):
    """Stage one: the backbone stands still."""

    learning_rate: Positive = 1e-4


class WholeStage(StageConfig):
    """Stage two: everything is trained."""

    learning_rate: Positive = 5e-5


class GmmMoeConfig(MethodConfig):
    """Multi-scale GMM-MoE, and, with another value of `modules`, what it is compared with."""

    name: Literal["gmm_moe"] = "gmm_moe"
    backbone: str = "timm/densenet121"
    """timm/NAME, or a name of torchvision's."""
    weights: Weights | None = "DEFAULT"
    """A name of pretrained weights, a .safetensors or .pth file of the whole network, or null for random ones."""
    taps: Annotated[tuple[Tap, ...], Field(min_length=1)] = (CONV3, CONV4, CONV5)
    modules: Modules = "gmm"
    """gmm: the method. softmax: a softmax gate (Eq 8); one_expert: K = 1; one_wide_expert: K = 1 with the parameters of
    all; squeeze_excitation: weighted channels; none: the fused taps alone; linear: a linear head on the pooled taps."""
    width: Count = 512
    """Channels of the fused map, and units of the head's hidden layer."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Of the head; the paper gives no value."""
    residual_start: ResidualWeight = 0.5
    residual_end: ResidualWeight = 0.8
    """w_r (Eq 14): in stage one, and after the first `anneal_epochs` epochs of stage two, in between linearly."""
    anneal_epochs: Count = 10
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    frozen: FrozenStage | None = FrozenStage()
    whole: WholeStage | None = WholeStage()
    """Either stage may be left out (null)."""
    top_k: Annotated[tuple[Literal[1, 2], ...], Part.EVALUATION] = ()
    """Report accuracy and latency also where only the k experts of largest responsibility are computed at a place."""
    keep_maps_gib: Annotated[NonNegative, Part.NONE] = 4.0
    """A rank adds so much of the frozen backbone's maps to the cache's folder instead of computing them anew in every
    epoch of stage one and in every run, if that stage changes no images at random. Numbers do not depend on it."""

    def notices_of(self, data: DataConfig) -> Sequence[str]:
        """A notice where images are not normalised as those that the pretrained weights were trained on."""
        return unlike_pretraining(self.backbone, self.weights, data)

    def notices(self) -> Sequence[str]:
        """A notice where the maps cannot be kept."""
        if self.frozen is None or self.frozen.augment == AugmentConfig() or not self.keep_maps_gib:
            return ()
        return ("frozen.augment changes images at random: the backbone's maps are computed anew in every epoch",)
