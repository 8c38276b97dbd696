"""Images per second of a job's training loop against a bare PyTorch loop with the same network and the same batches.

    python benchmarks/loop.py jobs/demo.yaml --model traditional_moe

The bare loop is what one would write by hand: batches made beforehand and kept, forward, loss, backward, step.
The job's loop draws and augments its batches, checks every loss term, and writes its log and TensorBoard; it
takes no checkpoint and no validation here, which the bare loop has not either. Both run in this process on the same
number of threads, in turn, several rounds; the ratio is the median over rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from machine import machine

import moe_dist.train.loop as loop
from moe_dist.data.batch import Batch
from moe_dist.data.opened.job_shards import ensure_shards
from moe_dist.job import Job, load_job
from moe_dist.methods.phases import Progress
from moe_dist.places import cache_folder
from moe_dist.train.log import TrainingLog
from moe_dist.train.session import Session
from moe_dist.train.task import Training, TrainingTask, open_training
from moe_dist.train.worker import LocalWorker


def main() -> None:
    """Measure and write benchmarks/results/loop.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    about = {"command": f"{options.job} --model {options.model} --threads {options.threads}", **machine()}
    job = load_job(options.job, options.overrides)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(job, options.model, Path(folder), options.steps, options.rounds)
    print(json.dumps(about | result, indent=1))
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "loop.json").write_text(json.dumps(about | result, indent=1) + "\n")


def measure(job: Job, model: str, folder: Path, steps: int, rounds: int) -> dict[str, Any]:
    """Images per second of both loops, by round, and the median of their ratios."""
    shards = ensure_shards(job.data, cache_folder())
    task = TrainingTask(job, model, folder, cache_folder(), shards, folder / model, {})
    worker = LocalWorker(folder, 1, 0, 1, torch.device("cpu"))
    training = open_training(task, worker)
    (stage,) = training.method.stages()
    ours, bare = Session(training, stage, worker), Session(open_training(task, worker), stage, worker)
    batches = first_batches(bare, steps)
    log = TrainingLog(folder / model, 0, 0)
    rates: dict[str, list[float]] = {"ours": [], "bare": []}
    for round_number in range(rounds + 1):  # the first one warms up
        seconds = {"ours": time_ours(training, ours, log, steps), "bare": time_bare(training, bare, batches)}
        if round_number:
            for name, took in seconds.items():
                rates[name].append(steps * stage.batch_size / took)
    ratios = [a / b for a, b in zip(rates["ours"], rates["bare"])]
    return {
        "images_per_second": {name: round(statistics.median(values), 1) for name, values in rates.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "batch_size": stage.batch_size,
    }


def first_batches(session: Session, steps: int) -> list[Batch]:
    """`steps` batches of the stream, kept, over as many epochs as that takes."""
    batches: list[Batch] = []
    while len(batches) < steps:
        for batch in session.stream.epoch():
            batches.append(batch)
            session.stream.advance()
    return batches[:steps]


def time_ours(training: Training, session: Session, log: TrainingLog, steps: int) -> float:
    """Seconds of `steps` steps as train/loop.py does them."""
    started = time.perf_counter()
    session.engine.network.train()
    step = 0
    while step < steps:
        for batch in session.stream.epoch():
            step += 1
            progress = Progress(session.stage.name, 0, session.stage.epochs, step)
            losses = loop.train_step(training.method, session, batch, progress)
            session.stream.advance()
            log.write("step", session.stage.name, 0, step, loop.checked(losses, 1, step, session.stage.name))
            if step == steps:
                break
    return time.perf_counter() - started


def time_bare(training: Training, session: Session, batches: list[Batch]) -> float:
    """Seconds of the same steps by hand, with the same optimiser."""
    network, optimiser = session.engine.network, session.engine.optimiser
    network.train()
    started = time.perf_counter()
    for step, batch in enumerate(batches):
        terms = training.method.loss(network, batch, Progress(session.stage.name, 0, session.stage.epochs, step))
        torch.stack(list(terms.values())).sum().backward()
        optimiser.step()
        optimiser.zero_grad()
    return time.perf_counter() - started


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
