"""torch's optimisers for many members at once, each with its own rate and its own count of steps.

Letters: P members, A the first of them, L numbers in a member's row. The arithmetic is that of torch.optim's SGD,
RMSprop, Adam and AdamW with the defaults that moe_dist/optimisers.py leaves them; what is a number there is a column
[A, 1] here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from moe_dist.config import OptimiserConfig

RMSPROP_SMOOTHING = 0.99
ADAM_BETAS = (0.9, 0.999)
EPSILON = 1e-8
STATE_ROWS = {"sgd": 1, "rmsprop": 1, "adam": 2, "adamw": 2}
"""Numbers an optimiser of each kind keeps beside every parameter."""
CPU_BLOCK = 2**16
"""Parameters updated at a time on a CPU: they, their gradients, state and temporaries then stay in the cache."""
Update = Callable[..., None]
"""(rows, gradients, *state), all [A, n]: updates the rows and the state in place."""


class RowOptimiser:
    """The optimisers of P members, all of one kind: one row of every tensor is one member."""

    def __init__(self, configs: Sequence[OptimiserConfig], rows: Tensor) -> None:
        (self.kind,) = {config.kind for config in configs}
        self.state = [torch.zeros_like(rows) for _ in range(STATE_ROWS[self.kind])]
        columns = [[config.learning_rate, config.weight_decay, config.momentum, 0] for config in configs]
        # In double precision, as torch.optim keeps them in Python; the last column counts the members' steps.
        self._numbers = torch.tensor(columns, dtype=torch.float64, device=rows.device)
        self._decays = any(config.weight_decay for config in configs)

    def step(self, rows: Tensor, gradients: Sequence[Tensor]) -> None:
        """Update the first A members' parameters in place: `rows` [A, L] by gradients [A, ...], L numbers together."""
        active, start = len(rows), 0
        self._numbers[:active, 3] += 1
        update = self._update(self._numbers[:active], rows)
        for gradient in gradients:
            flat = gradient.flatten(1)
            for block in flat.split(flat.shape[1] if flat.is_cuda else max(1, CPU_BLOCK // active), dim=1):
                columns = slice(start, start + block.shape[1])
                update(rows[:, columns], block, *(kept[:active, columns] for kept in self.state))
                start = columns.stop

    def _update(self, numbers: Tensor, rows: Tensor) -> Update:
        """This step's update of any columns."""
        rate, decay, momentum, steps = numbers.split(1, dim=1)
        if self.kind == "sgd":
            update = partial(_sgd, rate=rate.to(rows), momentum=momentum.to(rows))
        elif self.kind == "rmsprop":
            update = partial(_rmsprop, rate=rate.to(rows))
        else:
            first, second = ADAM_BETAS
            root = (1 - second**steps).sqrt()
            update = partial(_adam, rate=(rate / (1 - first**steps)).to(rows), root=root.to(rows))
        if not self._decays:
            return update
        if self.kind == "adamw":
            return partial(_decayed, update, kept=(1 - rate * decay).to(rows))
        return partial(_penalised, update, decay=decay.to(rows))

    def select(self, order: Tensor) -> None:
        """Keep the members at `order` [A] int64, in that order."""
        self.state = [kept[order] for kept in self.state]
        self._numbers = self._numbers[order]


def _sgd(rows: Tensor, gradients: Tensor, velocity: Tensor, *, rate: Tensor, momentum: Tensor) -> None:
    velocity.mul_(momentum).add_(gradients)
    rows.addcmul_(velocity, rate, value=-1)


def _rmsprop(rows: Tensor, gradients: Tensor, square: Tensor, *, rate: Tensor) -> None:
    square.mul_(RMSPROP_SMOOTHING).addcmul_(gradients, gradients, value=1 - RMSPROP_SMOOTHING)
    rows.addcdiv_(gradients * rate, square.sqrt().add_(EPSILON), value=-1)


def _adam(rows: Tensor, gradients: Tensor, mean: Tensor, square: Tensor, *, rate: Tensor, root: Tensor) -> None:
    first, second = ADAM_BETAS
    mean.lerp_(gradients, 1 - first)
    square.mul_(second).addcmul_(gradients, gradients, value=1 - second)
    rows.addcdiv_(mean * rate, square.sqrt().div_(root).add_(EPSILON), value=-1)


def _decayed(update: Update, rows: Tensor, gradients: Tensor, *state: Tensor, kept: Tensor) -> None:
    """AdamW's weight decay: apart from the gradient."""
    rows.mul_(kept)
    update(rows, gradients, *state)


def _penalised(update: Update, rows: Tensor, gradients: Tensor, *state: Tensor, decay: Tensor) -> None:
    """The other kinds' weight decay: part of the gradient."""
    update(rows, torch.addcmul(gradients, rows, decay), *state)
