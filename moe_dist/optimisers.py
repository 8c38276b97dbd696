"""The torch optimisers, by their names in a job."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from moe_dist.settings.training import OptimiserConfig

KINDS: dict[str, Callable[..., Optimizer]] = {"sgd": SGD, "rmsprop": RMSprop, "adam": Adam, "adamw": AdamW}
"""The torch optimiser of each kind."""


def hyper_parameters(config: OptimiserConfig) -> dict[str, Any]:
    """The arguments of the torch optimiser for a configuration; others keep torch's defaults."""
    momentum = {"momentum": config.momentum} if config.kind == "sgd" else {}
    return {"lr": config.learning_rate, "weight_decay": config.weight_decay, **momentum}


def torch_optimiser(parameters: Iterable[Tensor], config: OptimiserConfig) -> Optimizer:
    """The torch optimiser of `parameters` for a configuration."""
    return KINDS[config.kind](parameters, **hyper_parameters(config))
