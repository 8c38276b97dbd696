"""What runs a round where it was sent: trials of experts in banks or one after another, stopped at rungs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from moe_dist.errors import DiskError, UserError
from moe_dist.methods.search import ExpertSearch, ExpertTrial, Score, SearchData
from moe_dist.settings.tune import TuneConfig
from moe_dist.tune.halving import Rungs
from moe_dist.tune.space import configured
from moe_dist.tune.trials import Batch, Outcome, Point, Round, State, Trial

REASON_CHARACTERS = 300


class Backend(Protocol):
    """Whatever can train trials: it lives in a worker, and keeps its data open from round to round."""

    def run(self, work: Round) -> list[list[Outcome]]:
        """The outcomes of each batch, in the order of its trials; what goes wrong with a trial is its outcome."""


OpenBackend = Callable[[Any, Any], Backend]
"""(packed task, device) -> the backend, in a worker. A module-level function, so that another process can import it."""


@dataclass
class _Entry:
    """A trial under way, in its study."""

    study: str
    trial: Trial
    curve: list[Point] = field(default_factory=list)
    state: State = "finished"
    reason: str = ""


class ExpertBackend:
    """Trains trials of experts: a round's batches of one seed together."""

    def __init__(self, search: ExpertSearch, data: SearchData, settings: TuneConfig, device: torch.device) -> None:
        self._search, self._data, self._settings, self._device = search, data, settings, device
        self._defaults = search.defaults()

    def run(self, work: Round) -> list[list[Outcome]]:
        """See Backend."""
        outcomes: dict[tuple[str, int], Outcome] = {}
        for seed in sorted({batch.seed for batch in work.batches}):
            batches = [batch for batch in work.batches if batch.seed == seed]
            entries = [(batch.study, trial) for batch in batches for trial in batch.trials]
            outcomes |= self._run(entries, batches, seed)
        return [[outcomes[batch.study, trial.number] for trial in batch.trials] for batch in work.batches]

    def _run(
        self, entries: Sequence[tuple[str, Trial]], batches: Sequence[Batch], seed: int
    ) -> dict[tuple[str, int], Outcome]:
        """Train `entries` together; where that fails, halves of them, down to the one that cannot be trained.

        So one configuration that runs out of memory, or breaks in any other way, costs the others only time.
        """
        started = time.perf_counter()
        try:
            trained = self._train([_Entry(*entry) for entry in entries], batches, seed)
        except Exception as error:
            reason = failure(error)
            if len(entries) == 1:
                failed = Outcome("failed", seconds=time.perf_counter() - started, reason=reason)
                return {(entries[0][0], entries[0][1].number): failed}
        else:
            return _outcomes(trained, time.perf_counter() - started)
        if self._device.type == "cuda":  # only here, where the error's frames no longer hold what did not fit
            torch.cuda.empty_cache()
        half = len(entries) // 2
        return self._run(entries[:half], batches, seed) | self._run(entries[half:], batches, seed)

    def _train(self, entries: list[_Entry], batches: Sequence[Batch], seed: int) -> list[_Entry]:
        settings = self._settings
        rungs = {batch.study: Rungs(settings.rung_factor, batch.rungs or {}) for batch in batches}
        trials = self._search.start(
            [self._expert_trial(entry) for entry in entries], seed, self._data, self._device, settings.backend == "bank"
        )
        alive = set(range(len(entries)))
        for epoch in range(1, settings.epochs + 1):
            trials.train_epoch()
            if epoch == settings.epochs or epoch in settings.rungs or epoch % settings.validate_every == 0:
                leaving = _judge(entries, trials.scores(), epoch, rungs if epoch < settings.epochs else {})
                alive -= leaving
                if not alive:
                    break
                trials.drop(leaving)
        return entries

    def _expert_trial(self, entry: _Entry) -> ExpertTrial:
        expert = int(entry.study)
        return ExpertTrial(expert, configured(self._defaults[expert], entry.trial.values))


def _judge(entries: list[_Entry], scores: Mapping[int, Score], epoch: int, rungs: Mapping[str, Rungs]) -> set[int]:
    """Put the scores on the entries' curves; those that end here: diverged, or not among the best at a rung."""
    leaving: set[int] = set()
    for number, score in scores.items():
        if math.isfinite(score.value) and math.isfinite(score.loss):
            entries[number].curve.append(Point(epoch, score.value, score.loss))
        else:
            entries[number].state = "failed"
            entries[number].reason = f"diverged: the validation loss is {score.loss} after epoch {epoch}"
            leaving.add(number)
    for study, of_study in rungs.items():
        arrived = {
            number: entries[number].curve[-1].rank
            for number in scores
            if entries[number].study == study and number not in leaving
        }
        for number in set(arrived) - of_study.survivors(epoch, arrived):
            entries[number].state = "stopped"
            leaving.add(number)
    return leaving


def _outcomes(entries: Sequence[_Entry], seconds: float) -> dict[tuple[str, int], Outcome]:
    """Each entry's outcome; its seconds are its share of all, by the epochs it was trained."""
    epochs = [entry.curve[-1].epoch if entry.curve else 1 for entry in entries]
    return {
        (entry.study, entry.trial.number): Outcome(
            entry.state, tuple(entry.curve), seconds * share / sum(epochs), entry.reason
        )
        for entry, share in zip(entries, epochs)
    }


def failure(error: Exception) -> str:
    """One line of what went wrong with a trial. Raises a DiskError again, which is no fault of the trial."""
    if isinstance(error, DiskError):
        raise error
    text = " ".join(str(error).split())[:REASON_CHARACTERS]
    if isinstance(error, UserError):
        return text
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return f"out of memory: {text}"
    return f"{type(error).__name__}: {text}"
