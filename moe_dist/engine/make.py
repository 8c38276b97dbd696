"""What takes a training step: autocast, backward, accumulation, clipping, optimiser; in one process or over ranks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from moe_dist.engine.base import Engine
from moe_dist.engine.local import LocalEngine
from moe_dist.engine.makers import deepspeed_needed
from moe_dist.settings.resources import ParallelConfig
from moe_dist.settings.training import OptimiserConfig


def make_engine(
    network: nn.Module,
    optimisers: Mapping[str, OptimiserConfig | None],
    *,
    parallel: ParallelConfig,
    clip_norm: float | None,
    device: torch.device,
    bf16: bool,
    world: int,
    deepspeed: bool,
) -> Engine:
    """The engine of one stage: DeepSpeed's over `world` ranks, or plain torch in one process.

    Moves `network` to `device`, freezes what no optimiser prefix fits. One engine per network at a time: `close` the
    last stage's first. Raises UserError where DeepSpeed is needed and missing, or cannot train this stage as asked.
    """
    if not deepspeed:
        assert world == 1, "several ranks need DeepSpeed"
        return LocalEngine(
            network, optimisers, accumulate=parallel.accumulate(1), clip_norm=clip_norm, device=device, bf16=bf16
        )
    with deepspeed_needed():
        from moe_dist.engine.deepspeed import DeepSpeedEngine
    return DeepSpeedEngine(network, optimisers, parallel=parallel, clip_norm=clip_norm, device=device, bf16=bf16)
