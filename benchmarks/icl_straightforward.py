"""What benchmarks/icl.py compares with: ICL's network and input as one writes them without thinking of speed.

The branches run one after another in float32 and torch's default memory layout; every image is a Pillow image that
goes through torchvision's transforms in a DataLoader worker. Layers are those of models/cifar_resnet.py, so that both
sides compute the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from moe_dist.methods.icl.memory import Memory
from moe_dist.models.branches import BranchOutputs
from moe_dist.models.cifar_resnet import alignment, stage, stem
from moe_dist.vision import torchvision

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


class Straightforward(nn.Module):
    """ResNet-32 with aligned experts and cosine classifiers: images [B, 3, 32, 32] -> features and logits."""

    def __init__(self, experts: int, classes: int) -> None:
        super().__init__()
        self.stem, self.first, self.second = stem(16), stage(16, 16, 1), stage(16, 32, 2)
        self.deep = nn.ModuleList(stage(32, 64, 2) for _ in range(experts))
        self.align = nn.ModuleList(alignment(16, 2) if m % 2 == 0 else alignment(32, 1) for m in range(experts))
        self.weights = nn.ParameterList(torch.randn(classes, 64) for _ in range(experts))
        self.memory = Memory(experts, classes, 64)

    def forward(self, images: Tensor) -> BranchOutputs:
        """Features [B, M, 64] and logits [B, M, C]."""
        first = self.first(self.stem(images))
        second = self.second(first)
        features, logits = [], []
        for m, weight in enumerate(self.weights):
            deep = self.deep[m](second) * self.align[m](first if m % 2 == 0 else second)
            h = functional.adaptive_avg_pool2d(deep, 1).flatten(1)
            features.append(h)
            logits.append(30 * functional.linear(functional.normalize(h), functional.normalize(weight)))
        return BranchOutputs(torch.stack(features, 1), torch.stack(logits, 1))


class PillowImages(Dataset[tuple[Tensor, int]]):
    """images [N, 3, 32, 32] uint8 and labels [N], one at a time, changed as the recipe says."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images.transpose(0, 2, 3, 1), labels
        v2, plain = torchvision().transforms.v2, torchvision().transforms
        self.transform = v2.Compose(
            [
                v2.RandomCrop(32, padding=4),
                v2.RandomHorizontalFlip(),
                v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10),
                plain.ToTensor(),  # with Normalize, faster than v2's own three steps
                plain.Normalize(MEAN, STD),
                v2.RandomErasing(1.0, (0.25, 0.25), (1.0, 1.0)),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, sample: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[sample])), int(self.labels[sample])


def loaded_batches(
    images: np.ndarray, labels: np.ndarray, batch_size: int, workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled batches without end: images [B, 3, 32, 32] float32, labels [B]."""
    loader = DataLoader(
        PillowImages(images, labels),
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=True,
        multiprocessing_context="fork",
    )
    return itertools.chain.from_iterable(itertools.repeat(loader))
