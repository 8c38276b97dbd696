"""torch's optimisers for many members at once, each with its own rate and its own count of steps.

Letters in shapes: M members, A the first of them, W weights in a member's row. The arithmetic is that of torch.optim's
SGD, RMSprop, Adam and AdamW with torch's defaults for what moe_dist/optimisers.py does not set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from moe_dist.settings.training import OptimiserConfig

RMSPROP_SMOOTHING = 0.99
ADAM_BETAS = (0.9, 0.999)
EPSILON = 1e-8
STATES = {"sgd": 1, "rmsprop": 1, "adam": 2, "adamw": 2}
"""How many numbers an optimiser of each kind keeps beside every parameter."""


class MemberOptimisers(Protocol):
    """The optimisers of M members; row m of every tensor belongs to member m."""

    def step(self, rows: Tensor, gradients: Tensor) -> None:
        """Update the first A members' parameters in place: `rows` [A, W] by `gradients` [A, W]."""

    def select(self, order: Sequence[int]) -> None:
        """Keep the members at `order`, in that order."""


class FusedOptimisers:
    """For CPUs: member after member by torch's fused kernels, which read and write every number once.

    torch has no fused RMSprop. It is Adam without a mean of gradients (beta1 = 0) and without corrections for the first
    steps, so Adam's kernel computes it with a step count of infinity.
    """

    def __init__(self, configs: Sequence[OptimiserConfig], rows: Tensor) -> None:
        self._updates = [_fused_update(config, row) for config, row in zip(configs, rows, strict=True)]

    def step(self, rows: Tensor, gradients: Tensor) -> None:
        """See MemberOptimisers."""
        for row, gradient, update in zip(rows, gradients, self._updates):
            update(row, gradient)

    def select(self, order: Sequence[int]) -> None:
        """See MemberOptimisers."""
        self._updates = [self._updates[member] for member in order]


def _fused_update(config: OptimiserConfig, like: Tensor) -> Callable[[Tensor, Tensor], None]:
    """The update of one member: a function of its row [W], which is `like` this one, and gradient [W], with state."""
    numbers: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    numbers |= {"maximize": False, "fused": True}
    if config.kind == "sgd":
        velocity = torch.zeros_like(like)
        numbers |= {"momentum": config.momentum, "dampening": 0.0, "nesterov": False}
        return lambda row, gradient: sgd([row], [gradient], [velocity], **numbers)
    rmsprop = config.kind == "rmsprop"
    first, second = (0.0, RMSPROP_SMOOTHING) if rmsprop else ADAM_BETAS
    numbers |= {"beta1": first, "beta2": second, "eps": EPSILON, "amsgrad": False}
    mean, square, steps = torch.zeros_like(like), torch.zeros_like(like), torch.tensor(math.inf if rmsprop else 0.0)
    update = adamw if config.kind == "adamw" else adam
    return lambda row, gradient: update([row], [gradient], [mean], [square], [], [steps], **numbers)


class MatrixOptimiser:
    """For GPUs: all members by the same operations; what is a number in torch.optim is a column here.

    Raises ValueError where the members' optimisers are not of one kind.
    """

    def __init__(self, configs: Sequence[OptimiserConfig], rows: Tensor) -> None:
        (self.kind,) = {config.kind for config in configs}
        self._state = [torch.zeros_like(rows) for _ in range(STATES[self.kind])]
        columns = [[config.learning_rate, config.weight_decay, config.momentum, 0] for config in configs]
        # In double precision, as torch.optim keeps them in Python; the last column counts the members' steps.
        self._numbers = torch.tensor(columns, dtype=torch.float64, device=rows.device)
        self._decays = any(config.weight_decay for config in configs)

    def step(self, rows: Tensor, gradients: Tensor) -> None:
        """See MemberOptimisers."""
        numbers = self._numbers[: len(rows)]
        numbers[:, 3] += 1
        rate, decay, momentum, steps = numbers.split(1, dim=1)
        if self._decays and self.kind == "adamw":  # its weight decay is apart from the gradient
            rows.mul_((1 - rate * decay).to(rows))
        elif self._decays:  # that of the other kinds is a part of the gradient
            gradients = torch.addcmul(gradients, rows, decay.to(rows))
        state = [kept[: len(rows)] for kept in self._state]
        if self.kind == "sgd":
            (velocity,) = state
            velocity.mul_(momentum.to(rows)).add_(gradients)
            rows.addcmul_(velocity, rate.to(rows), value=-1)
        elif self.kind == "rmsprop":
            (square,) = state
            square.mul_(RMSPROP_SMOOTHING).addcmul_(gradients, gradients, value=1 - RMSPROP_SMOOTHING)
            rows.addcdiv_(gradients * rate.to(rows), square.sqrt().add_(EPSILON), value=-1)
        else:
            first, second = ADAM_BETAS
            mean, square = state
            mean.lerp_(gradients, 1 - first)
            square.mul_(second).addcmul_(gradients, gradients, value=1 - second)
            corrected_rate, root = (rate / (1 - first**steps)).to(rows), (1 - second**steps).sqrt().to(rows)
            rows.addcdiv_(mean * corrected_rate, square.sqrt().div_(root).add_(EPSILON), value=-1)

    def select(self, order: Sequence[int]) -> None:
        """See MemberOptimisers."""
        members = torch.tensor(order, dtype=torch.int64, device=self._numbers.device)
        self._state = [kept[members] for kept in self._state]
        self._numbers = self._numbers[members]
