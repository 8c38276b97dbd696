"""Which study runs next, and how many trials: a budget in trials or seconds, shared equally or by expected gain."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from moe_dist.tune.study import Study


@dataclass(frozen=True)
class Budget:
    """How much a search may do.

    trials: of each study (with sharing = gain, on the average of the studies), None for no limit; seconds: no trial
    begins later; batch: the most trials of a study that are begun together.
    """

    trials: int | None
    seconds: float | None
    sharing: Literal["fair", "gain"]
    batch: int

    def next_study(self, studies: Sequence[Study], idle: Sequence[Study], elapsed: float) -> tuple[Study, int] | None:
        """The study of `idle` that runs next and its number of trials; None where the budget has no trial left for any.

        studies: all of the search; elapsed: its seconds so far.
        """
        if self.seconds is not None and elapsed >= self.seconds:
            return None
        left = [(study, count) for study in idle if (count := self._trials_left(studies, study)) > 0]
        if not left:
            return None
        study, count = min(left, key=lambda each: self._order(each[0]))
        return study, min(count, self.batch)

    def _trials_left(self, studies: Sequence[Study], study: Study) -> int:
        """How many more trials the study may have."""
        if self.trials is None:
            return self.batch
        if self.sharing == "fair":
            return self.trials - len(study.trials)
        return self.trials * len(studies) - sum(len(each.trials) for each in studies)

    def _order(self, study: Study) -> float:
        """The study with the smallest number runs next; of equal ones, the first."""
        if self.sharing == "fair":
            return len(study.trials)
        if not study.trials:
            return float("-inf")
        # A trial that failed before its first score counts as 0.
        scores = [outcome.last.score if outcome.curve else 0.0 for outcome in study.outcomes]
        return -expected_gain(scores, self.batch)


def expected_gain(scores: Sequence[float], more: int) -> float:
    """About how much `more` trials would raise the best of `scores` in [0, 1].

    If trials are exchangeable, the best of n + more is a new one with probability more / (n + more). It is then taken
    to be better by the distance from the median to the best, or by the distance from the best to 1 if that is less.
    """
    best = max(scores)
    step = min(best - statistics.median(scores), 1 - best)
    return more / (len(scores) + more) * step
