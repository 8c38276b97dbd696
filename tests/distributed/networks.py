"""Small networks of the three shapes that the methods have, built with the MakeExperts pattern."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from moe_dist.models import GMMMoE
from moe_dist.models.experts import seeded
from moe_dist.models.makers import MakeExperts

SIDE, CLASSES = 8, 4


def weighted_sum(weights: Tensor, outputs: list[Tensor]) -> Tensor:
    """sum over experts of weights[:, e] * outputs[e]; weights [B, E, ...] of the outputs' last dimensions."""
    stacked = torch.stack(outputs, 1)
    shape = (*weights.shape[:2], *[1] * (stacked.dim() - weights.dim()), *weights.shape[2:])
    return (weights.reshape(shape) * stacked).sum(1)


class LeNetMixture(nn.Module):
    """As DFCP-MoE: heterogeneous LeNets on the image, a gate on the image, class probabilities mixed."""

    def __init__(self, make_experts: MakeExperts, experts: int) -> None:
        super().__init__()
        widths = [2 + expert % 5 for expert in range(experts)]
        self.gate = nn.Linear(SIDE * SIDE, experts)
        self.experts = make_experts([partial(lenet, width) for width in widths], widths, 7)

    def forward(self, images: Tensor) -> Tensor:
        """Log-probabilities [B, C]."""
        gate = self.gate(images.flatten(1)).softmax(1)
        return weighted_sum(gate, self.experts(images)).clamp_min(1e-9).log()


class DispatchedMixture(LeNetMixture):
    """As DFCP-MoE with conditional dispatch: the two experts of largest gate weight, and others, see an image."""

    def chosen(self, images: Tensor, gate_logits: Tensor) -> Tensor:
        """The experts [B, E] bool of each image: two by the gate, others by the image's first pixels."""
        experts = gate_logits.shape[1]
        best = nn.functional.one_hot(gate_logits.topk(2).indices, experts).any(1)
        return best | (images.flatten(1)[:, :experts] < 0.2)

    def forward(self, images: Tensor) -> Tensor:
        """Log-probabilities [B, C]."""
        logits = self.gate(images.flatten(1))
        chosen = self.chosen(images, logits)
        gate = logits.masked_fill(~chosen, -1e9).softmax(1)
        return (gate[:, :, None] * self.experts.of_chosen(images, chosen)).sum(1).clamp_min(1e-9).log()


class BranchesOnTrunk(nn.Module):
    """As ICL: three branches of unequal size on a shared trunk, each returning (logits, features)."""

    def __init__(self, make_experts: MakeExperts) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2))
        self.experts = make_experts([partial(Branch, width) for width in (3, 5, 4)], [3.0, 5.0, 4.0], 7)

    def forward(self, images: Tensor) -> Tensor:
        """Log-probabilities [B, C]; features enter through their norm, so that both outputs have a gradient."""
        outputs = self.experts(self.trunk(images))
        logits = sum(logits for logits, _ in outputs)
        feature_size = torch.stack([features.pow(2).mean(1) for _, features in outputs]).mean(0)
        return logits.log_softmax(1) - 0.01 * feature_size[:, None]


class ExpertsOnMap(nn.Module):
    """As the multi-scale GMM-MoE: ten convolutional experts on a feature map, mixed with a weight per position."""

    def __init__(self, make_experts: MakeExperts) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.gate = nn.Conv2d(4, 10, 1)
        self.experts = make_experts([lambda: nn.Conv2d(4, 6, 3, padding=1)] * 10, [1.0] * 10, 7)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Log-probabilities [B, C]."""
        features = self.stem(images).relu()
        mixed = weighted_sum(self.gate(features).softmax(1), self.experts(features))
        return self.head(mixed.relu().mean((2, 3))).log_softmax(1)


class GatedByAMixture(nn.Module):
    """The multi-scale GMM-MoE's module, with live batch statistics in its experts, and its auxiliary loss."""

    def __init__(self, make_experts: MakeExperts) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, stride=2, padding=1)
        self.module = GMMMoE(6, 4, 5, expert_dropout=0.0, make_experts=make_experts, seed=7)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Log-probabilities [B, C], each sample's lowered by its auxiliary loss."""
        mixed = self.module(self.stem(images).relu())
        log_probs = self.head(mixed.features.mean((2, 3))).log_softmax(1)
        return log_probs - self.module.auxiliary(mixed)[:, None]


class NormalisedExperts(nn.Module):
    """Batch normalisation in the dense part and in the experts, and dropout: everything a checkpoint may forget."""

    def __init__(self, make_experts: MakeExperts) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.gate = nn.Linear(4, 3)
        self.experts = make_experts([partial(normalised_expert, width) for width in (3, 4, 5)], [3.0, 4.0, 5.0], 7)

    def forward(self, images: Tensor) -> Tensor:
        """Log-probabilities [B, C]."""
        features = self.trunk(images).mean((2, 3))
        return weighted_sum(self.gate(features).softmax(1), self.experts(features)).log_softmax(1)


class Branch(nn.Module):
    """A convolution, pooled to features [B, width], and a classifier on them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Conv2d(4, width, 3, padding=1)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(logits [B, C], features [B, width])."""
        pooled = self.body(features).relu().mean((2, 3))
        return self.head(pooled), pooled


def normalised_expert(width: int) -> nn.Module:
    """Logits [B, C] of features [B, 4]."""
    return nn.Sequential(
        nn.Linear(4, width, bias=False), nn.BatchNorm1d(width), nn.Dropout(0.2), nn.Linear(width, CLASSES)
    )


def lenet(width: int) -> nn.Module:
    """Two convolutions and two linear layers; class probabilities [B, C] of images [B, 1, 8, 8]."""
    return nn.Sequential(
        *(nn.Conv2d(1, width, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(18 * width, 6), nn.ReLU(), nn.Linear(6, CLASSES), nn.Softmax(1)),
    )


BUILDERS = {
    "dfcp5": lambda make_experts: LeNetMixture(make_experts, 5),
    "dfcp43": lambda make_experts: LeNetMixture(make_experts, 43),
    "dispatched5": lambda make_experts: DispatchedMixture(make_experts, 5),
    "dispatched43": lambda make_experts: DispatchedMixture(make_experts, 43),
    "icl": BranchesOnTrunk,
    "gmm": ExpertsOnMap,
    "gmm_module": GatedByAMixture,
    "normalised": NormalisedExperts,
}


def build(name: str, make_experts: MakeExperts) -> nn.Module:
    """The network called `name`, its dense part seeded as its experts are."""
    return seeded(3, lambda: BUILDERS[name](make_experts))
