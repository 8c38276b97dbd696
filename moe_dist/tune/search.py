"""A search: what is to be run next, over all studies of a job, and what came of it.

A study has at most one batch running, so its suggestions do not depend on which of two batches ends first. When the
budget is used up, every study's best configuration and the job's own are trained again, to be compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from moe_dist.tune.budget import Budget
from moe_dist.tune.halving import rung_keys
from moe_dist.tune.journal import Journal
from moe_dist.tune.study import Study
from moe_dist.tune.trials import Outcome, Round, Trial, TrialBatch

RunRound = Callable[[Round], list[list[Outcome]]]
"""A round -> the outcomes of each batch, in the order of its trials."""


@dataclass(frozen=True)
class Comparison:
    """How a study's best configuration is compared with `default`: both are trained from each of `seeds`."""

    default: Mapping[str, Any]
    seeds: tuple[int, ...]


@dataclass
class SearchedStudy:
    """A study in a search, its comparison or None, the comparison's outcomes by seed (default, best), and its batch."""

    study: Study
    comparison: Comparison | None = None
    compared: dict[int, tuple[Outcome, Outcome]] = field(default_factory=dict)
    running: TrialBatch | None = None

    @property
    def next_comparison(self) -> TrialBatch | None:
        """The next trainings of the comparison; None where there are none left."""
        if self.comparison is None or self.study.best is None:
            return None
        left = [seed for seed in self.comparison.seeds if seed not in self.compared]
        best = self.study.trials[self.study.best].values
        trials = (Trial(0, dict(self.comparison.default)), Trial(1, best))
        return TrialBatch(self.study.name, trials, left[0]) if left else None


class Search:
    """The studies of a job by name, their budget, and the journal that keeps them on disk.

    seed: of the trials' trainings; rungs: epochs at which a study's trials are stopped; together: studies in a round;
    work_begins: called when there is a round to run.
    """

    def __init__(
        self,
        studies: Sequence[SearchedStudy],
        budget: Budget,
        journal: Journal,
        *,
        seed: int = 0,
        rungs: Sequence[int] = (),
        together: int = 1,
        work_begins: Callable[[], None] = lambda: None,
    ) -> None:
        self.studies = {each.study.name: each for each in studies}
        self._budget, self._journal, self._seed, self._rungs = budget, journal, seed, tuple(rungs)
        self._together = together
        self._work_begins = work_begins
        self._earlier, self._rounds = 0.0, 0
        for record in journal.records:
            self._replay(record)
        self._lost = {name: list(_lost_trials(each.study)) for name, each in self.studies.items()}
        self._started = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the search began, without those between its runs."""
        return self._earlier + time.monotonic() - self._started

    @property
    def finished(self) -> int:
        """The number of trials that have an outcome, whatever it is, unless it is that their worker died."""
        return sum(not outcome.lost for each in self.studies.values() for outcome in each.study.outcomes)

    @property
    def lost(self) -> int:
        """The number of trials whose worker died each time that they were tried."""
        return sum(outcome.lost for each in self.studies.values() for outcome in each.study.outcomes)

    @property
    def running(self) -> bool:
        """Whether a batch is running."""
        return any(each.running for each in self.studies.values())

    def next_round(self) -> Round | None:
        """The next round to run. None where there is none left, or none before a running one ends."""
        batches: list[TrialBatch] = []
        while len(batches) < self._together and (batch := self._next_batch()):
            batches.append(batch)
            self.studies[batch.study].running = batch
        if not batches:
            return None
        self._work_begins()
        self._rounds += 1
        return Round(self._rounds, tuple(batches))

    def _next_batch(self) -> TrialBatch | None:
        """The next batch of a study that has none running; comparisons come after all trials."""
        idle = [each for each in self.studies.values() if not each.running]
        for each in idle:
            if lost := self._lost[each.study.name]:  # with their workers, in an earlier run
                self._lost[each.study.name] = lost[self._budget.batch :]
                return self._batch(each.study, lost[: self._budget.batch])
            if each.study.open_trials:  # begun by a run that was killed
                return self._batch(each.study, each.study.open_trials)
        studies = [each.study for each in self.studies.values()]
        following = self._budget.next_study(studies, [each.study for each in idle], self.elapsed)
        if following is not None:
            study, count = following
            trials = study.ask(count)
            asked = [{"number": trial.number, "values": trial.values} for trial in trials]
            self._journal.write({"study": study.name, "asked": asked})
            return self._batch(study, study.open_trials)
        if self._budget.next_study(studies, studies, self.elapsed) is not None:
            return None  # a running study has trials left, so its best is not known yet
        return next((batch for each in idle if (batch := each.next_comparison)), None)

    def _batch(self, study: Study, trials: Sequence[Trial]) -> TrialBatch:
        return TrialBatch(study.name, tuple(trials), self._seed, rung_keys(study.outcomes, self._rungs))

    def tell(self, work: Round, outcomes: Sequence[Sequence[Outcome]]) -> None:
        """Take the outcomes of a round: of each batch, in the order of its trials."""
        for batch, of_batch in zip(work.batches, outcomes, strict=True):
            record: dict[str, Any] = {"study": batch.study, "told": [asdict(outcome) for outcome in of_batch]}
            if batch.rungs is None:
                record["compared"] = batch.seed
            elif batch.trials[0].number < len(self.studies[batch.study].study.outcomes):
                record["again"] = [trial.number for trial in batch.trials]
            self._journal.write(record | {"at": self.elapsed})
            self._take(record)

    def _take(self, record: Mapping[str, Any]) -> None:
        """Give a study the outcomes of a record.

        They are of its batch, of lost trials that were tried `again`, or of its comparison from the seed `compared`.
        """
        each = self.studies[record["study"]]
        outcomes = [Outcome.from_values(values) for values in record["told"]]
        each.running = None
        if "compared" in record:
            default, best = outcomes
            each.compared[record["compared"]] = default, best
            return
        before = each.study.best
        if "again" in record:
            for number, outcome in zip(record["again"], outcomes, strict=True):
                each.study.tell_again(number, outcome)
        else:
            each.study.tell(outcomes)
        if each.study.best != before:
            each.compared.clear()  # a longer search found a better one than the one that was compared

    def _replay(self, record: Mapping[str, Any]) -> None:
        """Restore what an earlier run wrote into the journal, if this run has the study."""
        if record["study"] not in self.studies:
            return
        if "asked" in record:
            trials = [Trial(asked["number"], asked["values"]) for asked in record["asked"]]
            self.studies[record["study"]].study.restore(trials)
        else:
            self._earlier = max(self._earlier, record["at"])
            if "compared" not in record or not any(Outcome.from_values(values).lost for values in record["told"]):
                self._take(record)


def _lost_trials(study: Study) -> Iterator[Trial]:
    return (trial for trial, outcome in zip(study.trials, study.outcomes) if outcome.lost)


def run_here(search: Search, run_round: RunRound) -> None:
    """Run the whole search in this process, one round after another."""
    while (work := search.next_round()) is not None:
        search.tell(work, run_round(work))
