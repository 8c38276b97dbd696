"""Whose turn it is, and for how many trials: a budget in trials, seconds or both, shared fairly or by expected gain."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from moe_dist.tune.study import Study
from moe_dist.tune.trials import Outcome


@dataclass(frozen=True)
class Budget:
    """trials: of each study (gain: on their average), None without limit; seconds: after which nothing is begun."""

    trials: int | None
    seconds: float | None
    sharing: Literal["fair", "gain"]
    batch: int

    def turn(self, studies: Sequence[Study], idle: Sequence[Study], elapsed: float) -> tuple[Study, int] | None:
        """The next of the `idle` ones among all `studies`, and its number of trials; None where nobody has one left."""
        if self.seconds is not None and elapsed >= self.seconds:
            return None
        open_to = [(study, count) for study in idle if (count := self._left(studies, study)) > 0]
        if not open_to:
            return None
        study, count = min(open_to, key=lambda turn: self._order(turn[0]))
        return study, min(count, self.batch)

    def _left(self, studies: Sequence[Study], study: Study) -> int:
        if self.trials is None:
            return self.batch
        if self.sharing == "fair":
            return self.trials - len(study.trials)
        return self.trials * len(studies) - sum(len(each.trials) for each in studies)

    def _order(self, study: Study) -> float:
        """Smallest first; of equals, the first study."""
        if self.sharing == "fair":
            return len(study.trials)
        if not study.trials:
            return float("-inf")
        return -expected_gain([_score(outcome) for outcome in study.outcomes], self.batch)


def _score(outcome: Outcome) -> float:
    """A trial that failed before its first score is worth nothing."""
    return outcome.last.score if outcome.curve else 0.0


def expected_gain(scores: Sequence[float], more: int) -> float:
    """About how much `more` trials would raise the best of `scores` in [0, 1].

    Of exchangeable trials, the best of n + more is among the new ones with probability more / (n + more). By how much
    it is then better is taken to be the distance from the median to the best, or what is left to 1, if that is less.
    """
    best = max(scores)
    step = min(best - statistics.median(scores), 1 - best)
    return more / (len(scores) + more) * step
