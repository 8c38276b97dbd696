"""torch's optimisers for many members at once, each with its own rate and its own count of steps.

Letters: P members, A the first of them, L numbers in a member's row. The arithmetic is that of torch.optim's SGD,
RMSprop, Adam and AdamW with the defaults that moe_dist/optimisers.py leaves them; what is a number there is a column
[A, 1] here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_dist.config import OptimiserConfig

RMSPROP_SMOOTHING = 0.99
ADAM_BETAS = (0.9, 0.999)
EPSILON = 1e-8
STATE_ROWS = {"sgd": 1, "rmsprop": 1, "adam": 2, "adamw": 2}
"""Numbers an optimiser of each kind keeps beside every parameter."""


class RowOptimiser:
    """The optimisers of P members, all of one kind: one row of every tensor is one member."""

    def __init__(self, configs: Sequence[OptimiserConfig], rows: Tensor) -> None:
        (self.kind,) = {config.kind for config in configs}
        self.state = [torch.zeros_like(rows) for _ in range(STATE_ROWS[self.kind])]
        columns = [[config.learning_rate, config.weight_decay, config.momentum, 0] for config in configs]
        # In double precision, as torch.optim keeps them in Python; the last column counts the members' steps.
        self._numbers = torch.tensor(columns, dtype=torch.float64, device=rows.device)
        self._decays = any(config.weight_decay for config in configs)

    def step(self, rows: Tensor, gradients: Tensor) -> None:
        """Update the parameters `rows` [A, L] of the first A members in place by their `gradients` [A, L]."""
        numbers, state = self._numbers[: len(rows)], [kept[: len(rows)] for kept in self.state]
        numbers[:, 3] += 1
        rate, decay, momentum, steps = numbers.split(1, dim=1)
        if self._decays and self.kind == "adamw":
            rows.mul_((1 - rate * decay).to(rows))
        elif self._decays:
            gradients = torch.addcmul(gradients, rows, decay.to(rows))
        if self.kind == "sgd":
            _sgd(rows, gradients, state[0], rate, momentum)
        elif self.kind == "rmsprop":
            _rmsprop(rows, gradients, state[0], rate)
        else:
            _adam(rows, gradients, state[0], state[1], rate, steps)

    def select(self, order: Tensor) -> None:
        """Keep the members at `order` [A] int64, in that order."""
        self.state = [kept[order] for kept in self.state]
        self._numbers = self._numbers[order]


def _sgd(rows: Tensor, gradients: Tensor, velocity: Tensor, rate: Tensor, momentum: Tensor) -> None:
    velocity.mul_(momentum.to(rows)).add_(gradients)
    rows.addcmul_(velocity, rate.to(rows), value=-1)


def _rmsprop(rows: Tensor, gradients: Tensor, square: Tensor, rate: Tensor) -> None:
    square.mul_(RMSPROP_SMOOTHING).addcmul_(gradients, gradients, value=1 - RMSPROP_SMOOTHING)
    rows.addcdiv_(gradients * -rate.to(rows), square.sqrt().add_(EPSILON))


def _adam(rows: Tensor, gradients: Tensor, mean: Tensor, square: Tensor, rate: Tensor, steps: Tensor) -> None:
    first, second = ADAM_BETAS
    mean.lerp_(gradients, 1 - first)
    square.mul_(second).addcmul_(gradients, gradients, value=1 - second)
    rate = rate / (1 - first**steps)
    root = (1 - second**steps).sqrt()
    rows.addcdiv_(mean * -rate.to(rows), square.sqrt().div_(root.to(rows)).add_(EPSILON))
