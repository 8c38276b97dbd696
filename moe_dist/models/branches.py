"""The network of the long-tail branch methods: a shared trunk, and E experts with a deep stage and classifiers each.

Letters in shapes: B samples of a batch, C classes, D features, E experts, K channels and s side of a map, S image side.

An expert pools its deep stage's map to features h and has two sets of classifiers. The network's logits z come from the
first set, and after `train_classifiers_only` from the second, fresh one. Experts may be spread over ranks, since their
inputs and outputs are per-sample tensors. Batch normalisation in the trunk sees a rank's share of the batch; in an
expert it sees all samples that reach it: with `parallel.expert` = `workers` the whole global batch, otherwise that of
its expert-parallel group.
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
from moe_dist.models.classifiers import ClassifierKind, CosineClassifier, LinearClassifier
from moe_dist.models.experts import seeded
from moe_dist.models.gmm_moe import GMMMoE, Mixed
from moe_dist.models.makers import ExpertMaps, Makers
from moe_dist.models.multi_scale import ModuleConfig
from moe_dist.settings.schema import Count, Positive, Strict
from moe_dist.settings.training import Weights

TRUNK_SEED = 7_919
"""Added to the seed, so that the trunk's random numbers are not an expert's."""
MODULE_SEED = 15_485
"""Added to the seed, so that the module's random numbers are neither the trunk's nor an expert's."""
RESIDUAL = 0.5
"""w_r of a module."""
SETS = 2
"""Sets of classifiers of an expert."""


class NetworkConfig(Strict):
    """The network that is cut into a trunk and experts, and the experts' classifiers."""

    kind: Literal["resnet32", "resnet50", "resnext50"] = "resnet32"
    """resnet32: CIFAR's, stages 1 and 2 shared; the others: torchvision's (ResNeXt-50 32x4d), stages 1 to 3 shared."""
    width: Count = 16
    """resnet32: channels of stage 1; stages 2 and 3 have two and four times as many."""
    aligned: bool = True
    """Expert e multiplies its deep map by an aligned shallow one, of stage 1 + e mod (number of shared stages)."""
    alignment_start: Literal["he", "torch"] = "he"
    """aligned: the blocks that align start as all other convolutions do, or by torch's own narrower distribution, as in
    SHIKE's public code, which makes them after it has drawn the others."""
    classifier: ClassifierKind = "cosine"
    scale: Positive = 30.0
    """cosine: the factor of the cosines."""
    weights: Weights | None = None
    """resnet50, resnext50: torchvision's name of pretrained weights, or a .safetensors or .pth file; null: random."""

    module: ModuleConfig | None = None
    """A GMM-gated module of experts (models/gmm_moe.py) on the last shared map, before the branches; null: none."""

    @model_validator(mode="after")
    def _fields_of_the_kind(self) -> NetworkConfig:
        if self.kind == "resnet32" and self.weights is not None:
            raise ValueError("weights: nobody publishes any for resnet32; leave them out")
        if self.kind != "resnet32" and self.width != type(self).model_fields["width"].default:
            raise ValueError(f"width is resnet32's alone, and {self.kind} has torchvision's; leave it out")
        if self.module is not None and self.module.dim > self.channels[-1]:
            raise ValueError(
                f"module.dim: the last shared map has {self.channels[-1]} channels; set it to these or less"
            )
        return self

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels K of the shared stages' maps, the shallowest first; the deep stage doubles the last."""
        return (self.width, 2 * self.width) if self.kind == "resnet32" else (256, 512, 1024)

    @property
    def features(self) -> int:
        """D: the number of features that an expert's classifiers see."""
        return 2 * self.channels[-1]


class BranchOutputs(NamedTuple):
    """features [B, E, D] float32: every expert's h; logits [B, E, C] float32: every expert's z."""

    features: Tensor
    logits: Tensor


