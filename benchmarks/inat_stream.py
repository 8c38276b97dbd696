"""What a data set of iNaturalist 2018's shape costs: indexing, an epoch's order, streaming, memory.

    python -m benchmarks.inat_stream

The set (inat_shaped.py) is written to a temporary folder (0.9 GB) and streamed from disk for one epoch over 1, 2 and 3
ranks, each a process with one loader worker. Memory is the largest of an epoch: of a rank its resident set, less what
the interpreter and the imported libraries take before any data is opened; of a worker, which is forked from its rank
and shares those pages, what it shares with nobody. Orders are timed by the clock of the process, the smallest of some
rounds. Writes benchmarks/results/inat_stream.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks.inat_shaped import CLASSES, IMAGES, pareto_counts, write_inat_shaped
from benchmarks.machine import machine
from moe_dist.data.batch import TrainingSet
from moe_dist.data.opened.images import open_images
from moe_dist.data.order import epoch_order, sampled_order
from moe_dist.data.shards.shard_set import ShardSet
from moe_dist.data.stream.stream import Stream
from moe_dist.settings.data import DataConfig

RESULTS = Path(__file__).parent / "results"
BATCH = 384
MEASURE_EVERY_STEPS = 25


def main() -> None:
    """Measure everything and write the results; or, as a process of its own, stream as one rank."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank-of", nargs=3, metavar=("SPLIT", "RANK", "WORLD"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_of:
        folder, rank, ranks = options.rank_of
        print(json.dumps(stream_rank(Path(folder), int(rank), int(ranks))))
        return
    measured_on = machine()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "train"
        started = time.perf_counter()
        write_inat_shaped(folder, pareto_counts(CLASSES, IMAGES))
        wrote = time.perf_counter() - started
        result = {
            **measured_on,
            "classes": CLASSES,
            "images": IMAGES,
            "write_and_index_seconds": round(wrote, 1),
            "open_cpu_seconds": round(smallest_seconds(lambda: ShardSet.open(folder)), 3),
            "order_cpu_seconds": order_seconds(ShardSet.open(folder).labels),
            "epochs": {str(ranks): stream_epoch(folder, ranks) for ranks in (1, 2, 3)},
        }
    for epoch in result["epochs"].values():
        epoch.pop("samples")
    print(json.dumps(result, indent=1))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "inat_stream.json").write_text(json.dumps(result, indent=1) + "\n")


def order_seconds(labels: np.ndarray) -> dict[str, float]:
    """Seconds of one epoch's order by each kind of sampling."""
    seconds = {"instance": smallest_seconds(lambda: epoch_order(len(labels), 0, 3))}
    for sampling in ("balanced", "square_root", "progressive"):
        seconds[sampling] = smallest_seconds(lambda sampling=sampling: sampled_order(labels, sampling, 0, 3, 10))
    return {sampling: round(value, 3) for sampling, value in seconds.items()}


def smallest_seconds(work: Callable[[], object], rounds: int = 7) -> float:
    """The smallest CPU time of `work` over `rounds`: what other programs leave of it."""
    took = []
    for _ in range(rounds):
        started = time.process_time()
        work()
        took.append(time.process_time() - started)
    return min(took)


def stream_epoch(folder: Path, ranks: int) -> dict[str, Any]:
    """One epoch over `ranks` ranks at a time: samples seen [n] of all ranks, seconds, steps, and MiB by process."""
    command = [sys.executable, "-m", "benchmarks.inat_stream", "--rank-of", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    home = Path(__file__).parents[1]
    started = time.perf_counter()
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(ranks)], stdout=subprocess.PIPE, text=True, cwd=home, env=environment
        )
        for rank in range(ranks)
    ]
    outputs = [process.communicate()[0] for process in processes]
    seconds = time.perf_counter() - started
    assert not any(process.returncode for process in processes)
    reports = [json.loads(output) for output in outputs]
    return {
        "samples": np.concatenate([np.array(report.pop("samples")) for report in reports]),
        "seconds": round(seconds, 1),
        "images_per_second": round(IMAGES / seconds),
        "ranks": reports,
    }


def stream_rank(folder: Path, rank: int, ranks: int) -> dict[str, Any]:
    """One rank's epoch: its steps, the samples it saw, and the memory of its two processes (see the file's head)."""
    torch.set_num_threads(1)
    torch.ones(8).sum()  # torch's first operation allocates too
    process = psutil.Process()
    own = process.memory_info().rss
    shards = ShardSet.open(folder)
    config = DataConfig(image_size=8, decode="each_time", loader_workers=1)
    images = open_images(shards, config, folder)
    everything = TrainingSet(np.arange(len(shards)), shards.labels)
    batch = BATCH - BATCH % ranks
    stream = Stream(images, everything, config, seed=0, global_batch=batch, rank=rank, ranks=ranks)
    largest = {"rank": 0, "worker": 0}
    samples = []
    for step, shown in enumerate(stream.epoch()):
        samples.append(shown.samples[shown.weight > 0].numpy())
        if step % MEASURE_EVERY_STEPS == 0:
            worker = process.children()[0].memory_full_info().uss
            sizes = {"rank": process.memory_info().rss - own, "worker": worker}
            largest = {name: max(largest[name], sizes[name]) for name in sizes}
    return {
        "steps": len(stream),
        "samples": np.concatenate(samples).tolist(),
        "interpreter_mib": round(own / 2**20),
        **{f"{name}_mib_over_interpreter": round(size / 2**20) for name, size in largest.items()},
    }


if __name__ == "__main__":
    main()
