"""What a method's network is made of: experts side by side in this process, or divided over ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from torch import nn

from moe_dist.errors import UserError
from moe_dist.models.experts import Experts
from moe_dist.models.makers import ExpertFactory, Makers
from moe_dist.models.sparse import Routing, SparseExperts

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
