"""torch's optimisers for many members at once, each with its own rate and its own count of steps.

Letters: P members, A the first of them, L numbers in a member's row. The arithmetic is that of torch.optim's SGD,
RMSprop, Adam and AdamW with the defaults that moe_dist/optimisers.py leaves them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
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
STATE_ROWS = {"sgd": 1, "rmsprop": 2, "adam": 2, "adamw": 2}
"""Numbers an optimiser of each kind keeps beside every parameter, at most (RMSprop: one on a GPU)."""
Update = Callable[..., None]
"""(rows, gradients, *state, ...): updates the rows and the state in place."""


class MemberOptimisers(Protocol):
    """The optimisers of P members: row by row of every tensor, one member."""

    def step(self, rows: Tensor, gradients: Tensor) -> None:
        """Update the first A members' parameters in place: `rows` [A, L] by `gradients` [A, L]."""

    def select(self, order: Sequence[int]) -> None:
        """Keep the members at `order`, in that order."""


def member_optimisers(configs: Sequence[OptimiserConfig], rows: Tensor) -> MemberOptimisers:
    """What is fast where `rows` [P, L] are; on a GPU, all of `configs` are of one kind."""
    return MatrixOptimiser(configs, rows) if rows.is_cuda else FusedOptimisers(configs, rows)


class FusedOptimisers:
    """For CPUs: member after member by torch's fused kernels, which read and write every number once.

    RMSprop has none, and is Adam without a mean of gradients (beta1 = 0) and without corrections for the first steps
    (its count of them is infinite).
    """

    def __init__(self, configs: Sequence[OptimiserConfig], rows: Tensor) -> None:
        self._updates = [_fused(config, row) for config, row in zip(configs, rows, strict=True)]

    def step(self, rows: Tensor, gradients: Tensor) -> None:
        """See MemberOptimisers."""
        for row, gradient, update in zip(rows, gradients, self._updates):
            update(row, gradient)

    def select(self, order: Sequence[int]) -> None:
        """See MemberOptimisers."""
        self._updates = [self._updates[member] for member in order]


def _fused(config: OptimiserConfig, row: Tensor) -> Callable[[Tensor, Tensor], None]:
    """A member's update, (its row, gradient), which holds its state."""
    numbers: dict[str, Any] = {
        "lr": config.learning_rate,
        "weight_decay": config.weight_decay,
        "maximize": False,
        "fused": True,
    }
    if config.kind == "sgd":
        numbers |= {"momentum": config.momentum, "dampening": 0.0, "nesterov": False}
        return partial(_fused_sgd, torch.zeros_like(row), numbers)
    rmsprop = config.kind == "rmsprop"
    first, second = (0.0, RMSPROP_SMOOTHING) if rmsprop else ADAM_BETAS
    numbers |= {"beta1": first, "beta2": second, "eps": EPSILON, "amsgrad": False}
    state = torch.zeros_like(row), torch.zeros_like(row), torch.tensor(math.inf if rmsprop else 0.0)
    return partial(_fused_adam, adamw if config.kind == "adamw" else adam, state, numbers)


def _fused_sgd(velocity: Tensor, numbers: Mapping[str, Any], row: Tensor, gradient: Tensor) -> None:
    sgd([row], [gradient], [velocity], **numbers)


def _fused_adam(
    update: Update, state: tuple[Tensor, Tensor, Tensor], numbers: Mapping[str, Any], row: Tensor, gradient: Tensor
) -> None:
    mean, square, steps = state
    update([row], [gradient], [mean], [square], [], [steps], **numbers)


class MatrixOptimiser:
    """For GPUs: members of one kind, all by the same operations; what is a number in torch.optim is a column here."""

    def __init__(self, configs: Sequence[OptimiserConfig], rows: Tensor) -> None:
        (self.kind,) = {config.kind for config in configs}
        self._state = [torch.zeros_like(rows) for _ in range(1 if self.kind == "rmsprop" else STATE_ROWS[self.kind])]
        columns = [[config.learning_rate, config.weight_decay, config.momentum, 0] for config in configs]
        # In double precision, as torch.optim keeps them in Python; the last column counts the members' steps.
        self._numbers = torch.tensor(columns, dtype=torch.float64, device=rows.device)
        self._decays = any(config.weight_decay for config in configs)

    def step(self, rows: Tensor, gradients: Tensor) -> None:
        """See MemberOptimisers."""
        active = len(rows)
        self._numbers[:active, 3] += 1
        self._update(self._numbers[:active], rows)(rows, gradients, *(kept[:active] for kept in self._state))

    def _update(self, numbers: Tensor, rows: Tensor) -> Update:
        """This step's update."""
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

    def select(self, order: Sequence[int]) -> None:
        """See MemberOptimisers."""
        members = torch.tensor(order, dtype=torch.int64, device=self._numbers.device)
        self._state = [kept[members] for kept in self._state]
        self._numbers = self._numbers[members]


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
