"""Settings of DFCP-MoE, with the paper's values as defaults where it has one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny, ValidationInfo, model_validator

from moe_dist.errors import UserError
from moe_dist.files import read_text
from moe_dist.methods.config import MethodConfig, unlike_pretraining
from moe_dist.methods.dfcp.trusted import TrustedConfig, read_labels, reviewed_in_words
from moe_dist.methods.edcwrn.config import DecConfig, EdcwrnConfig, IdecConfig
from moe_dist.models.lenet import LeNetWidths
from moe_dist.models.siamese import SiameseConfig
from moe_dist.paths import local_path
from moe_dist.processor import has_avx512
from moe_dist.settings.augment import AugmentConfig
from moe_dist.settings.data import DataConfig
from moe_dist.settings.schema import Count, Fraction, NonNegative, Part, Positive, Strict
from moe_dist.settings.training import OptimiserConfig, ScheduleConfig, Weights
from moe_dist.yaml_core import load_yaml


class ExpertConfig(Strict):
    """One row of Table 1: an expert's widths and its training."""

    conv1: Count = 6
    conv2: Count = 16
    fc1: Count = 122
    fc2: Count = 85
    optimiser: Literal["sgd", "rmsprop", "adam"] = "adam"
    learning_rate: Positive = 2e-3
    batch_size: Count = 32

    @property
    def widths(self) -> LeNetWidths:
        """The layer widths."""
        return LeNetWidths(self.conv1, self.conv2, self.fc1, self.fc2)

    @property
    def optimiser_config(self) -> OptimiserConfig:
        """The expert's optimiser; SGD has momentum 0.9."""
        return OptimiserConfig(kind=self.optimiser, learning_rate=self.learning_rate)


def _recipe(value: Any, info: ValidationInfo) -> Any:
    """Replace the path of a YAML list of experts by the list; relative paths start at the job file's folder."""
    if not isinstance(value, str | Path):
        return value
    path = (info.context or {}).get("folder", Path()) / local_path(value)
    if not path.is_file():
        raise ValueError(f"no recipe of experts at {path}")
    try:
        return load_yaml(read_text(path, str(path), "recipe of experts"))
    except UserError as error:
        raise ValueError(str(error)) from None
    except ValueError as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from None


SIAMESE = "siamese"
"""The backbone of `features` that stands for the Siamese network."""


class FeaturesConfig(Strict):
    """How images become the vectors that are clustered (Eq 7-8)."""

    backbone: str = "efficientnet_b1"
    """A network of torchvision's or `timm/NAME`, cut before its pooling; or `siamese`, that of the pseudo-labels."""
    weights: Weights | None = "DEFAULT"
    """A name of pretrained weights, a .safetensors or .pth file of the whole network, or null for random ones; unused
    by `siamese`."""
    image_size: Annotated[int, Field(ge=32)] = 64
    """Side to which images are resized for the backbone; 64 gives a 2x2 map, 240 an 8x8 one."""


def _clusterer(value: Any, info: ValidationInfo) -> Any:
    """kmeans, or the configuration of a deep clusterer: its name alone, or a mapping with the field `name`."""
    if value == "kmeans" or isinstance(value, EdcwrnConfig):
        return value
    named = {"name": value} if isinstance(value, str) else value
    kinds: dict[str, type[EdcwrnConfig]] = {"edcwrn": EdcwrnConfig, "idec": IdecConfig, "dec": DecConfig}
    if not isinstance(named, dict) or named.get("name") not in kinds:
        raise ValueError(f"choose one of kmeans, {', '.join(kinds)}, or give a deep one's settings with its name")
    config = kinds[named["name"]].model_validate(named, context=info.context)
    if config.clusters is not None:
        raise ValueError("clusters is not a setting of a clusterer of features; clusters.count is their number")
    if config.augment != AugmentConfig() or config.floor:
        raise ValueError("augment and floor are not settings of a clusterer of features")
    return config


