"""Where the seconds before the first step of a Ray run go, on this machine.

    python benchmarks/startup.py jobs/demo.yaml --model traditional_moe --workers 2

Every phase ends with a time stamp, the workers' ones written by rank 0; a second training in the same Ray shows what a
run with several methods pays again. Nothing is cached between phases but what the operating system caches.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from machine import machine
from rich.console import Console

from moe_dist.data.opened.job_shards import ensure_shards
from moe_dist.job import load_job
from moe_dist.launch.choose import open_launcher
from moe_dist.launch.ray_trainer import fit
from moe_dist.places import cache_folder
from moe_dist.terminal import Show
from moe_dist.train.task import TrainingTask

PHASES = (
    ("driver imports Ray and starts it", "ray"),
    ("Ray Train starts the workers and torch.distributed", "worker"),
    ("worker imports the loop", "imports"),
    ("worker opens the data and builds the network", "opened"),
    ("DeepSpeed engine", "engine"),
    ("first step", "step"),
)


def main() -> None:
    """Measure and write benchmarks/results/startup.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    command = f"{options.job} --model {options.model} --workers {options.workers}"
    about = {"command": command, **machine()}
    job = load_job(options.job, [f"workers={options.workers}"])
    with tempfile.TemporaryDirectory() as name:
        folder, show = Path(name), Show(Console(quiet=True))
        places = (folder, cache_folder(), ensure_shards(job.data, cache_folder()))
        stamps = {"start": time.time()}
        with open_launcher("ray", job, folder, show):
            stamps["ray"] = time.time()
            first = stamps | run(TrainingTask(job, options.model, *places, folder / "first", {}))
            again = {"ray": time.time()}
            again |= run(TrainingTask(job, options.model, *places, folder / "again", {}))
    result = about | {"seconds": seconds(first), "second training": seconds(again)}
    print(json.dumps(result, indent=1))
    (Path(__file__).parent / "results" / "startup.json").write_text(json.dumps(result, indent=1) + "\n")


def run(task: TrainingTask) -> dict[str, float]:
    """One training's time stamps, from its rank 0."""

    task.checkpoints.mkdir(parents=True)
    fit(task, stamped_worker)
    return json.loads((task.checkpoints / "stamps.json").read_text())


def seconds(stamps: dict[str, float]) -> dict[str, float]:
    """Each phase's seconds, from the end of the one before it."""
    names = list(stamps)
    taken = {name: round(stamps[name] - stamps[before], 2) for before, name in pairwise(names)}
    return {title: taken[name] for title, name in PHASES if name in taken} | {
        "all": round(stamps[names[-1]] - stamps[names[0]], 2)
    }


def stamped_worker(packed: dict[str, Any]) -> None:
    """What a worker does up to its first step, stamped."""
    stamps = {"worker": time.time()}
    import ray.train.torch

    from moe_dist.launch.ray_worker import RayWorker
    from moe_dist.methods.phases import Progress
    from moe_dist.train.loop import train_step
    from moe_dist.train.session import Session
    from moe_dist.train.task import open_training

    stamps["imports"] = time.time()
    task = TrainingTask.unpack(packed)
    worker = RayWorker(task.checkpoints, ray.train.torch.get_device())
    training = open_training(task, worker)
    stamps["opened"] = time.time()
    stage = training.method.stages()[0]
    session = Session(training, stage, worker)
    stamps["engine"] = time.time()
    train_step(training.method, session, next(session.stream.epoch()), Progress(stage.name, 0, 1, 1))
    stamps["step"] = time.time()
    if worker.rank == 0:
        (task.checkpoints / "stamps.json").write_text(json.dumps(stamps))


if __name__ == "__main__":
    main()
