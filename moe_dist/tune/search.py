"""All studies of a job behind two questions: what should be run next, and what came of it.

A study has one batch out at a time, so that what it suggests never depends on which of two batches came back first.
When the budget is used up, the best and the job's own configuration of every study are trained again, to be compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moe_dist.tune.budget import Budget
from moe_dist.tune.halving import rung_ranks
from moe_dist.tune.journal import Journal
from moe_dist.tune.study import Study
from moe_dist.tune.trials import Batch, Outcome, Round, Trial, pack_outcome, unpack_outcome

RunRound = Callable[[Round], list[list[Outcome]]]
"""A round -> the outcomes of each batch, in the order of its trials."""


@dataclass(frozen=True)
class Comparison:
    """How a study's best configuration is compared: against `default`, both trained from each of `seeds`."""

    default: Mapping[str, Any]
    seeds: tuple[int, ...]


@dataclass
class Searched:
    """A study in its search: its comparison, if it has one, and what came of it, by seed: (default, best)."""

    study: Study
    comparison: Comparison | None = None
    compared: dict[int, tuple[Outcome, Outcome]] = field(default_factory=dict)
    out: Batch | None = None

    @property
    def next_comparison(self) -> Batch | None:
        """What is still to be trained for the comparison."""
        if self.comparison is None or self.study.best is None:
            return None
        left = [seed for seed in self.comparison.seeds if seed not in self.compared]
        best = self.study.trials[self.study.best].values
        trials = (Trial(0, dict(self.comparison.default)), Trial(1, best))
        return Batch(self.study.name, trials, left[0]) if left else None


class Search:
    """The studies of a job by name, their budget, and the journal that makes them outlive this process.

    seed: of the trials' trainings; rungs: epochs at which a study's trials are stopped; together: studies in a round.
    """

    def __init__(
        self,
        searched: Sequence[Searched],
        budget: Budget,
        journal: Journal,
        *,
        seed: int = 0,
        rungs: Sequence[int] = (),
        together: int = 1,
        work_begins: Callable[[], None] = lambda: None,
    ) -> None:
        """work_begins: called when there is a round to be run."""
        self.searched = {each.study.name: each for each in searched}
        self._budget, self._journal, self._seed, self._rungs = budget, journal, seed, tuple(rungs)
        self._together = together
        self._work_begins = work_begins
        self._studies = [each.study for each in searched]
        self._earlier, self._rounds = 0.0, 0
        for record in journal.records:
            self._replay(record)
        self._started = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the search began, those between its runs left out."""
        return self._earlier + time.monotonic() - self._started

    @property
    def told(self) -> int:
        """Trials that have come back."""
        return sum(len(study.outcomes) for study in self._studies)

    @property
    def under_way(self) -> bool:
        """Whether somebody is running a batch."""
        return any(each.out for each in self.searched.values())

    def next_round(self) -> Round | None:
        """What to run next; None: nothing, until a round that is under way has come back, or at all."""
        batches: list[Batch] = []
        while len(batches) < self._together and (batch := self._next_batch()):
            batches.append(batch)
            self.searched[batch.study].out = batch
        if not batches:
            return None
        self._work_begins()
        self._rounds += 1
        return Round(self._rounds, tuple(batches))

    def _next_batch(self) -> Batch | None:
        idle = [each for each in self.searched.values() if not each.out]
        for each in idle:
            if each.study.open_trials:  # asked for by a run that was killed
                return self._batch(each.study)
        turn = self._budget.turn(self._studies, [each.study for each in idle], self.elapsed)
        if turn is not None:
            study, count = turn
            trials = study.ask(count)
            asked = [{"number": trial.number, "values": trial.values} for trial in trials]
            self._journal.write({"study": study.name, "asked": asked})
            return self._batch(study)
        if self._budget.turn(self._studies, self._studies, self.elapsed) is not None:
            return None  # those that have trials left are out; their best is not known yet
        return next((batch for each in idle if (batch := each.next_comparison)), None)

    def _batch(self, study: Study) -> Batch:
        return Batch(study.name, study.open_trials, self._seed, rung_ranks(study.outcomes, self._rungs))

    def tell(self, work: Round, outcomes: Sequence[Sequence[Outcome]]) -> None:
        """What came of a round: outcomes of each batch, in the order of its trials."""
        for batch, told in zip(work.batches, outcomes, strict=True):
            packed = [pack_outcome(outcome) for outcome in told]
            compared = {} if batch.rungs is not None else {"compared": batch.seed}
            self._journal.write({"study": batch.study, "told": packed, "at": self.elapsed, **compared})
            self._take(batch.study, told, None if batch.rungs is not None else batch.seed)

    def _take(self, name: str, outcomes: Sequence[Outcome], compared: int | None) -> None:
        each = self.searched[name]
        each.out = None
        if compared is None:
            before = each.study.best
            each.study.tell(outcomes)
            if each.study.best != before:
                each.compared.clear()  # a longer search found a better one than the one that was compared
        else:
            default, best = outcomes
            each.compared[compared] = default, best

    def _replay(self, record: Mapping[str, Any]) -> None:
        """Take over what an earlier run wrote into the journal, of the studies that this run has."""
        if record["study"] not in self.searched:
            return
        if "asked" in record:
            trials = [Trial(asked["number"], asked["values"]) for asked in record["asked"]]
            self.searched[record["study"]].study.restore(trials)
        else:
            outcomes = [unpack_outcome(told) for told in record["told"]]
            self._earlier = max(self._earlier, record["at"])
            self._take(record["study"], outcomes, record.get("compared"))


def run_here(search: Search, run_round: RunRound) -> None:
    """Run the whole search in this process, one round after another."""
    while (work := search.next_round()) is not None:
        search.tell(work, run_round(work))