class ClustersConfig(Strict):
    """The two clustering stages."""

    clusterer: Annotated[Literal["kmeans"] | SerializeAsAny[EdcwrnConfig], BeforeValidator(_clusterer)] = "kmeans"
    """The first stage: kmeans, or edcwrn, idec or dec, which see the same features; {name: edcwrn, FIELD: ...} sets
    what a job of that method sets."""
    space: Literal["features", "codes"] = "features"
    """The vectors of the second stage's radii: the features, or a deep clusterer's codes at length 1."""
    count: Annotated[int, Field(ge=2)] | None = None
    """Clusters of k-means; default: the number of classes. More clusters are purer; those of one class merge later."""
    restarts: Count = 3
    neighbours: Count = 3
    """K of the graph of K nearest neighbours over centroids; a reference cluster has at least K neighbours in it."""
    radii: tuple[Positive, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    min_coverage: Annotated[float, Field(ge=0, le=1)] = 0.5

    @model_validator(mode="after")
    def _codes_are_of_a_deep_clusterer(self) -> ClustersConfig:
        if self.space == "codes" and self.clusterer == "kmeans":
            raise ValueError("space = codes: k-means has none; choose a deep clusterer, or space = features")
        return self


def _of_a_step(augment: AugmentConfig) -> AugmentConfig:
    """Raise ValueError for augmentation that a step before training, with whole images of one label each, cannot do."""
    for name in ("resized_crop", "mixup", "cutmix"):
        if getattr(augment, name):
            raise ValueError(f"{name} is for training stages (joint.augment), not for the steps before them")
    return augment


StepAugment = Annotated[AugmentConfig, AfterValidator(_of_a_step)]


class PseudoLabelsConfig(Strict):
    """The Siamese network and the threshold."""

    siamese: SiameseConfig = SiameseConfig()
    augment: StepAugment = AugmentConfig()
    held_out: Fraction = 0.25
    """Share of the trusted samples on which the threshold tau* is chosen, by a network that was not trained on them."""


class AloneConfig(Strict):
    """The training of each expert by itself, before the joint stage."""

    epochs: Annotated[int, Field(ge=0)] = 20
    others_fraction: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of the other classes' samples that an expert sees as negatives, class-balanced."""
    augment: StepAugment = AugmentConfig()
    bank: Count = 8
    """Experts trained together in one task, each as it would be alone; 1: every expert has a task of its own."""


class GateConfig(Strict):
    """The managing network and its optimiser (Table 2)."""

    filters: tuple[Count, ...] = (64, 128, 256)
    hidden: tuple[Count, ...] = (512, 128)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    optimiser: OptimiserConfig = OptimiserConfig(kind="adam", learning_rate=1e-4, weight_decay=1e-4)


GATE_SPACE: dict[str, Any] = {
    "gate.optimiser.learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
    "gate.optimiser.weight_decay": {"low": 1e-6, "high": 1e-2, "log": True},
    "gate.dropout": {"low": 0.0, "high": 0.7},
}
"""The managing network's part of a method's search space."""


class JointConfig(Strict):
    """The joint stage: objective L_com + lambda_e L_e + lambda_g L_gate."""

    dispatch: Literal["conditional", "all"] = "conditional"
    """Which experts see a sample. conditional: its cluster's, those the gate prefers and a few others, and Eq 3, 14 and
    16 are over these; all: all."""
    preferred: Count = 2
    """conditional: how many experts of the largest gate weights see a sample."""
    others_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1
    """conditional: share of the other clusters' samples that an expert sees, class-balanced, drawn in each epoch."""

    epochs: Count = 100
    batch_size: Count = 32
    lambda_e: NonNegative = 1.0
    lambda_g: NonNegative = 1.0
    schedule: ScheduleConfig = ScheduleConfig(kind="plateau", factor=0.1, patience_epochs=10)
    augment: AugmentConfig = AugmentConfig()
    clip_norm: Positive | None = None


Experts = Annotated[ExpertConfig | tuple[ExpertConfig, ...], BeforeValidator(_recipe)]


class DfcpConfig(MethodConfig):
    """DFCP-MoE as a job describes it."""

    name: Literal["dfcp"] = "dfcp"
    trusted: TrustedConfig = TrustedConfig()
    features: FeaturesConfig = FeaturesConfig()
    clusters: ClustersConfig = ClustersConfig()
    pseudo_labels: PseudoLabelsConfig = PseudoLabelsConfig()
    experts: Experts = ExpertConfig()
    """One configuration for all experts, a list with one for each class, or the path of a YAML file of such a list."""
    alone: AloneConfig = AloneConfig()
    gate: GateConfig = GateConfig()
    joint: JointConfig = JointConfig()
    top_k: Annotated[tuple[Count, ...], Part.EVALUATION] = (1, 3)
    """Numbers of experts for which accuracy and latency are reported, beside all of them."""

    def notices(self) -> Sequence[str]:
        """What a review changed in the list of labels."""
        changed = None if self.trusted.labels is None else reviewed_in_words(read_labels(self.trusted.labels))
        return () if changed is None else (f"trusted.labels: {changed}",)

    def notices_of(self, data: DataConfig) -> Sequence[str]:
        """A notice where images are not normalised as pretrained weights expect, of features or of the trunk."""
        siamese = self.pseudo_labels.siamese
        used = {(siamese.backbone, siamese.weights)} if siamese.backbone else set()
        if self.features.backbone != SIAMESE:
            used |= {(self.features.backbone, self.features.weights)}
        return [sentence for backbone, weights in sorted(used, key=str) for sentence in
                unlike_pretraining(backbone, weights, data)]  # fmt: skip

    def check(self, classes: int) -> None:
        """Require one expert for each class."""
        expert_list(self.experts, classes)

    def slow_here(self, field: str) -> Sequence[str]:
        """Banks of experts, without AVX-512."""
        if not self.alone.epochs or self.alone.bank == 1 or has_avx512() is not False:
            return ()
        return (
            f"{field}.alone.bank = {self.alone.bank}: without AVX-512, as on this machine, 1 is faster for experts of "
            "about Table 1's widths; banks of them had 0.88 to 0.95 of the speed of one after another, in one process "
            "(1.03 to 1.3 with a search's widths)",
        )


def expert_list(experts: ExpertConfig | tuple[ExpertConfig, ...], classes: int) -> tuple[ExpertConfig, ...]:
    """The configuration of each class's expert. Raises UserError where a list has not one for each of `classes`."""
    if not isinstance(experts, tuple):
        return (experts,) * classes
    if len(experts) != classes:
        raise UserError(
            f"method.experts: {len(experts)} experts, but the dataset has {classes} classes; give each class one"
        )
    return experts
