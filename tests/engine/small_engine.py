"""An engine of one process for a network of a few numbers."""

from __future__ import annotations

import torch
from torch import nn

from moe_dist.engine.choose import make_engine
from moe_dist.engine.engine import Engine
from moe_dist.settings.resources import ParallelConfig
from moe_dist.settings.training import OptimiserConfig

CPU = torch.device("cpu")
SGD = OptimiserConfig(kind="sgd", learning_rate=0.5, momentum=0)


def engine_of(
    network: nn.Module,
    config: OptimiserConfig = SGD,
    accumulate: int = 1,
    clip_norm: float | None = None,
    bf16: bool = False,
    prefix: str = "",
) -> Engine:
    return make_engine(
        network,
        {prefix: config},
        parallel=ParallelConfig(micro_batches=accumulate),
        clip_norm=clip_norm,
        device=CPU,
        bf16=bf16,
        ranks=1,
        deepspeed=False,
    )


def line(*weights: float) -> nn.Linear:
    """y = weights . x, whose gradient is x."""
    network = nn.Linear(len(weights), 1, bias=False)
    network.weight = nn.Parameter(torch.tensor([weights]))
    return network
