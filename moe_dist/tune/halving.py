"""Asynchronous successive halving (ASHA) of one study: at a rung, only the best of all trials so far go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moe_dist.tune.trials import Outcome, SortKey


class Rungs:
    """The rungs of one study, with the sort keys of its trials that reached each of them, in earlier batches too."""

    def __init__(self, factor: int, keys: Mapping[int, Sequence[SortKey]]) -> None:
        self._factor = factor
        self._keys = {epoch: list(reached) for epoch, reached in keys.items()}

    def survivors(self, epoch: int, arrived: Mapping[int, SortKey]) -> set[int]:
        """Of the trials that arrive at a rung together, those in the best 1 / factor of all so far, which go on.

        All of them go on where `epoch` is not a rung.
        """
        if epoch not in self._keys:
            return set(arrived)
        reached = self._keys[epoch]
        reached.extend(arrived.values())
        places = max(1, len(reached) // self._factor)
        least = sorted(reached, reverse=True)[places - 1]
        return {trial for trial, key in arrived.items() if key >= least}


def rung_keys(outcomes: Sequence[Outcome], epochs: Sequence[int]) -> dict[int, list[SortKey]]:
    """The sort keys, at each rung of `epochs`, of a study's trials so far."""
    keys: dict[int, list[SortKey]] = {epoch: [] for epoch in epochs}
    for outcome in outcomes:
        for point in outcome.curve:
            if point.epoch in keys:
                keys[point.epoch].append(point.sort_key)
    return keys
