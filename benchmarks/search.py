"""A search over experts on digits: by bank, by reused processes, and by one process per trial.

    python benchmarks/search.py [--experts 10] [--trials 8] [--workers 2] [--epochs 12] [--processes 16]
                                [--batch 8] [--scaling 10000]

bank: one run of Ray Tune whose trials are an expert and a batch of configurations, trained together (moe_dist/tune as
it stands). reused: the same run of Tune with one configuration a trial, trained by torch's optimiser; Tune's workers
are reused. process: a fresh Python process for a trial, so many at a time as there are workers, without Ray; only
--processes of the same trials, which are spread over experts and configurations, for the rate is the same after a few.
All three train the same configurations, drawn at random, to the last epoch, from the true labels.

The overhead of a Tune run is the share of the workers' time, from the call of Tune to its return, in which no trial was
trained or scored: starting Tune and its workers, imports, opening the data, Tune's and Optuna's own work, and a worker
waiting at the end. overhead_after_start leaves out the time until the first worker began with its first trial.
Ray itself is started before any clock. bank_seconds and rates are wall time: nothing else should run.
--scaling: so many trials that cost nothing, in batches of eight: seconds per trial of the first and the last tenth.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from machine import machine

from moe_dist.data.batch import TrainingSet
from moe_dist.data.opened.job_shards import ensure_shards
from moe_dist.data.opened.opened import open_data
from moe_dist.methods.dfcp.config import AloneConfig, ExpertConfig
from moe_dist.methods.dfcp.search import DfcpExpertSearch
from moe_dist.methods.search import SearchData
from moe_dist.models.lenet import LeNet
from moe_dist.settings.augment import AugmentConfig
from moe_dist.settings.data import DataConfig
from moe_dist.settings.resources import ResourceConfig
from moe_dist.settings.tune import TuneConfig
from moe_dist.tune.backend import Backend, OpenBackend
from moe_dist.tune.budget import Budget
from moe_dist.tune.expert_trials import ExpertBackend
from moe_dist.tune.journal import Journal
from moe_dist.tune.ray_search import run_on_ray
from moe_dist.tune.search import Search, SearchedStudy
from moe_dist.tune.space import configured, distributions, read_space
from moe_dist.tune.study import SamplerSettings, Study
from moe_dist.tune.trials import Outcome, Point, Round, Trial, TrialBatch

RESULTS = Path(__file__).parent / "results" / "search.json"
CACHE = Path(tempfile.gettempdir()) / "moe-dist-benchmark-cache"
ALONE = AloneConfig(augment=AugmentConfig(shift=0.1, rotate=12, zoom=0.15))
SCALING_STUDIES, SCALING_BATCH = 43, 8
OBJECT_STORE_BYTES = 200 * 2**20


def main() -> None:
    """Measure, print and write results/search.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, default=10)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--processes", type=int, default=16, help="trials of the contender process")
    parser.add_argument("--batch", type=int, default=8, help="configurations of a bank")
    parser.add_argument("--scaling", type=int, default=0)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        run_one(arguments.one, arguments.epochs)
        return
    measured_on = machine()
    open_expert_backend({"backend": "bank", "epochs": 1}, torch.device("cpu"))  # decodes the images, once for all
    settings = {name: value for name, value in vars(arguments).items() if name != "one"}
    found: dict[str, Any] = {**measured_on, **settings}
    found["process"] = by_process(arguments)
    ray.init(num_cpus=arguments.workers, object_store_memory=OBJECT_STORE_BYTES, log_to_driver=False)
    found["reused"] = on_tune(arguments, "process", batch=1)
    found["bank"] = on_tune(arguments, "bank", batch=min(arguments.batch, arguments.trials))
    for rival in ("process", "reused"):
        found[f"bank_over_{rival}"] = found["bank"]["trials_per_minute"] / found[rival]["trials_per_minute"]
    if arguments.scaling:
        found["scaling"] = scaling(arguments.scaling)
    ray.shutdown()
    print(json.dumps(found, indent=1))
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def open_expert_backend(settings: dict[str, Any], device: torch.device) -> Backend:
    """Trials of experts on digits with their true labels."""
    config = DataConfig(dataset="digits", image_size=32)
    data = open_data(config, 0, CACHE, ensure_shards(config, CACHE))
    samples = data.train_samples
    material = SearchData(
        config=config,
        train=data.train.images,
        training_set=TrainingSet(samples, data.train.labels[samples]),
        val=data.val.images,
        val_samples=data.val_samples,
        val_labels=data.val.labels[data.val_samples],
    )
    search = DfcpExpertSearch((ExpertConfig(),) * data.info.classes, ALONE)
    return ExpertBackend(search, material, TuneConfig.model_validate(settings), device)


def studies(experts: int) -> list[Study]:
    """Random searches: every contender trains the same configurations."""
    found = distributions(read_space(DfcpExpertSearch.space), ExpertConfig(), "space")
    return [Study(str(expert), found, SamplerSettings("random", 0, 0)) for expert in range(experts)]


