"""ResNet-32 of CIFAR in parts: the shared stem and stages, a deep stage, and strided blocks that align a shallow map.

Three stages of five basic blocks with w, 2w and 4w channels, w = 16 in the papers, on maps of side S, S/2 and S/4.
Letters in shapes: B samples of a batch, K channels of a map, S image side, s map side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

BLOCKS = 5
"""Basic blocks of a stage: 3 * 5 * 2 convolutions, the stem and the classifier are the 32 layers."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a strided 1x1 convolution where the shape changes.

    Maps [B, inputs, s, s] -> [B, outputs, s / stride, s / stride].

    The shortcut takes its stride before its convolution. The numbers are the same, but torch 2.13's backward pass of a
    strided 1x1 convolution with 2 to 7 channels, channels-last, writes past its buffers on processors with AVX2 and no
    AVX-512.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, maps: Tensor) -> Tensor:
        """The block's maps, which are not negative."""
        inner = functional.relu(self.norm1(self.conv1(maps)), inplace=True)
        shortcut = self.shortcut(maps[:, :, :: self.stride, :: self.stride])
        return functional.relu(self.norm2(self.conv2(inner)) + shortcut, inplace=True)


def stem(width: int) -> nn.Sequential:
    """The first convolution: images [B, 3, S, S] -> maps [B, width, S, S]."""
    return kaiming(
        nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
    )


def stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Five basic blocks: maps [B, inputs, s, s] -> [B, outputs, s / stride, s / stride]."""
    first = BasicBlock(inputs, outputs, stride)
    return kaiming(nn.Sequential(first, *(BasicBlock(outputs, outputs) for _ in range(BLOCKS - 1))))


def alignment(channels: int, halvings: int, start: Literal["he", "torch"] = "he") -> nn.Sequential:
    """Strided 3x3 convolutions that bring a shallow map to a deep one's shape.

    Maps [B, K, s, s] -> [B, K * 2^halvings, s / 2^halvings, s / 2^halvings]. A ReLU follows every convolution but the
    second, as in the code that the authors of SHIKE and ICL released: maps aligned from stage 1 may be negative.
    start: whether weights are drawn by `kaiming`, or stay as torch draws them.
    """
    parts: list[nn.Module] = []
    for halving in range(halvings):
        inputs, outputs = channels << halving, channels << (halving + 1)
        parts += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outputs)]
        parts += [nn.ReLU(inplace=True)] if halving != 1 else []
    return kaiming(nn.Sequential(*parts)) if start == "he" else nn.Sequential(*parts)


def shared_trunk(width: int) -> Trunk:
    """The stem and stages 1 and 2: images [B, 3, S, S] -> maps [B, width, S, S] and [B, 2 * width, S / 2, S / 2]."""
    # The stages are drawn before the stem: another order would make another network of the same seed.
    stages = [stage(width, width, 1), stage(width, 2 * width, 2)]
    return Trunk(stem(width), stages)


class Trunk(nn.Module):
    """The part that all experts share: images [B, 3, S, S] -> the map of every shared stage, shallowest first."""

    def __init__(self, stem: nn.Module, stages: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(stages)

    def forward(self, images: Tensor) -> list[Tensor]:
        """One map [B, K, s, s] for each stage."""
        maps = [self.stem(images)]
        for part in self.stages:
            maps.append(part(maps[-1]))
        return maps[1:]


def kaiming(network: nn.Sequential) -> nn.Sequential:
    """Draw the convolutions of `network` from He's normal distribution (fan-in), as CIFAR's ResNets have them."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return network
