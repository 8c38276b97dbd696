"""What depends on whether DeepSpeed drives a training: the makers of its network, and its engine."""

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
"""All experts in this process, without DeepSpeed: evaluation, and a training that has one rank."""


def makers(ep_size: int, deepspeed: bool) -> Makers:
    """The makers for a network that is trained at expert-parallel size `ep_size`, driven by a DeepSpeed engine or not.

    What they make is the same, parameter by parameter and name by name; a rank makes its own experts only.
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
    """Around an import: where DeepSpeed is not installed, UserError says so."""
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
    """The engine of one stage: DeepSpeed's over `ranks` ranks, or plain torch in one process.

    Moves `network` to `device`, freezes what no optimiser prefix fits. One engine per network at a time: `close` the
    last stage's first. Raises UserError where DeepSpeed is needed and missing, or cannot train this stage as asked.
    """
    if not deepspeed:
        assert ranks == 1, "several ranks need DeepSpeed"
        return LocalEngine(
            network, optimisers, accumulate=parallel.accumulate(1), clip_norm=clip_norm, device=device, bf16=bf16
        )
    with deepspeed_needed():
        from moe_dist.engine.deepspeed import DeepSpeedEngine
    return DeepSpeedEngine(network, optimisers, parallel=parallel, clip_norm=clip_norm, device=device, bf16=bf16)
