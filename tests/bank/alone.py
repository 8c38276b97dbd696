"""A member trained by itself, with LeNet and torch.optim: the judge of a bank. And members to try it on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from moe_dist.bank.batches import EpochData
from moe_dist.bank.stack import Member
from moe_dist.models.experts import seeded_member
from moe_dist.models.lenet import LeNet, LeNetWidths
from moe_dist.optimisers import torch_optimiser
from moe_dist.settings.training import OptimiserConfig

SIDE = 16
IMAGES = 90
KINDS = ("sgd", "rmsprop", "adam", "adamw")


@dataclass
class Alone:
    """A LeNet under torch.optim."""

    member: Member
    dtype: torch.dtype

    def __post_init__(self) -> None:
        self.network = LeNet(self.member.widths, 1, SIDE).to(self.dtype)
        self.network.load_state_dict(self.member.weights)
        self.optimiser = torch_optimiser(self.network.parameters(), self.member.optimiser)

    def train_epoch(self, data: EpochData, images: torch.Tensor) -> None:
        """One epoch on rows of `images`."""
        for start in range(0, len(data.samples), self.member.batch_size):
            rows = slice(start, start + self.member.batch_size)
            logits = self.network(images[data.samples[rows]]).squeeze(1)
            targets = torch.from_numpy(data.targets[rows]).to(self.dtype)
            self.optimiser.zero_grad()
            functional.binary_cross_entropy_with_logits(logits, targets).backward()
            self.optimiser.step()


def mixed_members(count: int, weight_decay: float = 0.0) -> list[Member]:
    """Members of all kinds of optimisers, three batch sizes, and widths and rates of their own."""
    random = np.random.default_rng(count)
    members = []
    for id in range(count):
        conv1, conv2, fc1, fc2 = (int(random.integers(low, high)) for low, high in ((2, 7), (3, 9), (5, 20), (4, 12)))
        widths = LeNetWidths(conv1, conv2, fc1, fc2)
        optimiser = OptimiserConfig(
            kind=KINDS[id % len(KINDS)], learning_rate=float(random.uniform(1e-3, 4e-3)), weight_decay=weight_decay
        )
        weights = seeded_member(lambda widths=widths: LeNet(widths, 1, SIDE), id, seed=0).state_dict()
        members.append(Member(widths, optimiser, (8, 12, 16)[id // len(KINDS) % 3], weights))
    return members


def pictures(dtype: torch.dtype) -> torch.Tensor:
    """Images [90, 3, 16, 16], as networks see them, with flat regions: where pooling meets equal values."""
    images = torch.randn(IMAGES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    images[:, :, :, :7] = -1
    return images.to(dtype)


def epoch_data(member: int, epoch: int) -> EpochData:
    """A member's data of an epoch: 30 to 69 samples of its own, and their targets."""
    own = np.random.default_rng(member)
    samples = own.permutation(IMAGES)[: own.integers(30, 70)]
    samples = np.random.default_rng([member, epoch]).permutation(samples)
    return EpochData(samples, ((samples + member) % 2).astype(np.float32))
