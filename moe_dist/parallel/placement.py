"""Which rank of an expert-parallel group holds which expert, what it computes and what the ranks exchange. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from moe_dist.errors import UserError

Placement = list[list[int]]
"""For each place of an expert-parallel group the global ids of its experts, ascending."""


def place(costs: Sequence[float], ranks: int) -> Placement:
    """Divide experts of relative `costs` over `ranks` by longest processing time first; deterministic.

    Every expert, dearest first, goes to the rank with the least load so far; no rank stays empty. Raises UserError
    where there are more ranks than experts.
    """
    if ranks > len(costs):
        raise UserError(
            f"parallel.expert = {ranks} is more ranks than the method has experts ({len(costs)}); "
            f"every rank needs an expert: set parallel.expert to {len(costs)} or less"
        )
    placement: Placement = [[] for _ in range(ranks)]
    load = [0.0] * ranks
    for expert in sorted(range(len(costs)), key=lambda expert: (-costs[expert], expert)):
        rank = min(range(ranks), key=lambda rank: (load[rank], len(placement[rank]), rank))
        placement[rank].append(expert)
        load[rank] += costs[expert]
    return [sorted(experts) for experts in placement]


def loads(costs: Sequence[float], placement: Placement) -> list[float]:
    """Each rank's share of all costs; 1 / ranks is perfect balance."""
    return [sum(costs[expert] for expert in experts) / sum(costs) for experts in placement]


def exchanged_bytes(
    placement: Placement,
    samples: int,
    input_elements: int,
    output_elements: Sequence[int],
    *,
    mixed: bool,
    input_gradient: bool,
    element_bytes: int = 4,
) -> int:
    """Bytes that one expert-parallel group moves in one training step over `samples` samples, equally many per rank.

    Every sample's input [input_elements] goes to the other ranks; what comes back is every expert's output
    [output_elements[expert]] for the samples of other ranks, or, `mixed`, one weighted sum per rank and sample. The
    backward pass moves the outputs' gradients and, where something before the experts is trained, the inputs'.
    """
    others = len(placement) - 1
    inputs = samples * others * input_elements
    if mixed:
        outputs = samples * others * max(output_elements)
    else:
        outputs = samples * others * sum(output_elements) // len(placement)
    return element_bytes * (inputs * (2 if input_gradient else 1) + outputs * 2)
