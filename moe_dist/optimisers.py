"""torch's optimisers by the names a job uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from moe_dist.settings.training import OptimiserConfig

KINDS: dict[str, Callable[..., Optimizer]] = {"sgd": SGD, "rmsprop": RMSprop, "adam": Adam, "adamw": AdamW}
"""The torch optimiser of each kind."""


def hyper_parameters(config: OptimiserConfig) -> dict[str, Any]:
    """What a configuration sets of its torch optimiser; everything else keeps torch's default."""
    momentum = {"momentum": config.momentum} if config.kind == "sgd" else {}
    return {"lr": config.learning_rate, "weight_decay": config.weight_decay, **momentum}


def torch_optimiser(parameters: Iterable[Tensor], config: OptimiserConfig) -> Optimizer:
    """The optimiser of `parameters` that `config` describes."""
    return KINDS[config.kind](parameters, **hyper_parameters(config))
