"""Settings of EDCWRN, with the paper's values as defaults, and of DEC and IDEC, which leave out parts of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from moe_dist.errors import UserError
from moe_dist.methods.config import MethodConfig
from moe_dist.settings.augment import AugmentConfig
from moe_dist.settings.schema import Count, NonNegative, Part, Positive, Strict
from moe_dist.settings.training import OptimiserConfig, ScheduleConfig

Scope = Literal["batch", "all"]
"""Whose samples are looked at. batch: those of a step's batch, at every step, as the paper has it; all: all samples,
whenever the target is updated."""


class AutoEncoderConfig(Strict):
    """The fully connected autoencoder; the decoder mirrors the encoder."""

    hidden: Annotated[tuple[Count, ...], Field(min_length=1)] = (500, 500, 2000)
    """Widths of the encoder's hidden layers."""
    code: Count = 10
    """Numbers of a code."""
    colour: bool = False
    """Whether it sees the three channels of images; else their mean."""
    scaling: Literal["none", "standard", "power"] = "none"
    """How inputs are scaled before the first layer. standard: each number to mean 0 and variance 1 over all samples;
    power: all by one factor, to a mean square of 1 (as DEC scales texts)."""


class PretrainConfig(Strict):
    """The autoencoder's training by reconstruction, before it clusters."""

    steps: Count = 12_000
    """The paper has about 128,000, by SGD; Adam under a cosine needs fewer."""
    optimiser: OptimiserConfig = OptimiserConfig(kind="adam", learning_rate=1e-3)
    schedule: ScheduleConfig = ScheduleConfig(kind="cosine")


class NeighboursConfig(Strict):
    """The neighbours that a sample's code is made of, beside the sample itself."""

    count: Annotated[int, Field(ge=0)] = 2
    """k; 0: codes are made of the sample alone, by one encoder."""
    scope: Scope = "all"


class WeightingConfig(Strict):
    """The weight of each number of a code in the distance from each centre (Eq 15)."""

    enabled: bool = True
    alpha: Positive = 2.0
    scope: Scope = "all"
    total: Literal["one", "size"] = "one"
    """What a cluster's weights add up to in the distance. one: as Eq 16 has it; size: D, so that equal weights leave
    the distance as it is, and what is nearest to what does not fade with the length of codes."""


class StartsConfig(Strict):
    """The centres that the clustering begins with: an optimum of k-means on the pretrained codes."""

    count: Count = 1
    """1: the optimum of the lowest sum of squares, as published. More: so many different ones, the lowest first, are
    each clustered by IDEC for `steps`, and the clustering begins at the one whose clusters then hold the smallest share
    of the codes' variance."""
    steps: Count = 280
    """Of a trial."""


class EdcwrnConfig(MethodConfig):
    """EDCWRN as a job describes it."""

    name: Literal["edcwrn"] = "edcwrn"
    clusters: Count | None = None
    """Default: the number of classes."""
    network: AutoEncoderConfig = AutoEncoderConfig()
    pretrain: PretrainConfig = PretrainConfig()
    augment: AugmentConfig = AugmentConfig()
    """Of images, in both stages; Table 1 is shift 0.1, rotate 10, zoom 0.1. Targets are made of unchanged images."""
    batch_size: Count = 256
    formulation: Literal["proposed", "idec"] = "proposed"
    """proposed: Eq 11 and 13; idec: Student's t and the Kullback-Leibler divergence (Eq 3-4)."""
    weighting: WeightingConfig = WeightingConfig()
    neighbours: NeighboursConfig = NeighboursConfig()
    reconstruct: bool = True
    """Whether the reconstruction is a part of the clustering stage's loss; DEC leaves it out."""
    clustering_weight: NonNegative = 0.1
    """lambda of Eq 12."""
    normalise_q_in_loss: bool = True
    """proposed: the loss sees q normalised over the clusters. With q as it is, the loss alone lets every q grow."""
    a: Positive = 1.93
    b: Positive = 0.79
    """Of Eq 11: UMAP's curve at its default min_dist."""
    kmeans_restarts: Count = 20
    starts: StartsConfig = StartsConfig()
    spread: Positive | None = None
    """How far codes are from their centre at the start, as a root mean square: the code layer, which is linear, is
    scaled to it, and the decoder back. Eq 11 and Student's t have a width of 1, and codes the length that pretraining
    happens to give them: where they are short, every sample is shared among all clusters. None: they stay as they
    are."""
    optimiser: OptimiserConfig = OptimiserConfig(kind="sgd", learning_rate=0.1)
    steps: Count = 20_000
    """Most steps of the clustering stage; it ends before where the labels stand still."""
    refresh_every: Count = 140
    """T: steps between two updates of the target."""
    tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.001
    """The stage ends where less than this share of the labels changed between two updates of the target."""

    floor: Annotated[bool, Part.NONE] = False
    """Whether k-means on the samples, on their principal components and on the pretrained codes is scored as well."""

    def check(self, classes: int) -> None:
        """Refuse changes of images that leave no image to reconstruct."""
        if self.augment.mixup or self.augment.cutmix:
            raise UserError(f"method.augment: {self.name} reconstructs single images; set mixup and cutmix to 0")


class NoNeighbours(NeighboursConfig):
    """None, unless they are asked for."""

    count: Annotated[int, Field(ge=0)] = 0


class NoWeighting(WeightingConfig):
    """None, unless it is asked for."""

    enabled: bool = False


class IdecConfig(EdcwrnConfig):
    """IDEC: Student's t, the divergence and the reconstruction; neither weights nor neighbours."""

    name: Literal["idec"] = "idec"  # type: ignore[assignment]
    formulation: Literal["proposed", "idec"] = "idec"
    weighting: NoWeighting = NoWeighting()
    neighbours: NoNeighbours = NoNeighbours()


class DecConfig(IdecConfig):
    """DEC: as IDEC, without the reconstruction."""

    name: Literal["dec"] = "dec"  # type: ignore[assignment]
    reconstruct: bool = False
    clustering_weight: NonNegative = 1.0
