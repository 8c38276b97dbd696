"""The network of the long-tail branch methods: a shared trunk, and M experts with a deep stage and classifiers each.

Letters in shapes: B samples, M experts, C classes, D features, K channels, S image side, s map side.

An expert pools its deep stage's map to features h and gives logits z of two sets of classifiers; the first speaks until
`train_classifiers_only`, then the second, fresh one does. Experts may be spread over ranks: what they take and give are
per-sample tensors. Batch normalisation in the trunk sees a rank's share of the batch; in an expert it sees all samples
that reach it, so with `parallel.expert` = `workers` the whole global batch, and otherwise its expert-parallel group's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, cast

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from moe_dist.models import cifar_resnet
from moe_dist.models.backbones import backbone
from moe_dist.models.cifar_resnet import Trunk, alignment
from moe_dist.models.classifiers import ClassifierKind, build_classifier
from moe_dist.models.makers import ExpertMaps, Makers, seeded
from moe_dist.settings.schema import Count, Positive, Strict
from moe_dist.settings.training import Weights

TRUNK_SEED = 7_919
"""Keeps the trunk's random numbers apart from the experts', which are seeded by their ids."""
SETS = 2
"""Sets of classifiers an expert has."""


class NetworkConfig(Strict):
    """Which network is cut into a trunk and experts, and the experts' classifiers."""

    kind: Literal["resnet32", "resnet50", "resnext50"] = "resnet32"
    """resnet32: CIFAR's, stages 1 and 2 shared; the others: torchvision's (ResNeXt-50 32x4d), stages 1 to 3 shared."""
    width: Count = 16
    """resnet32: channels of stage 1; stages 2 and 3 have two and four times as many."""
    aligned: bool = True
    """Expert m multiplies its deep map with an aligned shallow one, of stage 1 + m mod (number of shared stages)."""
    classifier: ClassifierKind = "cosine"
    scale: Positive = 30.0
    """cosine: what the cosines are multiplied by."""
    weights: Weights | None = None
    """resnet50, resnext50: torchvision's name of pretrained weights, or a .safetensors or .pth file; null: random."""

    @model_validator(mode="after")
    def _fields_of_the_kind(self) -> NetworkConfig:
        if self.kind == "resnet32" and self.weights is not None:
            raise ValueError("weights: nobody publishes any for resnet32; leave them out")
        if self.kind != "resnet32" and self.width != type(self).model_fields["width"].default:
            raise ValueError(f"width is resnet32's alone, and {self.kind} has torchvision's; leave it out")
        return self


class BranchOutputs(NamedTuple):
    """features [B, M, D] float32: every expert's h^m; logits [B, M, C] float32: every expert's z^m."""

    features: Tensor
    logits: Tensor


class Branch(nn.Module):
    """One expert: the trunk's maps -> (features [B, D], logits of the first set [B, C], of the second [B, C])."""

    def __init__(
        self, stage: nn.Module, align: nn.Module | None, shallow: int, classifiers: Sequence[nn.Module]
    ) -> None:
        super().__init__()
        self.stage, self.align, self.shallow = stage, align, shallow
        self.classifiers = nn.ModuleList(classifiers)

    def forward(self, *maps: Tensor) -> tuple[Tensor, ...]:
        """maps [B, K, s, s]: the shared stages', the deepest last."""
        features = self.features(maps)
        return (features, *(classifier(features) for classifier in self.classifiers))

    def features(self, maps: Sequence[Tensor]) -> Tensor:
        """The pooled deep map [B, D], in the parameters' type also under autocast."""
        return self.pool(self.deep_map(maps))

    def deep_map(self, maps: Sequence[Tensor]) -> Tensor:
        """The map [B, D, s, s] that is pooled, from the shared stages' maps."""
        deep = self.stage(_channels_last(maps[-1]))
        if self.align is not None:
            deep = deep * self.align(_channels_last(maps[self.shallow]))
        return deep

    def pool(self, deep: Tensor) -> Tensor:
        """Features [B, D] of a deep map [B, D, s, s]."""
        return deep.mean(dim=(2, 3), dtype=next(self.parameters()).dtype)


class BranchNetwork(nn.Module):
    """Trunk and experts; `fresh` [] int64: 0: the first set of classifiers speaks, 1: the second.

    Images and maps are held channels-last, which convolutions on CPU and GPU compute fastest in.
    """

    fresh: Tensor

    def __init__(self, trunk: nn.Module, experts: nn.Module, aligned: bool) -> None:
        super().__init__()
        self.trunk, self.experts, self.aligned = trunk, experts, aligned
        self.register_buffer("fresh", torch.zeros((), dtype=torch.int64))

    def forward(self, images: Tensor) -> BranchOutputs:
        """images [B, 3, S, S] -> every expert's features and logits (Eq 1)."""
        maps = self.trunk(_channels_last(images))
        outputs = self.experts(*(maps if self.aligned else maps[-1:]))  # what travels where experts are spread
        features, first, second = (torch.stack(kind, dim=1) for kind in zip(*outputs))
        return BranchOutputs(features, torch.where(self.fresh.bool(), second, first))

    def expert_maps(self, images: Tensor) -> ExpertMaps:
        """Every expert's deep map and its logits for images [B, 3, S, S]; all experts are in this process."""
        shared = self.trunk(_channels_last(images))
        branches = [cast(Branch, branch) for branch in cast(nn.ModuleDict, self.experts.members).values()]
        maps = [branch.deep_map(shared) for branch in branches]
        speaking = int(self.fresh)
        logits = [branch.classifiers[speaking](branch.pool(deep)) for branch, deep in zip(branches, maps)]
        return ExpertMaps(maps, torch.stack(logits, dim=1))

    def train_classifiers_only(self) -> None:
        """From now on the second set of classifiers speaks, and all else keeps its batch statistics (stage two).

        The state lies in `fresh`, so a network that is loaded from a checkpoint goes on in the same way.
        """
        self.fresh.fill_(1)
        self.train(self.training)

    def train(self, mode: bool = True) -> BranchNetwork:
        """As nn.Module's, but once the fresh classifiers speak, everything else stays in eval mode."""
        super().train(mode)
        if mode and self.fresh:
            self.trunk.eval()
            for branch in cast(nn.ModuleDict, self.experts.members).values():
                branch.eval()
                cast(Branch, branch).classifiers.train()
        return self


