"""A search over experts on digits: by bank, by reused processes, and by one process per trial.

    python benchmarks/search.py [--experts 10] [--trials 8] [--workers 2] [--epochs 12] [--scaling 10000]

bank: one run of Ray Tune whose trials are an expert and a batch of configurations, trained together (moe_dist/tune as
it stands). reused: the same run of Tune with one configuration a trial, trained by torch's optimiser; Tune's workers
are reused. process: a fresh Python process for every trial, so many at a time as there are workers, without Ray. All
three train the same configurations, drawn at random, to the last epoch, from the true labels.

The overhead of a Tune run is the share of the workers' time in which no trial was trained: starting workers, Tune's and
Optuna's own work, and waiting; it is told with and without the start, which ends with the first batch told.
--scaling: so many trials that cost nothing, in batches of eight: seconds per trial of the first and the last tenth.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
import torch

from moe_dist.config import AugmentConfig, DataConfig, ResourceConfig
from moe_dist.data.opened import open_data
from moe_dist.methods.base import TrainingSet
from moe_dist.methods.dfcp.config import AloneConfig, ExpertConfig
from moe_dist.methods.dfcp.search import DfcpExpertSearch
from moe_dist.methods.search import SearchData
from moe_dist.train.run import hardware
from moe_dist.tune.budget import Budget
from moe_dist.tune.config import TuneConfig
from moe_dist.tune.journal import Journal
from moe_dist.tune.ray_search import OpenBackend, run_on_ray
from moe_dist.tune.runner import Backend, ExpertBackend
from moe_dist.tune.search import Search, Searched
from moe_dist.tune.space import distributions, read_space
from moe_dist.tune.study import SamplerSettings, Study
from moe_dist.tune.trials import Batch, Outcome, Point, Round, Trial, pack_round, unpack_round

RESULTS = Path(__file__).parent / "results" / "search.json"
CACHE = Path(tempfile.gettempdir()) / "moe-dist-benchmark-cache"
ALONE = AloneConfig(augment=AugmentConfig(shift=0.1, rotate=12, zoom=0.15))
BATCH = 8
OBJECT_STORE_BYTES = 200 * 2**20


def main() -> None:
    """Measure, print and write results/search.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, default=10)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--scaling", type=int, default=0)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        run_one(arguments.one, arguments.epochs)
        return
    open_expert_backend({"backend": "bank", "epochs": 1}, torch.device("cpu"))  # decodes the images, once for all
    found: dict[str, Any] = {"hardware": hardware(), **{k: v for k, v in vars(arguments).items() if k != "one"}}
    found["process"] = by_process(arguments)
    ray.init(num_cpus=arguments.workers, object_store_memory=OBJECT_STORE_BYTES, log_to_driver=False)
    found["reused"] = on_tune(arguments, "process", batch=1)
    found["bank"] = on_tune(arguments, "bank", batch=min(BATCH, arguments.trials))
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
    data = open_data(config, 0, CACHE)
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
    search, seconds, first = searched(arguments.experts, arguments.trials, batch, open_expert_backend, settings)
    outcomes = [outcome for each in search.searched.values() for outcome in each.study.outcomes]
    assert all(outcome.state == "finished" for outcome in outcomes), {outcome.reason for outcome in outcomes}
    work = sum(outcome.seconds for outcome in outcomes) / arguments.workers
    return {
        "trials": len(outcomes),
        "seconds": seconds,
        "trials_per_minute": 60 * len(outcomes) / seconds,
        "training_seconds_of_a_worker": work,
        "start_seconds": first,
        "overhead": 1 - work / seconds,
    }


def searched(
    experts: int, trials: int, batch: int, open_backend: OpenBackend, packed: Any
) -> tuple[Search, float, float]:
    """A search that has run on Tune, its seconds, and those until its first batch was told."""
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "journal.jsonl", {})
        budget = Budget(trials, None, "fair", batch)
        search = Search([Searched(study) for study in studies(experts)], budget, journal)
        started = time.perf_counter()
        run_on_ray(search, open_backend, packed, ResourceConfig(), Path(folder))
        seconds = time.perf_counter() - started
        times = told_at(journal, folder)
        journal.close()
    return search, seconds, times[0][0]


def told_at(journal: Journal, folder: str) -> list[tuple[float, int]]:
    """(seconds since the search began, trials) of every batch told."""
    lines = (Path(folder) / "journal.jsonl").read_text().splitlines()[1:]
    records = [json.loads(line) for line in lines]
    return [(record["at"], len(record["told"])) for record in records if "told" in record]


def by_process(arguments: argparse.Namespace) -> dict[str, float]:
    """A fresh process for every trial."""
    rounds = [
        Round(0, (Batch(study.name, (trial,), 0, {}),))
        for study in studies(arguments.experts)
        for trial in study.ask(arguments.trials)
    ]
    command = [sys.executable, __file__, "--epochs", str(arguments.epochs), "--one"]

    def run(work: Round) -> None:
        subprocess.run([*command, pack_round(work)], check=True, stdout=subprocess.DEVNULL)

    started = time.perf_counter()
    with ThreadPoolExecutor(arguments.workers) as pool:
        list(pool.map(run, rounds))
    seconds = time.perf_counter() - started
    return {"trials": len(rounds), "seconds": seconds, "trials_per_minute": 60 * len(rounds) / seconds}


def run_one(packed: str, epochs: int) -> None:
    """One trial in this process."""
    torch.set_num_threads(1)
    settings = {"backend": "process", "epochs": epochs, "validate_every": epochs}
    outcomes = open_expert_backend(settings, torch.device("cpu")).run(unpack_round(packed))
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
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "journal.jsonl", {})
        budget = Budget(-(-trials // 43), None, "fair", BATCH)
        search = Search([Searched(study) for study in studies(43)], budget, journal)
        run_on_ray(search, open_trivial_backend, None, ResourceConfig(), Path(folder))
        times = told_at(journal, folder)[1:]  # the first one waited for the workers to start
        journal.close()
    tenth = len(times) // 10
    first = (times[tenth][0] - times[0][0]) / sum(count for _, count in times[1 : tenth + 1])
    last = (times[-1][0] - times[-1 - tenth][0]) / sum(count for _, count in times[-tenth:])
    return {"trials": search.told, "first_tenth": first, "last_tenth": last, "ratio": last / first}


if __name__ == "__main__":
    main()
