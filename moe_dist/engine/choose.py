"""The makers of a network and its engine, with DeepSpeed or without."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from moe_dist.engine.engine import Engine, LocalEngine
from moe_dist.errors import UserError
from moe_dist.models.experts import Experts
from moe_dist.models.makers import ExpertFactory, Makers
from moe_dist.models.sparse import Routing, SparseExperts
from moe_dist.settings.resources import ParallelConfig
from moe_dist.settings.training import OptimiserConfig

IN_ONE_PROCESS = Makers(experts=Experts, sparse=SparseExperts)
"""Makers that build all experts in this process, for evaluation and for a training on one rank."""


def makers(ep_size: int, deepspeed: bool) -> Makers:
    """The makers of a network that is trained at expert-parallel size `ep_size`, with DeepSpeed or without.

    Names and initial values of parameters do not depend on either. Each rank builds only its own experts.
    """
    if not deepspeed:
        return IN_ONE_PROCESS
    return Makers(experts=partial(_spread, ep_size) if ep_size > 1 else Experts, sparse=partial(_sparse, ep_size))


def _spread(ep_size: int, factories: Sequence[ExpertFactory], costs: Sequence[float], seed: int) -> nn.Module:
    with deepspeed_needed():
        from moe_dist.parallel.experts import ExpertParallel
    return ExpertParallel(factories, costs, seed, ep_size=ep_size)


def _sparse(ep_size: int, factory: ExpertFactory, routing: Routing, seed: int) -> nn.Module:
    with deepspeed_needed():
        from moe_dist.parallel.sparse import SparseParallel
    return SparseParallel(factory, routing, seed, ep_size=ep_size)


@contextmanager
def deepspeed_needed() -> Iterator[None]:
    """Raise UserError if an import in the block fails because DeepSpeed is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "deepspeed":
            raise
        raise UserError("several ranks need DeepSpeed, which is not installed: pip install deepspeed") from None


def make_engine(
    network: nn.Module,
    optimisers: Mapping[str, OptimiserConfig | None],
    *,
    parallel: ParallelConfig,
    clip_norm: float | None,
    device: torch.device,
    bf16: bool,
    ranks: int,
    deepspeed: bool,
) -> Engine:
    """The engine that trains `network` in one stage: DeepSpeed over `ranks` ranks, or plain torch in one process.

    The network is moved to `device`, and parameters that match no prefix of `optimisers` are frozen. A network has one
    engine at a time: `close` the engine of the stage before first. Raises UserError if DeepSpeed is needed and not
    installed, or cannot train this stage.
    """
    if not deepspeed:
        assert ranks == 1, "several ranks need DeepSpeed"
        return LocalEngine(
            network, optimisers, accumulate=parallel.accumulate(1), clip_norm=clip_norm, device=device, bf16=bf16
        )
    with deepspeed_needed():
        from moe_dist.engine.deepspeed import DeepSpeedEngine
    return DeepSpeedEngine(network, optimisers, parallel=parallel, clip_norm=clip_norm, device=device, bf16=bf16)