@dataclass(frozen=True)
class Parts:
    """How to make a network's parts: the trunk, whose stages give maps of `channels`, and one expert's deep stage."""

    trunk: Callable[[], Trunk]
    channels: tuple[int, ...]
    stage: Callable[[], nn.Module]

    @property
    def features(self) -> int:
        """Channels D of the deep stage's map: every stage doubles them."""
        return 2 * self.channels[-1]


def build_branches(
    config: NetworkConfig, classes: int, image_size: int, experts: int, make: Makers, seed: int
) -> BranchNetwork:
    """The network with `experts` experts for images [B, 3, S, S], everything drawn from `seed` and the expert's id.

    Raises UserError for pretrained weights that cannot be had or do not fit (models/backbones.py).
    """
    parts = _parts(config)
    trunk = seeded(seed + TRUNK_SEED, parts.trunk)
    factories = [partial(_branch, config, parts, classes, expert) for expert in range(experts)]
    group = make.experts(factories, branch_costs(config, classes, image_size, experts), seed)
    return BranchNetwork(trunk, group, config.aligned)


def branch_costs(config: NetworkConfig, classes: int, image_size: int, experts: int) -> list[float]:
    """Multiply-adds of each expert's forward pass for one image: what they differ in is the alignment."""
    with torch.device("meta"):
        parts = _parts(config.model_copy(update={"weights": None}))
        maps = parts.trunk().eval()(torch.empty(1, 3, image_size, image_size))
        costs = []
        for expert in range(experts):
            with FlopCounterMode(display=False) as counter:
                _branch(config, parts, classes, expert).eval().features(maps)
            costs.append(counter.get_total_flops() / 2 + SETS * parts.features * classes)
    return costs


def feature_count(config: NetworkConfig) -> int:
    """D: the features that an expert's classifiers see."""
    with torch.device("meta"):
        return _parts(config.model_copy(update={"weights": None})).features


def last_convolutions(network: BranchNetwork, experts: int) -> list[nn.Parameter | None]:
    """The weights of each expert's last convolution; None for an expert that another rank holds."""
    weights: list[nn.Parameter | None] = [None] * experts
    for expert, branch in cast(nn.ModuleDict, network.experts.members).items():
        last = [part for part in cast(Branch, branch).stage.modules() if isinstance(part, nn.Conv2d)][-1]
        weights[int(expert)] = last.get_parameter("weight")
    return weights


def _channels_last(maps: Tensor) -> Tensor:
    """The same maps, channels-last in memory; an exchange between ranks gives them back as they are by default."""
    return maps.contiguous(memory_format=torch.channels_last)


def _branch(config: NetworkConfig, parts: Parts, classes: int, expert: int) -> Branch:
    """Expert number `expert`, of random numbers drawn now."""
    shared = len(parts.channels)
    shallow = expert % shared
    align = alignment(parts.channels[shallow], shared - shallow) if config.aligned else None
    classifiers = [build_classifier(config.classifier, parts.features, classes, config.scale) for _ in range(SETS)]
    return Branch(parts.stage(), align, shallow, classifiers)


def _parts(config: NetworkConfig) -> Parts:
    return _cifar_parts(config.width) if config.kind == "resnet32" else _torchvision_parts(config)


def _cifar_parts(width: int) -> Parts:
    def trunk() -> Trunk:
        stages = [cifar_resnet.stage(width, width, 1), cifar_resnet.stage(width, 2 * width, 2)]
        return Trunk(cifar_resnet.stem(width), stages)

    return Parts(trunk, (width, 2 * width), lambda: cifar_resnet.stage(2 * width, 4 * width, 2))


def _torchvision_parts(config: NetworkConfig) -> Parts:
    """torchvision's network cut before layer4; pretrained, every expert starts with a copy of the same layer4."""
    name = {"resnet50": "resnet50", "resnext50": "resnext50_32x4d"}[config.kind]
    pretrained = backbone(name, config.weights) if config.weights else None

    def network() -> nn.Module:
        return pretrained or backbone(name)

    def trunk() -> Trunk:
        whole = network()
        stem = nn.Sequential(*(whole.get_submodule(part) for part in ("conv1", "bn1", "relu", "maxpool")))
        return Trunk(stem, [whole.get_submodule(part) for part in ("layer1", "layer2", "layer3")])

    return Parts(trunk, (256, 512, 1024), lambda: copy.deepcopy(network().get_submodule("layer4")))
