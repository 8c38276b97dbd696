"""Which rank of an expert-parallel group holds which expert, its load, and what the ranks exchange. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moe_dist.errors import UserError

Placement = list[list[int]]
"""For each rank of an expert-parallel group the global ids of its experts, ascending."""


def place(costs: Sequence[float], ranks: int) -> Placement:
    """Divide experts of relative `costs` [E] over `ranks` by longest processing time first; deterministic.

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
    """Each rank's share of all costs [E]; 1 / ranks is perfect balance."""
    return [sum(costs[expert] for expert in experts) / sum(costs) for experts in placement]


def exchanged_bytes(
    ranks: int,
    samples: int,
    input_elements: int,
    output_elements: Sequence[int],
    *,
    input_gradient: bool,
) -> int:
    """Bytes in fp32 that a group of `ranks` moves in a training step over `samples` samples, as many per rank.

    Every sample's input, of `input_elements`, goes to the other ranks; every expert's output, of `output_elements` [E],
    for the samples of other ranks comes back; where ranks add up their experts' outputs first, these are one for every
    rank. The backward pass moves the outputs' gradients and, with
    `input_gradient` (something before the experts is trained), the inputs' too.
    """
    others = ranks - 1
    inputs = samples * others * input_elements
    outputs = samples * others * sum(output_elements) // ranks
    return 4 * (inputs * (2 if input_gradient else 1) + outputs * 2)


def exchanged_bytes_of_chosen(
    placement: Placement, chosen: Sequence[np.ndarray], input_elements: int, output_elements: int
) -> int:
    """Bytes in fp32 that a group moves in a training step in which every sample is computed by chosen experts.

    chosen: for each rank, [its samples, E] bool. A sample, of `input_elements`, goes once to every other rank that
    holds an expert chosen for it, with a byte for each expert there; each output, of `output_elements`, comes back, and
    the backward pass moves the outputs' gradients.
    """
    total = 0
    for rank, wanted in enumerate(chosen):
        for other, experts in enumerate(placement):
            if other != rank:
                samples = int(wanted[:, experts].any(1).sum())
                total += samples * (4 * input_elements + len(experts))
                total += 2 * 4 * output_elements * int(wanted[:, experts].sum())
    return total
