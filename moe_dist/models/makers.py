"""What a network is made with, so that it need not know where its experts are; and what its experts' maps look like.

Letters used in shapes here: B samples of a batch, C classes, D features, M experts, K channels, S image side, s
map side, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from moe_dist.models.sparse import Routing

if TYPE_CHECKING:
    pass


@dataclass
class ExpertMaps:
    """maps: every expert's last map, M times [B, K, s, s]; logits [B, M, C], which each expert computed from its own.

    Both hang on the autograd graph, so that a logit's gradient by a map can be asked for.
    """

    maps: list[Tensor]
    logits: Tensor


ExpertFactory = Callable[[], nn.Module]

MakeExperts = Callable[[Sequence[ExpertFactory], Sequence[float], int], nn.Module]
"""(factories by global id, relative costs, seed) -> the experts as one module, each made under its own seed.

In one process the module is models/experts.py's, over ranks parallel/experts.py's; both have the same interface:
called, it gives every expert's output for this rank's samples; `mix(weights, *inputs)` their weighted sum. A member's
parameters are named `<where>.members.<global id>.<parameter>`.
"""

MakeSparse = Callable[[ExpertFactory, Routing, int], nn.Module]
"""(factory of an expert, routing, seed) -> a sparse layer: tokens [T, D] -> (outputs [T, D], balancing loss []).

In one process it is models/sparse.py's, under a DeepSpeed engine parallel/sparse.py's; it has a `gate` and `members`.
"""


@dataclass(frozen=True)
class Makers:
    """What a network is made with, so that it need not know where its experts are: in this process or over ranks."""

    experts: MakeExperts
    sparse: MakeSparse


def seeded(seed: int, build: Callable[[], nn.Module]) -> nn.Module:
    """What `build` returns, its random numbers drawn from `seed` and the caller's generator left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
