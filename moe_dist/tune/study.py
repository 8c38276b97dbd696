"""One study: an Optuna study that suggests batches of trials and is told their outcomes.

Its suggestions follow from (seed, its name, its own outcomes) alone. Trial n is drawn by a sampler that is seeded for
n, so no random state has to be kept, and neither other studies nor workers nor restarts change a suggestion.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from moe_dist.settings.tune import Value
from moe_dist.tune.space import Distributions
from moe_dist.tune.trials import Outcome, Trial

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


@dataclass(frozen=True)
class SamplerSettings:
    """How trials are drawn: kind `tpe`, after `random_trials` random ones, or `random`; and the seed of all studies."""

    kind: str
    random_trials: int
    seed: int


@dataclass
class Study:
    """A study by its name. starts: values of its first trials; outcomes: in the order of the trials' numbers."""

    name: str
    distributions: Distributions
    sampler: SamplerSettings
    starts: Sequence[Mapping[str, Value]] = ()
    trials: list[Trial] = field(default_factory=list, init=False)
    outcomes: list[Outcome] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._asked: list[optuna.Trial] = []
        self._study = optuna.create_study(direction="maximize")

    @property
    def open_trials(self) -> tuple[Trial, ...]:
        """The trials without an outcome."""
        return tuple(self.trials[len(self.outcomes) :])

    @property
    def best(self) -> int | None:
        """The number of the best trial that was trained to its last epoch; None where there is none."""
        finished = [number for number, outcome in enumerate(self.outcomes) if outcome.state == "finished"]
        return max(finished, key=lambda number: (self.outcomes[number].last.sort_key, -number), default=None)

    def ask(self, count: int) -> tuple[Trial, ...]:
        """The next `count` trials; all earlier ones must have an outcome."""
        assert not self.open_trials
        for _ in range(count):
            number = len(self.trials)
            self._add(self.starts[number] if number < len(self.starts) else None)
        return self.open_trials

    def restore(self, trials: Sequence[Trial]) -> None:
        """Add the trials that an earlier run was given by `ask`."""
        for trial in trials:
            assert trial.number == len(self.trials)
            self._add(trial.values)

    def _add(self, values: Mapping[str, Value] | None) -> None:
        """Add a trial with these values, or None: with values that the sampler draws."""
        number = len(self.trials)
        self._study.sampler = self._sampler(number)
        if values is not None:
            self._study.enqueue_trial(dict(values))
        asked = self._study.ask(fixed_distributions=self.distributions)
        self._asked.append(asked)
        self.trials.append(Trial(number, dict(asked.params)))

    def _sampler(self, number: int) -> BaseSampler:
        """The sampler of trial `number`."""
        digest = hashlib.sha256(f"{self.sampler.seed}/{self.name}/{number}".encode()).digest()
        seed = int.from_bytes(digest[:4], "little")
        if self.sampler.kind == "random":
            return RandomSampler(seed)
        # constant_liar counts trials without an outcome as bad, so that the trials of a batch differ from each other.
        return TPESampler(seed=seed, n_startup_trials=self.sampler.random_trials, multivariate=True, constant_liar=True)

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """Take the outcomes of the open trials, in their order."""
        for trial, outcome in zip(self.open_trials, outcomes, strict=True):
            if not outcome.lost:  # to the sampler a lost trial is a running one, until another run has its outcome
                self._tell(trial.number, outcome)
            self.outcomes.append(outcome)

    def tell_again(self, number: int, outcome: Outcome) -> None:
        """Take the outcome of a trial that was lost, and was tried again."""
        assert self.outcomes[number].lost
        if not outcome.lost:
            self._tell(number, outcome)
        self.outcomes[number] = outcome

    def _tell(self, number: int, outcome: Outcome) -> None:
        asked = self._asked[number]
        if outcome.state == "failed":
            self._study.tell(asked, state=TrialState.FAIL)
        elif outcome.state == "stopped":
            asked.report(outcome.last.score, outcome.last.epoch)
            self._study.tell(asked, state=TrialState.PRUNED)
        else:
            self._study.tell(asked, outcome.last.score)

    def importance(self) -> dict[str, float]:
        """Each parameter's share of the score's variance (fANOVA), largest first; the shares sum to 1.

        Computed from the trials trained to their last epoch. Empty where these are fewer than four, or all have the
        same score.
        """
        scores = {outcome.last.score for outcome in self.outcomes if outcome.state == "finished"}
        finished = sum(outcome.state == "finished" for outcome in self.outcomes)
        if finished < 4 or len(scores) < 2:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=32, seed=0)
        found = optuna.importance.get_param_importances(self._study, evaluator=evaluator)
        return {name: float(share) for name, share in found.items()}
