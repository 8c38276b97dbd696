"""The Siamese network of DFCP-MoE's pseudo-labels (Eq 10-11): an embedding trained on pairs of trusted images.

Letters in shapes: B samples of a batch, N samples of a set, L trusted samples, D dimensions of an embedding, P pairs,
S image side. The paper retrains a pretrained SiameseNet: here a published network's trunk with a fresh embedding, or,
where no weights can be had, a small network from scratch.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from moe_dist.models.backbones import feature_map
from moe_dist.models.resized import resized
from moe_dist.settings.schema import Count, NonNegative, Positive, Strict
from moe_dist.settings.training import Weights

POOLED_SIDE, TRUNK_SIDE = 4, 2
"""Sides of the map before the embedding, of the small network and of a trunk's."""


class SiameseConfig(Strict):
    """The embedding and its training. A batch has `classes_per_batch` times `images_per_class` images."""

    backbone: str | None = None
    """A published network whose last map the embedding is computed of and which is trained on: `timm/NAME`, or a name
    of torchvision's; null: a small network from scratch."""
    weights: Weights | None = "DEFAULT"
    """backbone: a name of pretrained weights, a .safetensors or .pth file of the whole network, or null."""
    image_size: Annotated[int, Field(ge=32)] | None = None
    """backbone: side to which images are resized for it; null keeps data.image_size."""
    trunk_learning_rate: Positive = 2e-4
    """backbone: the rate of its parameters; those of the embedding have `learning_rate`."""
    dimensions: Count = 64
    channels: tuple[Count, ...] = (32, 64, 128)
    """Without a backbone: filters of each stage (convolution, normalisation, ReLU, halving)."""
    margin: Positive = 1.2
    """Distance beyond which a dissimilar pair is left alone; embeddings lie on the unit sphere, so at most 2."""
    balance_pairs: bool = True
    """Average similar pairs, and dissimilar pairs still within the margin, separately; false: one mean over all pairs,
    most of which are dissimilar, far apart already, and have no gradient."""
    epochs: Count = 60
    classes_per_batch: Annotated[int, Field(ge=2)] = 16
    images_per_class: Annotated[int, Field(ge=2)] = 6
    learning_rate: Positive = 2e-3
    weight_decay: NonNegative = 1e-4


class Siamese(nn.Module):
    """The branch that both images of a pair go through (Eq 10).

    Images [B, 3, S, S], S at least 4 * 2^stages, -> embeddings [B, D] of length 1.
    """

    def __init__(self, dimensions: int = 64, channels: tuple[int, ...] = (32, 64, 128)) -> None:
        super().__init__()
        # Each image to mean 0 and variance 1 over all channels: lighting goes, the ratio of colours stays.
        stages: list[nn.Module] = [nn.GroupNorm(1, 3, affine=False)]
        for inputs, outputs in pairwise((3, *channels)):
            stages += [
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        self.features = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(POOLED_SIDE), nn.Flatten())
        self.embedding = nn.Linear(channels[-1] * POOLED_SIDE**2, dimensions)

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings [B, D] of images [B, 3, S, S], on the unit sphere."""
        return functional.normalize(self.embedding(self.features(images)), dim=1)


class SiameseOnTrunk(nn.Module):
    """As Siamese, on the last map of a pretrained network: images [B, 3, S, S] -> embeddings [B, D] of length 1.

    trunk: images -> maps [B, K, s, s], which are averaged to 2 x 2, so that left stays left.
    """

    def __init__(self, trunk: nn.Module, image_size: int | None, dimensions: int) -> None:
        super().__init__()
        self.trunk, self.image_size = trunk, image_size
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(TRUNK_SIDE), nn.Flatten())
        self.embedding = nn.LazyLinear(dimensions)
        with torch.no_grad():
            self.eval()(torch.zeros(1, 3, image_size or 64, image_size or 64))  # now the embedding knows its inputs

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings [B, D] of images [B, 3, S, S], on the unit sphere."""
        maps = self.trunk(resized(images, self.image_size))
        return functional.normalize(self.embedding(self.pool(maps)), dim=1)


def siamese_network(config: SiameseConfig) -> nn.Module:
    """The network to train. Raises UserError where the backbone or its weights cannot be had."""
    if config.backbone is None:
        return Siamese(config.dimensions, config.channels)
    return SiameseOnTrunk(feature_map(config.backbone, config.weights), config.image_size, config.dimensions)


def contrastive_loss(distance: Tensor, dissimilar: Tensor, margin: float) -> Tensor:
    """The contrastive loss of each pair [P] (Eq 11) from its distance [P] and h [P].

    Reading: the standard form, h = 1 for a dissimilar pair: (1 - h) d^2 / 2 + h max(0, m - d)^2 / 2.
    """
    push = functional.relu(margin - distance)
    return 0.5 * torch.where(dissimilar, push, distance).square()


def pair_loss(embeddings: Tensor, labels: Tensor, margin: float, balance: bool) -> Tensor:
    """The contrastive loss over all pairs of a batch (embeddings [B, D], labels [B]), a scalar.

    `balance` adds the mean over similar pairs and the mean over dissimilar pairs within the margin (no pairs: 0).
    """
    first, second = torch.triu_indices(len(labels), len(labels), offset=1, device=labels.device)
    dissimilar = labels[first] != labels[second]
    losses = contrastive_loss(functional.pdist(embeddings), dissimilar, margin)
    if not balance:
        return losses.mean()
    kinds = torch.stack([~dissimilar, dissimilar & (losses > 0)]).to(losses.dtype)  # [2, P]
    return (kinds @ losses / kinds.sum(dim=1).clamp(min=1)).sum()


def balanced_batch(
    labels: np.ndarray, classes_per_batch: int, images_per_class: int, random: np.random.Generator
) -> np.ndarray:
    """The numbers of a batch's images: some of each of some random classes, all different; fewer where fewer exist.

    labels [L]: of all images. At least one class has two images, so that the batch holds a similar pair.
    """
    classes, counts = np.unique(labels, return_counts=True)
    paired = random.choice(classes[counts > 1])
    others = random.permutation(classes[classes != paired])[: classes_per_batch - 1]
    return np.concatenate(
        [random.permutation(np.flatnonzero(labels == label))[:images_per_class] for label in (paired, *others)]
    )


@torch.inference_mode()
def embed(network: nn.Module, batches: Iterable[Tensor]) -> np.ndarray:
    """The flattened outputs [N, D] float32 of a network in eval mode on batches of normalised images."""
    network.eval()
    device = next(network.parameters()).device
    return np.concatenate([network(batch.to(device)).flatten(1).float().cpu().numpy() for batch in batches])
