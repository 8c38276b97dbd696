"""What a network is made with, so that it need not know where its experts are; and what its experts' maps look like.

Letters in shapes: B samples of a batch, C classes, D features, E experts, K channels of a map, s map side, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from moe_dist.models.sparse import Routing


@dataclass
class ExpertMaps:
    """maps: every expert's last map, E times [B, K, s, s]; logits [B, E, C], which each expert computed from its own.

    Both are part of the autograd graph, so that the gradient of a logit by a map can be computed.
    """

    maps: list[Tensor]
    logits: Tensor


ExpertFactory = Callable[[], nn.Module]

MakeExperts = Callable[[Sequence[ExpertFactory], Sequence[float], int], nn.Module]
"""(factories by global id, relative costs, seed) -> the experts as one module, each made under its own seed.

In one process the module is models/experts.py's, over ranks parallel/experts.py's. Both return every expert's output
for this rank's samples. A member's parameters are named `<where>.members.<global id>.<parameter>`.
"""


class SendsSamples(Protocol):
    """What modules of experts offer beside their forward pass: every sample is computed by some of them."""

    def of_chosen(self, inputs: Tensor, chosen: Tensor) -> Tensor:
        """The outputs [B, E, D] of experts that return [B, D], 0 where `chosen` [B, E] bool is false; inputs [B, ...].

        An expert computes its own samples alone.
        """


MakeSparse = Callable[[ExpertFactory, Routing, int], nn.Module]
"""(factory of an expert, routing, seed) -> a sparse layer: tokens [T, D] -> (outputs [T, D], balancing loss []).

In one process it is models/sparse.py's, under a DeepSpeed engine parallel/sparse.py's; it has a `gate` and `members`.
"""


@dataclass(frozen=True)
class Makers:
    """How a network's experts and sparse layers are made: in this process or over ranks."""

    experts: MakeExperts
    sparse: MakeSparse