def on_tune(arguments: argparse.Namespace, backend: str, batch: int) -> dict[str, float]:
    """The whole search as a run of Ray Tune."""
    settings = {"backend": backend, "epochs": arguments.epochs, "validate_every": arguments.epochs}
    run = tune_run(arguments.experts, arguments.trials, batch, open_expert_backend, settings)
    outcomes = [outcome for each in run.search.studies.values() for outcome in each.study.outcomes]
    assert all(outcome.state == "finished" for outcome in outcomes), {outcome.reason for outcome in outcomes}
    work = sum(outcome.seconds for outcome in outcomes) / arguments.workers
    start = min(batch.at - batch.seconds for batch in run.batches)
    return {
        "trials": len(outcomes),
        "batch": batch,
        "seconds": run.seconds,
        "trials_per_minute": 60 * len(outcomes) / run.seconds,
        "training_seconds_of_a_worker": work,
        "start_seconds": start,
        "overhead": 1 - work / run.seconds,
        "overhead_after_start": 1 - work / (run.seconds - start),
    }


@dataclass(frozen=True)
class FinishedBatch:
    """A batch with its outcomes: seconds since the search began, its trials, and the seconds of their training."""

    at: float
    trials: int
    seconds: float


@dataclass(frozen=True)
class TuneRun:
    """A search that has run on Tune, its seconds, and its batches in the order they ended."""

    search: Search
    seconds: float
    batches: list[FinishedBatch]


def tune_run(experts: int, trials: int, batch: int, open_backend: OpenBackend, packed: Any) -> TuneRun:
    """Run a search over `experts` studies of `trials` trials."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        budget = Budget(trials, None, "fair", batch)
        with closing(Journal(path, {})) as journal:
            search = Search([SearchedStudy(study) for study in studies(experts)], budget, journal)
            started = time.perf_counter()
            run_on_ray(search, open_backend, packed, ResourceConfig(), Path(folder))
            seconds = time.perf_counter() - started
        records = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    told = [record for record in records if "told" in record]
    return TuneRun(search, seconds, [_finished_batch(record["at"], record["told"]) for record in told])


def _finished_batch(at: float, outcomes: list[dict[str, Any]]) -> FinishedBatch:
    return FinishedBatch(at, len(outcomes), sum(outcome["seconds"] for outcome in outcomes))


def by_process(arguments: argparse.Namespace) -> dict[str, float]:
    """A fresh process for each of a sample of the trials."""
    trials = {study.name: study.ask(arguments.trials) for study in studies(arguments.experts)}
    sample = [(name, trials[name][number]) for name, number in spread(arguments)]
    command = [sys.executable, __file__, "--epochs", str(arguments.epochs), "--one"]

    def run(trial: tuple[str, Trial]) -> None:
        work = Round(0, (TrialBatch(trial[0], (trial[1],), 0, {}),))
        subprocess.run([*command, work.to_json()], check=True, stdout=subprocess.DEVNULL)

    started = time.perf_counter()
    with ThreadPoolExecutor(arguments.workers) as pool:
        list(pool.map(run, sample))
    seconds = time.perf_counter() - started
    of_sample = [multiply_adds(trial) for _, trial in sample]
    of_all = [multiply_adds(trial) for of_study in trials.values() for trial in of_study]
    return {
        "trials": len(sample),
        "of_trials": len(of_all),
        "multiply_adds_over_mean": statistics.mean(of_sample) / statistics.mean(of_all),
        "seconds": seconds,
        "trials_per_minute": 60 * len(sample) / seconds,
    }


def spread(arguments: argparse.Namespace) -> list[tuple[str, int]]:
    """--processes pairs of expert and trial: the first trial of the first expert, the second of the second, ..."""
    everything = [(trial, expert) for trial in range(arguments.trials) for expert in range(arguments.experts)]
    diagonals = [(str(expert), (trial + expert) % arguments.trials) for trial, expert in everything]
    return diagonals[: arguments.processes]


def multiply_adds(trial: Trial) -> int:
    """Of one image's forward pass through a trial's network."""
    return LeNet.multiply_adds(configured(ExpertConfig(), trial.values).widths)


def run_one(packed: str, epochs: int) -> None:
    """One trial in this process."""
    torch.set_num_threads(1)
    settings = {"backend": "process", "epochs": epochs, "validate_every": epochs}
    outcomes = open_expert_backend(settings, torch.device("cpu")).run(Round.from_json(packed))
    assert outcomes[0][0].state == "finished", outcomes[0][0].reason
    print(outcomes[0][0].last)


class TrivialBackend:
    """Trials that cost nothing."""

    def run(self, work: Round) -> list[list[Outcome]]:
        """The number of filters as the score."""
        return [[Outcome("finished", (_point(trial),)) for trial in batch.trials] for batch in work.batches]


def _point(trial: Trial) -> Point:
    return Point(1, float(trial.values["conv1"]) / 20, 0.0)


def open_trivial_backend(packed: Any, device: torch.device) -> Backend:
    """As a worker opens it."""
    return TrivialBackend()


def scaling(trials: int) -> dict[str, float]:
    """Seconds per trial of the first and the last tenth of the trials, over 43 studies."""
    run = tune_run(SCALING_STUDIES, -(-trials // SCALING_STUDIES), SCALING_BATCH, open_trivial_backend, None)
    batches = run.batches[1:]  # the first one waited for the workers to start
    tenth = len(batches) // 10
    first = (batches[tenth].at - batches[0].at) / sum(batch.trials for batch in batches[1 : tenth + 1])
    last = (batches[-1].at - batches[-1 - tenth].at) / sum(batch.trials for batch in batches[-tenth:])
    return {
        "trials": run.search.finished,
        "seconds": run.seconds,
        "first_tenth": first,
        "last_tenth": last,
        "ratio": last / first,
    }


if __name__ == "__main__":
    main()
