"""Trials of experts in a worker: trained in banks or one after another, scored on validation, and stopped at rungs."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from moe_dist.data.batch import TrainingSet
from moe_dist.data.opened.opened import OpenedData, open_data
from moe_dist.methods.base import Method
from moe_dist.methods.search import ExpertSearch, ExpertTrial, Score, SearchData
from moe_dist.record.results import Results
from moe_dist.settings.tune import TuneConfig
from moe_dist.train.task import BAD_SAMPLES, TrainingTask, open_method
from moe_dist.tune.backend import failure
from moe_dist.tune.halving import Rungs
from moe_dist.tune.space import configured
from moe_dist.tune.studies import ExpertStudies, tune_settings
from moe_dist.tune.trials import Outcome, Point, Round, State, Trial, TrialBatch


def open_expert_backend(packed: dict[str, Any], device: torch.device) -> ExpertBackend:
    """The backend of experts' trials of a packed TrainingTask, with its data opened."""
    task = TrainingTask.unpack(packed)
    task.fetch_inputs()
    data = open_data(task.job.data, task.job.seed, task.cache, task.shards)
    data.bad_samples.write_to(task.run / BAD_SAMPLES)
    task.push_bad_samples()
    method = open_method(task.job, task.model, data)
    search_data = SearchData(
        config=data.config,
        train=data.train.images,
        training_set=visible_training_set(method, data, Results(task.steps)),
        val=data.val.images,
        val_samples=data.val_samples,
        val_labels=data.val.labels[data.val_samples],
    )
    return ExpertBackend(ExpertStudies(task.job, method).search, search_data, tune_settings(task.job), device)


def visible_training_set(method: Method, data: OpenedData, results: Results) -> TrainingSet:
    """The method's training set, made of the labels that it may see."""
    return method.training_set(results, method.visible_labels(results, data.train.labels), data.train_samples)


@dataclass
class _Entry:
    """A trial in training, and its study."""

    study: str
    trial: Trial
    curve: list[Point] = field(default_factory=list)
    state: State = "finished"
    reason: str = ""


class ExpertBackend:
    """Trains trials of experts; batches of a round that have the same seed are trained together."""

    def __init__(self, search: ExpertSearch, data: SearchData, settings: TuneConfig, device: torch.device) -> None:
        self._search, self._data, self._settings, self._device = search, data, settings, device
        self._defaults = search.defaults()

    def run(self, work: Round) -> list[list[Outcome]]:
        """See Backend."""
        outcomes: dict[tuple[str, int], Outcome] = {}
        for seed in sorted({batch.seed for batch in work.batches}):
            batches = [batch for batch in work.batches if batch.seed == seed]
            trials = [(batch.study, trial) for batch in batches for trial in batch.trials]
            outcomes |= self._run(trials, batches, seed)
        return [[outcomes[batch.study, trial.number] for trial in batch.trials] for batch in work.batches]

    def _run(
        self, trials: Sequence[tuple[str, Trial]], batches: Sequence[TrialBatch], seed: int
    ) -> dict[tuple[str, int], Outcome]:
        """Train the (study, trial) pairs together; where that raises, train each half, down to single trials.

        So a configuration that runs out of memory, or fails in any other way, costs the other trials only time.
        """
        started = time.perf_counter()
        try:
            trained = self._train([_Entry(*each) for each in trials], batches, seed)
        except Exception as error:
            reason = failure(error)
            if len(trials) == 1:
                failed = Outcome("failed", seconds=time.perf_counter() - started, reason=reason)
                return {(trials[0][0], trials[0][1].number): failed}
        else:
            return _outcomes(trained, time.perf_counter() - started)
        if self._device.type == "cuda":  # only here, where the error's frames no longer hold what did not fit
            torch.cuda.empty_cache()
        half = len(trials) // 2
        return self._run(trials[:half], batches, seed) | self._run(trials[half:], batches, seed)

    def _train(self, entries: list[_Entry], batches: Sequence[TrialBatch], seed: int) -> list[_Entry]:
        """Train and score the entries until each is finished, stopped or diverged."""
        settings = self._settings
        rungs = {batch.study: Rungs(settings.rung_factor, batch.rungs or {}) for batch in batches}
        trials = []
        for entry in entries:
            expert = int(entry.study)
            trials.append(ExpertTrial(expert, configured(self._defaults[expert], entry.trial.values)))
        running = self._search.start(trials, seed, self._data, self._device, settings.backend == "bank")
        alive = set(range(len(entries)))
        for epoch in range(1, settings.epochs + 1):
            running.train_epoch()
            if epoch == settings.epochs or epoch in settings.rungs or epoch % settings.validate_every == 0:
                ended = _judge(entries, running.scores(), epoch, rungs if epoch < settings.epochs else {})
                alive -= ended
                if not alive:
                    break
                running.drop(ended)
        return entries


def _judge(entries: list[_Entry], scores: Mapping[int, Score], epoch: int, rungs: Mapping[str, Rungs]) -> set[int]:
    """Add the scores to the entries' curves; the numbers of those that diverged or are stopped at a rung."""
    ended: set[int] = set()
    for number, score in scores.items():
        if math.isfinite(score.value) and math.isfinite(score.loss):
            entries[number].curve.append(Point(epoch, score.value, score.loss))
        else:
            entries[number].state = "failed"
            entries[number].reason = f"diverged: the validation loss is {score.loss} after epoch {epoch}"
            ended.add(number)
    for study, study_rungs in rungs.items():
        arrived = {
            number: entries[number].curve[-1].sort_key
            for number in scores
            if entries[number].study == study and number not in ended
        }
        for number in set(arrived) - study_rungs.survivors(epoch, arrived):
            entries[number].state = "stopped"
            ended.add(number)
    return ended


def _outcomes(entries: Sequence[_Entry], seconds: float) -> dict[tuple[str, int], Outcome]:
    """Each entry's outcome; `seconds` are shared out by the epochs that the entries were trained."""
    epochs = [entry.curve[-1].epoch if entry.curve else 1 for entry in entries]
    return {
        (entry.study, entry.trial.number): Outcome(
            entry.state, tuple(entry.curve), seconds * share / sum(epochs), entry.reason
        )
        for entry, share in zip(entries, epochs)
    }