class Branch(nn.Module):
    """One expert: the trunk's maps -> (features [B, D], logits [B, C] of the first, and of the second, classifiers)."""

    def __init__(
        self, stage: nn.Module, align: nn.Module | None, shallow: int, classifiers: Sequence[nn.Module]
    ) -> None:
        super().__init__()
        self.stage, self.align, self.shallow = stage, align, shallow
        self.classifiers = nn.ModuleList(classifiers)

    def forward(self, *maps: Tensor) -> tuple[Tensor, ...]:
        """maps [B, K, s, s]: the shared stages', the deepest last."""
        return self.classify(self.deep_map(maps))

    def deep_map(self, maps: Sequence[Tensor]) -> Tensor:
        """The map [B, D, s, s] that is pooled to features, from the shared stages' maps [B, K, s, s]."""
        deep = self.stage(_channels_last(maps[-1]))
        if self.align is not None:
            deep = deep * self.align(_channels_last(maps[self.shallow]))
        return deep

    def classify(self, deep: Tensor) -> tuple[Tensor, ...]:
        """The features [B, D] of a deep map [B, D, s, s], and each classifier's logits [B, C] of them."""
        features = deep.mean(dim=(2, 3), dtype=next(self.parameters()).dtype)  # not autocast's type
        return (features, *(classifier(features) for classifier in self.classifiers))


class BranchNetwork(nn.Module):
    """Trunk and experts, and a module on the trunk's last map where there is one.

    `fresh` [] int64 is 0 where logits come from the first set of classifiers, 1 for the second.

    Images and maps are channels-last in memory, which is fastest for convolutions on CPU and GPU.
    """

    fresh: Tensor

    def __init__(self, trunk: nn.Module, experts: nn.Module, aligned: bool, module: GMMMoE | None = None) -> None:
        super().__init__()
        self.trunk, self.experts, self.aligned, self.module = trunk, experts, aligned, module
        self.register_buffer("fresh", torch.zeros((), dtype=torch.int64))

    def forward(self, images: Tensor) -> BranchOutputs:
        """images [B, 3, S, S] -> every expert's features and logits (Eq 1)."""
        return self.with_module(images)[0]

    def with_module(self, images: Tensor) -> tuple[BranchOutputs, Mixed | None]:
        """The same, and what the module made of the last shared map; None where there is none."""
        maps, mixed = self.shared_maps(images)
        outputs = self.experts(*(maps if self.aligned else maps[-1:]))  # spread experts get no more than they need
        features, first, second = (torch.stack(kind, dim=1) for kind in zip(*outputs))
        return BranchOutputs(features, torch.where(self.fresh.bool(), second, first)), mixed

    def shared_maps(self, images: Tensor) -> tuple[Sequence[Tensor], Mixed | None]:
        """The shared stages' maps [B, K, s, s], the deepest last, and what the module made of that one."""
        maps = self.trunk(_channels_last(images))
        if self.module is None:
            return maps, None
        mixed = self.module(maps[-1])
        return (*maps[:-1], mixed.features), mixed

    def expert_maps(self, images: Tensor) -> ExpertMaps:
        """Every expert's deep map and logits for images [B, 3, S, S]; all experts must be in this process."""
        shared, _ = self.shared_maps(images)
        branches = [cast(Branch, branch) for branch in cast(nn.ModuleDict, self.experts.members).values()]
        maps = [branch.deep_map(shared) for branch in branches]
        used = int(self.fresh)
        logits = [branch.classify(deep)[1 + used] for branch, deep in zip(branches, maps)]
        return ExpertMaps(maps, torch.stack(logits, dim=1))

    def train_classifiers_only(self) -> None:
        """Begin stage two: logits come from the second set of classifiers, and all other parts stay in eval mode.

        `fresh` is part of the network's state, so a network loaded from a checkpoint goes on in the same way.
        """
        self.fresh.fill_(1)
        self.train(self.training)

    def train(self, mode: bool = True) -> BranchNetwork:
        """As nn.Module's, but after `train_classifiers_only` all parts but the fresh classifiers stay in eval mode."""
        super().train(mode)
        if mode and self.fresh:
            self.trunk.eval()
            if self.module is not None:
                self.module.eval()
            for branch in cast(nn.ModuleDict, self.experts.members).values():
                branch.eval()
                cast(Branch, branch).classifiers.train()
        return self


