"""How fast training images are changed: whole batches at a time beside torchvision's transforms, one image at a time.

    python benchmarks/augment.py [--rounds 7]

One thread; images per second of CPU time, so that other programs on the machine do not count; both take turns and the
median round is reported. From uint8 images in memory to normalised float32, the same operations with the same chances;
torchvision's cut-out square comes from its RandomErasing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from machine import machine
from torch import Tensor

from moe_dist.data.augment.augment import DRAWS, augment, normalise
from moe_dist.data.order import uniform
from moe_dist.settings.augment import AugmentConfig
from moe_dist.vision import torchvision

v2 = torchvision().transforms.v2
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
END = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
CIFAR = AugmentConfig(pad_crop=4, flip=True, policy="autoaugment_cifar10", cutout=0.5)
CIFAR_PER_IMAGE = v2.Compose(
    [
        v2.RandomCrop(32, padding=4),
        v2.RandomHorizontalFlip(),
        v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10),
        *END,
        v2.RandomErasing(p=1.0, scale=(0.25, 0.25), ratio=(1.0, 1.0)),
    ]
)
LARGE = AugmentConfig(flip=True, policy="randaugment")
LARGE_PER_IMAGE = v2.Compose([v2.RandomHorizontalFlip(), v2.RandAugment(), *END])


def main() -> None:
    """Print the machine, and a line for each recipe, image side and batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(json.dumps(machine()))
    for name, side, batch, config, per_image in (
        ("CIFAR recipe", 32, 128, CIFAR, CIFAR_PER_IMAGE),
        ("CIFAR recipe", 32, 512, CIFAR, CIFAR_PER_IMAGE),
        ("flip, RandAugment", 224, 64, LARGE, LARGE_PER_IMAGE),
    ):
        images = pictures(batch, side)
        ours, theirs = compare(images, config, per_image, rounds)
        print(
            f"{name}, {side} px, B = {batch}: {ours:,.0f} images/s; one at a time {theirs:,.0f}; x {ours / theirs:.1f}"
        )


def pictures(count: int, side: int) -> Tensor:
    """Smooth pictures with noise, [count, 3, side, side] uint8."""
    random = np.random.default_rng(0)
    coarse = torch.from_numpy(random.random((count, 3, 4, 4), np.float32))
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")
    noise = torch.from_numpy(random.random((count, 3, side, side), np.float32))
    return (smooth * 230 + noise * 25).to(torch.uint8)


def compare(
    images: Tensor, config: AugmentConfig, per_image: Callable[[Tensor], Tensor], rounds: int
) -> tuple[float, float]:
    """Images per second of CPU time: ours, and torchvision's one at a time."""
    samples = np.arange(len(images))

    def batches(epoch: int) -> None:
        for part in range(4):
            draws = uniform(0, 4 * epoch + part, samples, DRAWS)
            normalise(augment(images, config, draws), MEAN, STD)

    def one_at_a_time(epoch: int) -> None:
        torch.stack([per_image(image) for image in images])

    ours, theirs = [], []
    for epoch in range(rounds + 1):
        ours.append(4 * len(images) / seconds(batches, epoch))
        theirs.append(len(images) / seconds(one_at_a_time, epoch))
    return statistics.median(ours[1:]), statistics.median(theirs[1:])  # the first round fills caches


def seconds(work: Callable[[int], None], epoch: int) -> float:
    """CPU seconds of `work(epoch)`."""
    started = time.process_time()
    work(epoch)
    return time.process_time() - started


if __name__ == "__main__":
    main()
