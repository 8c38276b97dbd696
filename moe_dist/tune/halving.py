"""Asynchronous successive halving (ASHA) of one study: at a rung, only the best of all that came so far go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moe_dist.tune.trials import Outcome

Rank = tuple[float, float]
"""(score, -loss): larger is better."""


class Rungs:
    """The rungs of one study: `ranks` of every trial that reached them, earlier batches' included.

    A study's rungs never see another study's trials.
    """

    def __init__(self, factor: int, ranks: Mapping[int, Sequence[Rank]]) -> None:
        self._factor = factor
        self._ranks = {epoch: list(reached) for epoch, reached in ranks.items()}

    def survivors(self, epoch: int, arrived: Mapping[int, Rank]) -> set[int]:
        """Which of the trials that arrive at a rung together go on: those in the best 1 / factor of all so far.

        After other epochs than a rung's, all of them do.
        """
        if epoch not in self._ranks:
            return set(arrived)
        reached = self._ranks[epoch]
        reached.extend(arrived.values())
        places = max(1, len(reached) // self._factor)
        least = sorted(reached, reverse=True)[places - 1]
        return {trial for trial, rank in arrived.items() if rank >= least}


def rung_ranks(outcomes: Sequence[Outcome], epochs: Sequence[int]) -> dict[int, list[Rank]]:
    """The ranks at each rung of the trials of a study that came so far."""
    ranks: dict[int, list[Rank]] = {epoch: [] for epoch in epochs}
    for outcome in outcomes:
        for point in outcome.curve:
            if point.epoch in ranks:
                ranks[point.epoch].append(point.rank)
    return ranks