@dataclass(frozen=True)
class Parts:
    """How to make a network's parts: the trunk, and one expert's deep stage."""

    trunk: Callable[[], Trunk]
    stage: Callable[[], nn.Module]


def build_branches(
    config: NetworkConfig, classes: int, image_size: int, experts: int, make: Makers, seed: int
) -> BranchNetwork:
    """The network with `experts` experts for images [B, 3, S, S], initialised from `seed` and the experts' ids.

    Raises UserError for pretrained weights that cannot be fetched or do not fit (models/backbones.py).
    """
    parts = _parts(config)
    trunk = seeded(seed + TRUNK_SEED, parts.trunk)
    factories = [partial(_branch, config, parts, classes, expert) for expert in range(experts)]
    group = make.experts(factories, branch_costs(config, classes, image_size, experts), seed)
    if config.module is None:
        return BranchNetwork(trunk, group, config.aligned)
    build = partial(config.module.build, config.channels[-1], "gmm", RESIDUAL, make.experts, seed)
    return BranchNetwork(trunk, group, config.aligned, cast(GMMMoE, seeded(seed + MODULE_SEED, build)))


def branch_costs(config: NetworkConfig, classes: int, image_size: int, experts: int) -> list[float]:
    """Multiply-adds of each expert's forward pass for one image. Experts differ in their alignment."""
    with torch.device("meta"):
        parts = _parts(config.model_copy(update={"weights": None}))
        maps = parts.trunk().eval()(torch.empty(1, 3, image_size, image_size))
        costs = []
        for expert in range(experts):
            with FlopCounterMode(display=False) as counter:
                _branch(config, parts, classes, expert).eval().deep_map(maps)
            costs.append(counter.get_total_flops() / 2 + SETS * config.features * classes)
    return costs


def last_convolutions(network: BranchNetwork, experts: int) -> list[nn.Parameter | None]:
    """The weights of each expert's last convolution; None for an expert that another rank holds."""
    weights: list[nn.Parameter | None] = [None] * experts
    for expert, branch in cast(nn.ModuleDict, network.experts.members).items():
        last = [part for part in cast(Branch, branch).stage.modules() if isinstance(part, nn.Conv2d)][-1]
        weights[int(expert)] = last.get_parameter("weight")
    return weights


def _channels_last(maps: Tensor) -> Tensor:
    """The same maps, channels-last in memory; an exchange between ranks returns them in the default layout."""
    return maps.contiguous(memory_format=torch.channels_last)


def _branch(config: NetworkConfig, parts: Parts, classes: int, expert: int) -> Branch:
    """Expert number `expert`, initialised by torch's current random state."""
    shared = len(config.channels)
    shallow = expert % shared
    drawn = config.alignment_start
    align = alignment(config.channels[shallow], shared - shallow, drawn) if config.aligned else None
    kind = partial(CosineClassifier, scale=config.scale) if config.classifier == "cosine" else LinearClassifier
    classifiers = [kind(config.features, classes) for _ in range(SETS)]
    return Branch(parts.stage(), align, shallow, classifiers)


def _parts(config: NetworkConfig) -> Parts:
    """The parts of CIFAR's ResNet-32, or of torchvision's network, which is cut before layer4.

    With pretrained weights, every expert starts with a copy of the same layer4.
    """
    if config.kind == "resnet32":
        deep_stage = partial(cifar_resnet.stage, 2 * config.width, 4 * config.width, 2)
        return Parts(partial(cifar_resnet.shared_trunk, config.width), deep_stage)
    name = "resnext50_32x4d" if config.kind == "resnext50" else "resnet50"
    pretrained = backbone(name, config.weights) if config.weights else None

    def trunk() -> Trunk:
        whole = pretrained or backbone(name)
        stem = nn.Sequential(*(whole.get_submodule(part) for part in ("conv1", "bn1", "relu", "maxpool")))
        return Trunk(stem, [whole.get_submodule(part) for part in ("layer1", "layer2", "layer3")])

    return Parts(trunk, lambda: copy.deepcopy((pretrained or backbone(name)).get_submodule("layer4")))
