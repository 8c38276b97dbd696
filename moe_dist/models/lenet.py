"""LeNet-5 experts and the managing network of DFCP-MoE (Eq 5-6, Tables 1 and 2).

Letters in shapes: B samples of a batch, C classes, E experts, S image side. Cost is counted in multiply-adds of one
image's forward pass; biases, activations and pooling are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from moe_dist.errors import UserError

LENET_KERNEL = 5
MANAGING_KERNEL = 3


@dataclass(frozen=True)
class LeNetWidths:
    """Widths of one expert (a row of Table 1): filters of the two convolutions, neurons of the two hidden layers."""

    conv1: int
    conv2: int
    fc1: int
    fc2: int


class LeNet(nn.Module):
    """LeNet-5 with free widths (Eq 6): images [B, 3, S, S] -> logits [B, outputs].

    One output is the binary expert ("mine or not"); C outputs are an expert of the traditional mixture.
    Raises UserError where the image is too small for two 5x5 convolutions, each followed by pooling.
    """

    def __init__(self, widths: LeNetWidths, outputs: int = 1, image_size: int = 32) -> None:
        super().__init__()
        _, convolved = _lenet_sides(image_size)
        self.features = nn.Sequential(
            nn.Conv2d(3, widths.conv1, LENET_KERNEL),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(widths.conv1, widths.conv2, LENET_KERNEL),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(widths.conv2 * (convolved // 2) ** 2, widths.fc1),
            nn.ReLU(),
            nn.Linear(widths.fc1, widths.fc2),
            nn.ReLU(),
            nn.Linear(widths.fc2, outputs),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, outputs] of images [B, 3, S, S]."""
        return self.classifier(self.features(quick_to_pool(images)))

    @property
    def initial(self) -> nn.Conv2d:
        """The first convolution, which ReLU and pooling by 2 follow."""
        return cast(nn.Conv2d, self.features[0])

    def after_initial(self, maps: Tensor) -> Tensor:
        """Logits [B, outputs] of the maps [B, filters, s, s] that come of the first convolution, ReLU and pooling."""
        return self.classifier(self.features[3:](maps))

    @staticmethod
    def multiply_adds(widths: LeNetWidths, outputs: int = 1, image_size: int = 32) -> int:
        """Multiply-adds of one image, without building the network. Raises UserError as the constructor does."""
        side1, side2 = _lenet_sides(image_size)
        conv1 = side1**2 * LENET_KERNEL**2 * 3 * widths.conv1
        conv2 = side2**2 * LENET_KERNEL**2 * widths.conv1 * widths.conv2
        linear = pairwise((widths.conv2 * (side2 // 2) ** 2, widths.fc1, widths.fc2, outputs))
        return conv1 + conv2 + sum(inputs * count for inputs, count in linear)


class ManagingNetwork(nn.Module):
    """The gate of Table 2: images [B, 3, S, S] -> gating logits h [B, E] (Eq 5), whose softmax is Eq 1.

    Each convolution is 3x3 with padding 1, then ReLU and 2x2 max-pooling; every weight is drawn Xavier-normal.
    Raises UserError where the image is too small for that many poolings.
    """

    def __init__(
        self,
        experts: int,
        image_size: int = 32,
        filters: tuple[int, ...] = (64, 128, 256),
        hidden: tuple[int, ...] = (512, 128),
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        side = image_size >> len(filters)
        if side < 1:
            raise UserError(
                f"data.image_size = {image_size}: the managing network's {len(filters)} poolings leave no pixel; "
                f"use {1 << len(filters)} or more"
            )
        convolutions: list[nn.Module] = []
        for channels, count in pairwise((3, *filters)):
            convolutions += [nn.Conv2d(channels, count, MANAGING_KERNEL, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*convolutions)
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, count in pairwise((filters[-1] * side**2, *hidden)):
            layers += [nn.Linear(inputs, count), nn.ReLU(), nn.Dropout(dropout)]
        self.classifier = nn.Sequential(*layers, nn.Linear(hidden[-1], experts))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_normal_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Gating logits [B, E] of images [B, 3, S, S]."""
        return self.classifier(self.features(quick_to_pool(images)))


def quick_to_pool(images: Tensor) -> Tensor:
    """Images [B, K, S, S], on a CPU with their channels last in memory, and so all maps that come of them.

    Max-pooling is then several times as fast: a managing network or an expert of 32 pixels predicts in 0.5 to 0.65 of
    the time and trains in 0.6 to 0.9. An exported graph is of any number of images, and keeps its own order.
    """
    if images.is_cuda or torch.compiler.is_exporting():
        return images
    return images.contiguous(memory_format=torch.channels_last)


def _lenet_sides(image_size: int) -> tuple[int, int]:
    """Sides of the two convolved maps: a convolution takes kernel - 1 pixels, pooling halves and rounds down."""
    side1 = image_size - LENET_KERNEL + 1
    side2 = side1 // 2 - LENET_KERNEL + 1
    if side2 < 2:
        raise UserError(
            f"data.image_size = {image_size}: LeNet's two 5x5 convolutions with pooling leave no pixel; use 16 or more"
        )
    return side1, side2
