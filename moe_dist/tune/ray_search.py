"""A search as one run of Ray Tune: its searcher hosts all studies, and each of its trials is a round.

Ray's own files are not kept. The search's journal is, and a resumed search is a new run of Tune.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from moe_dist.disk import raising_disk_errors
from moe_dist.errors import DiskError, UserError
from moe_dist.launch.launcher import device_of, use_threads
from moe_dist.launch.ray import TASK_RETRIES
from moe_dist.settings.resources import ResourceConfig
from moe_dist.tune.backend import Backend, OpenBackend, failure
from moe_dist.tune.search import Search
from moe_dist.tune.trials import LOST, Outcome, Round, TrialBatch

METRIC = "trials"
TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a CSV, JSON and TensorBoard file for every trial
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # its snapshots grow with the number of trials, and ours is the journal
    "RAY_AIR_NEW_OUTPUT": "0",  # prints its settings even when it is asked for silence
    "TUNE_RESULT_BUFFER_LENGTH": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # which ends the search as if it were done
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


class StudiesSearcher(Searcher):
    """Ray Tune's view of a Search: a trial's configuration is a round, its result the round's outcomes.

    error: the one that ended the search from within, such as a full disk under a trial or the journal. Tune is then
    told that the search is finished, because after an exception it would ask on and on; the round gets no outcome, so
    that a resumed search runs it again.
    """

    def __init__(self, search: Search) -> None:
        super().__init__(metric=METRIC, mode="max")
        self._search = search
        self._rounds: dict[str, Round] = {}
        self.error: Exception | None = None

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """The next round; None: ask again when a running one has ended."""
        work = None
        if self.error is None:
            with self._ending():
                work = self._search.next_round()
        if work is None:
            return None if self._search.running and self.error is None else Searcher.FINISHED
        self._rounds[trial_id] = work
        return {"round": work.to_json()}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the search; a round without a result is a failure of all its trials."""
        work = self._rounds.pop(trial_id)
        with self._ending():
            if result and "disk_error" in result:
                raise DiskError(result["disk_error"])
            if error or not result or "outcomes" not in result:
                self._search.tell(work, _all_failed(work.batches, LOST))
            else:
                self._search.tell(work, [[Outcome.from_values(each) for each in batch] for batch in result["outcomes"]])

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """Keep the first error instead of raising it."""
        try:
            yield
        except Exception as error:
            self.error = self.error or error

    def __getstate__(self) -> dict[str, Any]:
        """Without the search: Tune pickles its searcher for a restore, which nothing uses."""
        return self.__dict__ | {"_search": None}

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the journal has everything."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: see `save`."""


class LostRounds(tune.Callback):
    """Tells of a round whose worker died, which Tune runs again, and of the seconds that it had run."""

    def __init__(self, lost: Callable[[Round, float], None]) -> None:
        self._lost = lost
        self._began: dict[str, float] = {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Take down when it began."""
        self._began[trial.trial_id] = time.monotonic()

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tell of it."""
        self._lost(Round.from_json(trial.config["round"]), time.monotonic() - self._began[trial.trial_id])

    def __getstate__(self) -> dict[str, Any]:
        """Without whom it tells: Tune pickles its callbacks for a restore, which nothing uses."""
        return self.__dict__ | {"_lost": None}


class RoundTrainable(tune.Trainable):
    """A worker, which keeps its backend and with it the data from round to round."""

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], open_backend: OpenBackend, packed: Any, resources: dict[str, Any], folder: Path
    ) -> None:
        """Keep what opens the backend. `step` opens it, because an error there becomes the trials' outcome."""
        self._resources = ResourceConfig.model_validate(resources)
        self._open = partial(open_backend, packed)
        self._backend: Backend | None = None
        self._folder = folder
        self._round = config["round"]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next round; Tune then reuses this process."""
        self._round = new_config["round"]
        return True

    def step(self) -> dict[str, Any]:
        """Run the round; an error outside a trial is the outcome of each of its trials."""
        work = Round.from_json(self._round)
        try:
            with raising_disk_errors(self._folder, "what a trial leaves"):
                if self._backend is None:
                    use_threads(self._resources.cpus_per_task)
                    self._backend = self._open(device_of(self._resources.gpus_per_task))
                outcomes = self._backend.run(work)
        except DiskError as error:
            return {METRIC: 0, "disk_error": str(error), "done": True}
        except Exception as error:
            outcomes = _all_failed(work.batches, failure(error))
        packed = [[asdict(outcome) for outcome in batch] for batch in outcomes]
        return {METRIC: sum(map(len, outcomes)), "outcomes": packed, "done": True}


def _all_failed(batches: Sequence[TrialBatch], reason: str) -> list[list[Outcome]]:
    """The outcomes of a round that failed as a whole."""
    return [[Outcome("failed", reason=reason) for _ in batch.trials] for batch in batches]


def run_on_ray(
    search: Search,
    open_backend: OpenBackend,
    packed: Any,
    resources: ResourceConfig,
    folder: Path,
    lost: Callable[[Round, float], None] = lambda work, seconds: None,
) -> None:
    """Run the whole search as one run of Ray Tune on the Ray this process is connected to.

    A round whose worker died is run again as often as a task is; after that, its trials are lost in this run.
    folder: for Tune's temporary files; every node must reach it. lost: is told of each such round and its seconds.
    Raises the error that ended the search from within, and UserError where Tune itself ends it.
    """
    for name, value in TUNE_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what failed is in the journal
    per_trial = {"cpu": resources.cpus_per_task} | ({"gpu": resources.gpus_per_task} if resources.gpus_per_task else {})
    trainable = tune.with_parameters(
        RoundTrainable, open_backend=open_backend, packed=packed, resources=resources.model_dump(), folder=folder
    )
    searcher = StudiesSearcher(search)
    with tempfile.TemporaryDirectory(prefix=".ray-tune-", dir=folder) as storage:
        tuner = tune.Tuner(
            tune.with_resources(trainable, per_trial),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                metric=METRIC,
                mode="max",
                num_samples=-1,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
                trial_name_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=storage,
                failure_config=tune.FailureConfig(max_failures=TASK_RETRIES),
                callbacks=[LostRounds(lost)],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except tune.TuneError as error:
            raise UserError(f"Ray Tune ended the search; go on with it with --resume. It said: {error}") from error
    if searcher.error:
        raise searcher.error
